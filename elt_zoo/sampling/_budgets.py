import math
from collections.abc import Sequence
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Int

from .._checks import checked
from ._guidance import AbstractGuidance

Count = int | np.generic | Array | np.ndarray
"""Loops of one branch: an integer, an integer scalar array, or an integer array with one count per sampling step."""


class LoopBudget(eqx.Module):
    """Different loops for the two branches of guidance: spend them where the class is, save them where it is not.

    Each is what a sampler takes as `loops`: an integer (compiled for that count), an integer scalar array (one
    compilation serves every count), or an integer array with one count per sampling step. The branches are evaluated
    one after the other, unless both are the same integer. Give a plain count where both have the same: the two then
    share one call.
    """

    conditional: Count
    unconditional: Count


Loops = Count | LoopBudget


@checked
def constant_budget(loops: int | np.integer, steps: int | np.integer) -> Int[Array, " steps"]:
    """The same count at each step, as an array: unlike a Python int it shares a compiled sampler with every other
    budget.

    **Arguments:** `loops`, `steps`: at least 1. **Returns:** one count per step.

    **Raises:** `ValueError` below 1.
    """
    return linear_budget(loops, loops, steps)


@checked
def linear_budget(start: int | np.integer, stop: int | np.integer, steps: int | np.integer) -> Int[Array, " steps"]:
    """Counts that go linearly from `start` at the first step to `stop` at the last, rounded (halves up).

    **Arguments:** `start`, `stop`, `steps`: at least 1. **Returns:** one count per step.

    **Raises:** `ValueError` below 1.
    """
    if steps < 1:
        raise ValueError(f"`linear_budget(steps={steps})` needs at least one step.")
    if min(start, stop) < 1:
        raise ValueError(f"`linear_budget({start}, {stop})` draws nothing with 0 loops: use at least one.")
    return table_budget([math.floor(value + 0.5) for value in np.linspace(start, stop, steps).tolist()])


@checked
def table_budget(counts: Sequence[int | np.integer] | np.ndarray) -> Int[Array, " steps"]:
    """Any counts, one per sampling step, as an array.

    **Arguments:** `counts`: each at least 1, or 0 after the first: such a step takes over what the loops of the last
    one added, see [`CachedPredict`][elt_zoo.models.CachedPredict]. **Returns:** them as int32.

    **Raises:** `ValueError` for none, a negative one, or 0 at the first step; `TypeError` for anything but integers.
    """
    if len(counts) == 0:
        raise ValueError("`table_budget([])` is empty: give one loop count per sampling step.")
    if any(isinstance(count, bool) or not isinstance(count, int | np.integer) for count in counts):
        raise TypeError(f"`table_budget({list(counts)})` holds what is no integer: give numbers of loops.")
    if min(counts) < 0 or counts[0] < 1:
        raise ValueError(f"A budget starts with at least one loop, and none is negative. Got {list(counts)}.")
    return jnp.asarray(counts, jnp.int32)


@checked
def total_loops(loops: Loops, steps: int, *, guidance: AbstractGuidance | None = None) -> int:
    """The loops that one sample takes: summed over the steps, and over both branches where guidance runs both.

    **Arguments:** `loops`, `steps` and `guidance` as the sampler gets them. The values must be known (not traced).

    **Returns:** the number of loops, the steps that an interval of guidance leaves out not counted.

    **Raises:** what the sampler raises for such `loops`.
    """
    conditional, unconditional = resolve_loops(loops, steps=steps, guidance=guidance, cached=True)
    total = int(_per_step(conditional, steps).sum())
    if guidance is not None:
        unconditional = conditional if unconditional is None else unconditional
        total += int(_per_step(unconditional, steps)[guidance.guided(steps)].sum())
    return total


