import functools
from collections.abc import Callable
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap
from jaxtyping import Array, Bool, Int, PyTree

_Carry = TypeVar("_Carry", bound=PyTree[Array])
_SIZES = 4
"""Sub-batches smaller than the batch. Each is compiled."""


def while_any(going: Callable[[_Carry], Bool[Array, ""]], advance: Callable[[_Carry], _Carry], start: _Carry) -> _Carry:
    """`jax.lax.while_loop(going, advance, start)`, which under `jax.vmap` runs only the examples whose loop goes on.

    A `while_loop` under `jax.vmap` runs the whole batch until its last example is done. Here each step gathers those
    that go on into sub-batches of fixed sizes, powers of two that add up to their number. In batches of more than 16
    the number is first rounded up to a multiple of the smallest size, an eighth of the largest.
    """
    # What the two functions close over may differ between examples, so it becomes an argument.
    functions = eqx.filter_closure_convert(going, start), eqx.filter_closure_convert(advance, start)
    held, static = eqx.partition(functions, eqx.is_array)

    @custom_vmap
    def run(held, start):
        going, advance = eqx.combine(held, static)
        return jax.lax.while_loop(lambda carry: going(carry), lambda carry: advance(carry), start)

    @run.def_vmap
    def run_batch(batch, is_batched, held, start):
        def whole(leaf, batched):
            return leaf if batched else jnp.broadcast_to(leaf, (batch, *jnp.shape(leaf)))

        axes = jax.tree.map(lambda batched: 0 if batched else None, is_batched[0])
        carry = _run_batch(_Batched(held, axes, static), jax.tree.map(whole, start, is_batched[1]))
        return carry, jax.tree.map(lambda _: True, carry)

    return run(held, start)


class _Batched(eqx.Module):
    """The two functions of a loop, for a batch."""

    held: PyTree[Array]
    """The arrays in them."""
    axes: PyTree = eqx.field(static=True)
    """0 for those with an entry per example."""
    functions: Any
    """What is left without the arrays."""

    def at(self, examples: Int[Array, " some"]) -> "_Batched":
        """For some of the examples."""

        def pick(leaf, axis):
            return leaf if axis is None else leaf[examples]

        leaves, structure = jax.tree.flatten(self.held)
        axes = structure.flatten_up_to(self.axes)
        return _Batched(structure.unflatten(map(pick, leaves, axes)), self.axes, self.functions)

    def going(self, carry: PyTree[Array]) -> Bool[Array, " batch"]:
        return self._call(0, carry)

    def advance(self, carry: _Carry, goes: Bool[Array, " batch"]) -> _Carry:
        """The carries after a step, and as they were where the loop does not go on."""

        def keep(old, new):
            return jnp.where(jnp.reshape(goes, (-1,) + (1,) * (old.ndim - 1)), new, old)

        return jax.tree.map(keep, carry, self._call(1, carry))

    def _call(self, which: int, carry: PyTree) -> Any:
        def call(held, carry):
            return eqx.combine(held, self.functions)[which](carry)

        return jax.vmap(call, in_axes=(self.axes, 0))(self.held, carry)


def _run_batch(loop: _Batched, start: PyTree[Array]) -> PyTree[Array]:
    batch = len(jax.tree.leaves(start)[0])
    sizes = [2**power for power in range(batch.bit_length()) if 2**power < batch][-_SIZES:]

    def some(size, carry, goes, order, first):
        examples = jax.lax.dynamic_slice(order, (first,), (size,))
        taken = loop.at(examples).advance(jax.tree.map(lambda leaf: leaf[examples], carry), goes[examples])
        return jax.tree.map(lambda all, part: all.at[examples].set(part), carry, taken)

    def step(carry, goes, number):
        order = jnp.argsort(~goes, stable=True)  # those that go on come first
        first = jnp.zeros_like(number)
        for size in reversed(sizes):
            now = number & size > 0
            carry = jax.lax.cond(now, functools.partial(some, size), lambda carry, *_: carry, carry, goes, order, first)
            first = first + jnp.where(now, size, 0)
        return carry

    def body(both):
        carry, goes = both
        smallest = sizes[0] if sizes else 1
        number = (jnp.sum(goes) + smallest - 1) // smallest * smallest
        carry = jax.lax.cond(
            number < batch, step, lambda carry, goes, _: loop.advance(carry, goes), carry, goes, number
        )
        return carry, goes & loop.going(carry)

    return jax.lax.while_loop(lambda both: jnp.any(both[1]), body, (start, loop.going(start)))[0]
