from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from ._remat import Remat, recompute
from ._stack import apart

State = Float[Array, "tokens dim"]
Block = Callable[[State, Int[Array, ""]], State]


class PreparedLayer(eqx.Module):
    """One layer with all the work done that does not depend on the loop.

    What all loops share is stored in float32, whatever the tokens' dtype, and cast inside each loop. The backward pass
    then sums the gradients over the loops in float32. Summed in bfloat16, small gradients vanish beside a large sum.
    Casting costs one read of the weights; XLA moves it out of the loop, and then holds a copy in the compute dtype.
    """

    layer: Any
    modulation: PyTree[Array]
    modulation_dtypes: tuple[DTypeLike, ...] = eqx.field(static=True)

    def __init__(self, layer: Any, conditioning: PyTree[Array], dtype: DTypeLike):
        """**Arguments:** `layer`; `conditioning`: of the call, or `None`; `dtype`: of the tokens."""
        modulation = conditioning
        if conditioning is not None and hasattr(layer, "condition"):
            modulation = cast(layer, dtype).condition(conditioning)
        self.layer = layer
        self.modulation = jax.tree.map(_widen, modulation)
        self.modulation_dtypes = tuple(leaf.dtype for leaf in jax.tree.leaves(modulation))

    def __call__(self, state: State, key: PRNGKeyArray | None) -> State:
        """The state after the layer."""
        leaves, structure = jax.tree.flatten(self.modulation)
        leaves = [leaf.astype(dtype) for leaf, dtype in zip(leaves, self.modulation_dtypes, strict=True)]
        arguments = (jax.tree.unflatten(structure, leaves),) if leaves else ()
        options = {} if key is None else {"key": key}
        return cast(self.layer, state.dtype)(state, *arguments, **options)


def make_block(
    layers: PyTree[Array] | Sequence[Any],
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

    **Arguments:** `layers`, `scan_layers`, `remat`: the trunk's; `conditioning`, `key`: of the call; `dtype`: of the
    tokens; `single`: whether the block runs once, and not in a loop.
    """
    by_layer = remat in (Remat.LAYER, Remat.ELEMENTWISE)
    # What is recomputed must be inside a loop (see `recompute`); where the loops are none, that is a scan of layers.
    scan_layers = (scan_layers or (single and by_layer)) and not isinstance(layers, tuple)

    def apply(layer: PreparedLayer, state: State, loop: Int[Array, ""], index: int | Int[Array, ""]) -> State:
        # The loop matters to dropout alone.
        layer_key = None if key is None else jax.random.fold_in(jax.random.fold_in(key, loop), index)
        with jax.named_scope(f"layer_{index}" if isinstance(index, int) else "layer"):
            return layer(state, layer_key)

    in_loop = not single or (scan_layers and num_layers > 1)
    if by_layer:
        apply = recompute(apply, in_loop=in_loop, store_products=remat == Remat.ELEMENTWISE)
    make = _scanned if scan_layers else _unrolled
    block = make(layers, conditioning, num_layers, dtype, apply)
    return recompute(block, in_loop=not single) if remat == Remat.LOOP else block


def _unrolled(layers, conditioning, num_layers, dtype, apply) -> Block:
    # Sliced here, outside the loop, so that neither the slices nor their gradients' scatters repeat in it.
    separate = layers if isinstance(layers, tuple) else apart(layers, num_layers)
    prepared = [PreparedLayer(layer, conditioning, dtype) for layer in separate]

    def block(state, loop):
        for index, layer in enumerate(prepared):
            state = apply(layer, state, loop, index)
        return state

    return block


def _scanned(layers, conditioning, num_layers, dtype, apply) -> Block:
    prepare = eqx.filter_vmap(PreparedLayer, in_axes=(eqx.if_array(0), None, None))
    stacked, static = eqx.partition(prepare(layers, conditioning, dtype), eqx.is_array)

    def block(state, loop):
        def body(state, part):
            layer, index = part
            return apply(eqx.combine(layer, static), state, loop, index), None

        return jax.lax.scan(body, state, (stacked, jnp.arange(num_layers)))[0]

    return block


def cast(tree: Any, dtype: DTypeLike) -> Any:
    """A layer with its floating-point arrays in another dtype."""
    return jax.tree.map(lambda leaf: leaf.astype(dtype) if eqx.is_inexact_array(leaf) else leaf, tree)


def _widen(leaf: Array) -> Array:
    narrow = jnp.issubdtype(leaf.dtype, jnp.floating) and jnp.finfo(leaf.dtype).bits < 32
    return leaf.astype(jnp.float32) if narrow else leaf