@checked
def average_loops(loops: Loops, steps: int, *, guidance: AbstractGuidance | None = None) -> float:
    """The mean number of loops per evaluation of the network: [`total_loops`][elt_zoo.sampling.total_loops] over the
    evaluations.

    **Arguments**, **Raises:** as `total_loops`. **Returns:** the mean.
    """
    evaluations = steps if guidance is None else steps + int(guidance.guided(steps).sum())
    return total_loops(loops, steps, guidance=guidance) / evaluations


class BranchLoops(NamedTuple):
    """Loops after `resolve_loops`: of each branch an int, or an int32 array with one count per step."""

    conditional: int | Array
    unconditional: int | Array | None
    """`None`: the same as of the conditional branch, so that one call can serve both."""

    def at(self, step: Int[Array, ""]) -> "BranchLoops":
        """The loops of one step: of each branch an int, or a scalar array."""
        return jax.tree.map(lambda count: count if isinstance(count, int) else count[step], self)


def resolve_loops(loops: Loops, *, steps: int, guidance: AbstractGuidance | None, cached: bool = False) -> BranchLoops:
    """Checks `loops` and brings it to one form. Traced counts cannot be checked.

    **Arguments:** `cached`: whether a step may have no loops.
    """
    where = np.ones(steps, bool) if guidance is None else guidance.guided(steps)
    if not isinstance(loops, LoopBudget):
        count = _resolve_count(loops, "loops", steps, cached)
        _check_first(count, "loops", where)
        return BranchLoops(count, None)
    if guidance is None:
        raise ValueError(
            "`loops` has an unconditional budget, but this sampler has no guidance and never runs that branch. Pass "
            "the conditional count alone, or set `guidance`."
        )
    conditional = _resolve_count(loops.conditional, "loops.conditional", steps, cached)
    unconditional = _resolve_count(loops.unconditional, "loops.unconditional", steps, cached)
    _check_first(unconditional, "loops.unconditional", where)
    if isinstance(conditional, int) and isinstance(unconditional, int) and conditional == unconditional:
        return BranchLoops(conditional, None)
    return BranchLoops(conditional, unconditional)


def _check_first(count: int | Array, name: str, where: np.ndarray) -> None:
    """Refuses counts without a loop at the first step of the unconditional branch, which knows nothing before it."""
    if isinstance(count, int | Tracer) or not where.any():
        return
    first = int(np.flatnonzero(where)[0])
    if np.asarray(count)[first] < 1:
        raise ValueError(
            f"`{name}` has no loop at step {first}, the first with guidance: the unconditional branch has nothing to "
            f"take over there. Got {np.asarray(count).tolist()}."
        )


def _resolve_count(count: Count, name: str, steps: int, cached: bool) -> int | Array:
    if isinstance(count, bool | np.bool_):
        raise TypeError(f"`{name}={count}` is a bool: pass a number of loops.")
    if isinstance(count, int | np.integer):
        if count < 1:
            raise ValueError(f"`{name}={count}` draws nothing: use at least one loop.")
        return int(count)
    if not jnp.issubdtype(count.dtype, jnp.integer):
        raise TypeError(f"`{name}` has dtype {count.dtype}: loop counts are integers.")
    if count.shape not in ((), (steps,)):
        raise ValueError(
            f"`{name}` has shape {count.shape}, but this sampler takes {steps} steps: pass one count, or an array of "
            f"shape ({steps},) with one per step."
        )
    if not isinstance(count, Tracer):
        known = np.asarray(count)
        if known.min() < 0 or known.flat[0] < 1:
            raise ValueError(f"`{name}` starts with at least one loop, and none is negative. Got {known.tolist()}.")
        if not cached and known.min() < 1:
            raise ValueError(
                f"`{name}` asks for no loop at a step, which needs a `predict` that remembers the step before, such as "
                f"`CachedPredict(model)`. Got {known.tolist()}."
            )
    return jnp.broadcast_to(jnp.asarray(count).astype(jnp.int32), (steps,))


def _per_step(count: int | Array, steps: int) -> np.ndarray:
    return np.broadcast_to(np.asarray(count), (steps,))
