from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree


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


def entry(tree: PyTree, index: int | Int[Array, ""]) -> Any:
    """Entry `index` of every array of a stacked tree."""
    return jax.tree.map(lambda leaf: leaf[index] if eqx.is_array(leaf) else leaf, tree)


def apart(stacked: PyTree[Array], num_layers: int) -> tuple[Any, ...]:
    """The layers of a stack, one by one."""
    return tuple(entry(stacked, index) for index in range(num_layers))


def zero_deltas(layers: PyTree[Array], num_loop_deltas: int) -> PyTree[Array]:
    """Zeros (layers, loops, dim) for the vectors of stacked layers, and nothing for their other arrays."""
    if num_loop_deltas < 0:
        raise ValueError(
            f"`num_loop_deltas={num_loop_deltas}` is a number of loops: 0 for none, L_max for all trained ones."
        )
    vectors = eqx.filter(layers, lambda leaf: eqx.is_inexact_array(leaf) and leaf.ndim == 2)
    if num_loop_deltas == 0 or not jax.tree.leaves(vectors):
        return None
    return jax.tree.map(lambda leaf: jnp.zeros((leaf.shape[0], num_loop_deltas, leaf.shape[1]), leaf.dtype), vectors)


def zero_embedding(shape: tuple[int, int], num_loop_deltas: int) -> Float[Array, "loops conditioning_dim"]:
    """Zeros of a table of loops, for as many as have deltas if any have."""
    if min(shape) < 1 or (num_loop_deltas and shape[0] != num_loop_deltas):
        raise ValueError(
            f"`loop_embedding={shape}, num_loop_deltas={num_loop_deltas}`: a table of at least one loop and one value, "
            "and of as many loops as have deltas if any have."
        )
    return jnp.zeros(shape, jnp.float32)


def add_deltas(layer: PyTree, deltas: PyTree[Array]) -> Any:
    """A layer with deltas added to the arrays that have one."""
    return jax.tree.map(
        lambda leaf, delta: leaf if delta is None else leaf + delta, layer, deltas, is_leaf=lambda leaf: leaf is None
    )


def _same(a: PyTree, b: PyTree) -> bool:
    return jax.tree.structure(a) == jax.tree.structure(b) and jax.tree.leaves(a) == jax.tree.leaves(b)
