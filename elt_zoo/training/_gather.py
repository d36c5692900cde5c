from typing import Any

import equinox as eqx
import jax
from jaxtyping import Array, PyTree

from ..looped import LoopedTransformer
from ..sharding import Layout


class GatheredLayer(eqx.Module):
    """A trunk's layer whose split parameters are put together where it is called, inside the loop."""

    layer: Any
    layout: Layout = eqx.field(static=True)

    def __call__(self, x: Array, *arguments: Any, **options: Any) -> Any:
        # Tied to the state, which changes in every loop: else the compiler gathers once, before all loops.
        arrays, static = eqx.partition(self.layer, eqx.is_array)
        arrays, x = jax.lax.optimization_barrier((arrays, x))
        return _whole(eqx.combine(arrays, static), self.layout)(x, *arguments, **options)


class GatheredConditionedLayer(GatheredLayer):
    """One that prepares its conditioning outside the loop."""

    def condition(self, conditioning: PyTree) -> PyTree:
        return _whole(self.layer, self.layout).condition(conditioning)


def gather_in_loops(model: Any, layout: Layout) -> Any:
    """Inside a program: a model whose looped layers are put together in every loop, and all others at once."""

    def wrap(node: Any) -> Any:
        if not isinstance(node, LoopedTransformer):
            return _whole(node, layout)
        kind = GatheredConditionedLayer if hasattr(node.layers, "condition") else GatheredLayer
        return eqx.tree_at(
            lambda trunk: (trunk.layers, trunk.prelude, trunk.coda),
            node,
            (kind(node.layers, layout), *_whole((node.prelude, node.coda), layout)),
            is_leaf=lambda leaf: leaf is None,
        )

    return jax.tree.map(wrap, model, is_leaf=lambda node: isinstance(node, LoopedTransformer))


def _whole(tree: Any, layout: Layout) -> Any:
    # Split first: in the backward pass, where the order turns around, each device then adds up its part alone.
    return layout.whole(layout.split(tree))
