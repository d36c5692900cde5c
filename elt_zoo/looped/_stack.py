from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree


def stack(layers: Sequence[eqx.Module]) -> PyTree[Array]:
    """Stacks layers of one structure along a new leading axis; all but their arrays must be equal.

    **Raises:** `ValueError` if the structures differ, naming the first layer that does.
    """
    arrays, statics = zip(*[eqx.partition(layer, eqx.is_array) for layer in layers], strict=True)
    for index, (array, static) in enumerate(zip(arrays, statics, strict=True)):
        shapes, first = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), (array, arrays[0]))
        if not eqx.tree_equal(static, statics[0]) or not _same(shapes, first):
            raise ValueError(
                "The layers of a `LoopedTransformer` must share one structure, but layer "
                f"{index} differs from layer 0: {layers[index]} against {layers[0]}. Build all of them with the same "
                "class and sizes."
            )
    return eqx.combine(jax.tree.map(lambda *leaves: jnp.stack(leaves), *arrays), statics[0])


def apart(stacked: PyTree[Array], num_layers: int) -> tuple[Any, ...]:
    """The layers of a stack, one by one."""
    return tuple(
        jax.tree.map(lambda leaf, index=index: leaf[index] if eqx.is_array(leaf) else leaf, stacked)
        for index in range(num_layers)
    )


def _same(a: PyTree, b: PyTree) -> bool:
    return jax.tree.structure(a) == jax.tree.structure(b) and jax.tree.leaves(a) == jax.tree.leaves(b)
