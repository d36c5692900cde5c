from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from ._remat import Remat, recompute
from ._stack import add_deltas, apart, entry

State = Float[Array, "tokens dim"]
Block = Callable[[State, Int[Array, ""]], State]


class PreparedLayer(eqx.Module):
    """One layer with all the work done that does not depend on the loop.

    What all loops share is stored in float32, whatever the tokens' dtype, and cast inside each loop. The backward pass
    then sums the gradients over the loops in float32. Summed in bfloat16, small gradients vanish beside a large sum.
    Casting costs one read of the weights; XLA moves it out of the loop, and then holds a copy in the compute dtype.
    """

    layer: Any
    deltas: PyTree[Array]
    modulation: PyTree[Array]
    modulation_dtypes: tuple[DTypeLike, ...] = eqx.field(static=True)
    modulation_loops: int | None = eqx.field(static=True)

    def __init__(
        self,
        layer: Any,
        deltas: PyTree[Array],
        embedding: Float[Array, "loops conditioning_dim"] | None,
        conditioning: PyTree[Array],
        dtype: DTypeLike,
    ):
        """**Arguments:** `layer`, `deltas`: the layer and its loop deltas, or `None`; `embedding`: of the loops, or
        `None`; `conditioning`: of the call, or `None`; `dtype`: of the tokens.
        """
        modulation, loops = conditioning, None
        if embedding is not None:
            modulation, loops = _told(conditioning, embedding), embedding.shape[0]
        if conditioning is not None and hasattr(layer, "condition"):
            by_loop = None if loops is None else 0

            def condition(deltas, conditioning):
                own = layer if deltas is None else add_deltas(layer, deltas)
                return cast(own, dtype).condition(conditioning)

            if deltas is None and loops is None:
                modulation = condition(None, conditioning)
            else:
                # All loops at once, so that the loop itself is left with picking an entry.
                loops = _num_loops(deltas) if loops is None else loops
                modulation = jax.vmap(condition, in_axes=(0, by_loop))(deltas, modulation)
        self.layer = layer
        self.deltas = deltas
        self.modulation = jax.tree.map(_widen, modulation)
        self.modulation_dtypes = tuple(leaf.dtype for leaf in jax.tree.leaves(modulation))
        self.modulation_loops = loops

    def __call__(self, state: State, loop: Int[Array, ""], key: PRNGKeyArray | None) -> State:
        """The state after the layer in loop `loop`, counted from 0."""
        layer, modulation = self.layer, self.modulation
        if self.deltas is not None:
            layer = add_deltas(layer, entry(self.deltas, jnp.minimum(loop, _num_loops(self.deltas) - 1)))
        if self.modulation_loops is not None:
            modulation = entry(modulation, jnp.minimum(loop, self.modulation_loops - 1))
        leaves, structure = jax.tree.flatten(modulation)
        leaves = [leaf.astype(dtype) for leaf, dtype in zip(leaves, self.modulation_dtypes, strict=True)]
        arguments = (jax.tree.unflatten(structure, leaves),) if leaves else ()
        options = {} if key is None else {"key": key}
        return cast(layer, state.dtype)(state, *arguments, **options)


def make_block(
    layers: PyTree[Array] | Sequence[Any],
    loop_deltas: PyTree[Array],
    loop_embedding: Float[Array, "loops conditioning_dim"] | None,
    conditioning: PyTree[Array],
    key: PRNGKeyArray | None,
    *,
    num_layers: int,
    dtype: DTypeLike,
    scan_layers: bool,
    remat: Remat,
    single: bool,
) -> Block:
    """The composite block g = f_N ∘ … ∘ f_1, as a function of the state and of the loop's index.

    **Arguments:** `layers`, `loop_deltas`, `loop_embedding`, `scan_layers`, `remat`: the trunk's; `conditioning`,
    `key`: of the call; `dtype`: of the tokens; `single`: whether the block runs once, and not in a loop.
    """
    by_layer = remat in (Remat.LAYER, Remat.ELEMENTWISE)
    # What is recomputed must be inside a loop (see `recompute`); where the loops are none, that is a scan of layers.
    scan_layers = (scan_layers or (single and by_layer)) and not isinstance(layers, tuple)

    def apply(layer: PreparedLayer, state: State, loop: Int[Array, ""], index: int | Int[Array, ""]) -> State:
        layer_key = None if key is None else jax.random.fold_in(jax.random.fold_in(key, loop), index)
        with jax.named_scope(f"layer_{index}" if isinstance(index, int) else "layer"):
            return layer(state, loop, layer_key)

    in_loop = not single or (scan_layers and num_layers > 1)
    if by_layer:
        apply = recompute(apply, in_loop=in_loop, store_products=remat == Remat.ELEMENTWISE)
    if scan_layers:
        block = _scanned(layers, loop_deltas, loop_embedding, conditioning, num_layers, dtype, apply)
    else:
        block = _unrolled(layers, loop_deltas, loop_embedding, conditioning, num_layers, dtype, apply)
    return recompute(block, in_loop=not single) if remat == Remat.LOOP else block


def _unrolled(layers, loop_deltas, loop_embedding, conditioning, num_layers, dtype, apply) -> Block:
    # Sliced here, outside the loop, so that neither the slices nor their gradients' scatters repeat in it.
    separate = layers if isinstance(layers, tuple) else apart(layers, num_layers)
    prepared = [
        PreparedLayer(layer, entry(loop_deltas, index), loop_embedding, conditioning, dtype)
        for index, layer in enumerate(separate)
    ]

    def block(state, loop):
        for index, layer in enumerate(prepared):
            state = apply(layer, state, loop, index)
        return state

    return block


def _scanned(layers, loop_deltas, loop_embedding, conditioning, num_layers, dtype, apply) -> Block:
    prepare = eqx.filter_vmap(PreparedLayer, in_axes=(eqx.if_array(0), eqx.if_array(0), None, None, None))
    stacked, static = eqx.partition(prepare(layers, loop_deltas, loop_embedding, conditioning, dtype), eqx.is_array)

    def block(state, loop):
        def body(state, part):
            layer, index = part
            return apply(eqx.combine(layer, static), state, loop, index), None

        return jax.lax.scan(body, state, (stacked, jnp.arange(num_layers)))[0]

    return block


def cast(tree: Any, dtype: DTypeLike) -> Any:
    """A layer with its floating-point arrays in another dtype."""
    return jax.tree.map(lambda leaf: leaf.astype(dtype) if eqx.is_inexact_array(leaf) else leaf, tree)


def _num_loops(deltas: PyTree[Array]) -> int:
    return jax.tree.leaves(deltas)[0].shape[0]


def _told(conditioning: PyTree[Array], embedding: Float[Array, "loops conditioning_dim"]) -> Float[Array, "loops dim"]:
    """The conditioning of every loop."""
    if getattr(conditioning, "shape", None) != embedding.shape[1:]:
        given = "none" if conditioning is None else jax.tree.map(jnp.shape, conditioning)
        raise ValueError(
            f"This trunk's loop embedding {embedding.shape} is added to a conditioning vector of {embedding.shape[1]} "
            f"values, but the call's conditioning is {given}."
        )
    return conditioning[None, :] + embedding.astype(conditioning.dtype)


def _widen(leaf: Array) -> Array:
    narrow = jnp.issubdtype(leaf.dtype, jnp.floating) and jnp.finfo(leaf.dtype).bits < 32
    return leaf.astype(jnp.float32) if narrow else leaf
