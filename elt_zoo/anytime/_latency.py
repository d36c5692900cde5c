import dataclasses
import math
import time
from collections.abc import Callable, Sequence

import jax
import numpy as np

from ..generator import Generator
from ..sampling import table_budget
from ._allocate import cached_steps, spread_out

_TAIL = 0.995
_IN_A_ROW = 5
"""Calls of one way to sample before the next has its turn: like those of a user, most of them find warm caches."""

_FEWEST, _LONGEST = 15, 5.0
"""Timed calls of each way, and seconds of all."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Timing:
    """Timed calls of one way to sample.

    **Fields:** `steps`: sampling steps; `loops`: their loops, summed over the steps; `seconds`: of every call.

    **Raises:** `ValueError` for no calls, times that are not positive numbers, no steps or no loops.
    """

    steps: int
    loops: int
    seconds: tuple[float, ...]

    def __post_init__(self):
        if min(self.steps, self.loops) < 1:
            raise ValueError(f"`Timing(steps={self.steps}, loops={self.loops})` needs at least one step and one loop.")
        if not self.seconds or not all(0 < seconds < math.inf for seconds in self.seconds):
            raise ValueError(f"`Timing(seconds={self.seconds})` needs the seconds of one call or more, all positive.")

    @property
    def median(self) -> float:
        """The median call, in seconds."""
        return float(np.median(self.seconds))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Latency:
    r"""The time of one call that samples one batch, in seconds:

    $$\text{fixed} + \text{per\_loop} \cdot \text{loops} + \text{per\_step} \cdot \text{steps},$$

    with the loops summed over the steps. Under guidance every loop and every step counts both branches.

    **Fields:**

    - `batch`: samples of a call.
    - `fixed`: what every call takes, decoding to pixels included.
    - `per_loop`: a loop of the trunk, of all branches.
    - `per_step`: the rest of a step: embedding, head and the sampler's update.
    - `error`: the median relative error of the timings that it was fitted to.
    - `tail`: the 99.5th percentile of a call's time over the predicted one.
    """

    batch: int
    fixed: float
    per_loop: float
    per_step: float
    error: float
    tail: float

    def __post_init__(self):
        if self.batch < 1:
            raise ValueError(f"`Latency(batch={self.batch})` must be at least 1.")
        for name in ("fixed", "per_loop", "per_step", "error", "tail"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"`Latency({name}={getattr(self, name)})` must be a number of at least 0.")

    def predict(self, *, steps: int, loops: int) -> float:
        """The median time of a call, in seconds.

        **Arguments:** `steps`: sampling steps; `loops`: summed over the steps.
        """
        return self.fixed + self.per_loop * loops + self.per_step * steps

    def __str__(self) -> str:
        fixed, loop, step = (f"{1e3 * part:.3g} ms" for part in (self.fixed, self.per_loop, self.per_step))
        return (
            f"{self.batch} at a time: {fixed} + {step} for each step + {loop} for each loop "
            f"(median error {self.error:.1%}; one call in 200 takes over {self.tail:.2f} times as long)"
        )


def fit_latency(timings: Sequence[Timing], *, batch: int) -> Latency:
    """Fits the time of a call to timings: the three non-negative terms with the least squared relative error.

    **Arguments:** `timings`: of different steps and loops, about six; `batch`: samples of a call.

    **Returns:** the [`Latency`][elt_zoo.anytime.Latency].

    **Raises:** `ValueError` for fewer than two timings.
    """
    from scipy.optimize import nnls  # late, as it is slow to import

    if len(timings) < 2:
        raise ValueError(f"`fit_latency` got {len(timings)} timing(s): give those of two ways to sample, or more.")
    medians = np.asarray([timing.median for timing in timings])
    terms = np.asarray([(1.0, timing.loops, timing.steps) for timing in timings])
    solution, _ = nnls(terms / medians[:, None], np.ones(len(medians)))
    fixed, per_loop, per_step = solution.tolist()
    predicted = terms @ solution
    ratios = [np.asarray(timing.seconds) / mean for timing, mean in zip(timings, predicted, strict=True)]
    return Latency(
        batch=batch,
        fixed=fixed,
        per_loop=per_loop,
        per_step=per_step,
        error=float(np.median(np.abs(predicted / medians - 1.0))),
        tail=max(float(np.quantile(np.concatenate(ratios), _TAIL)), 1.0),
    )


def measure_latency(
    generator: Generator,
    *,
    batch: int = 1,
    steps: Sequence[int],
    every: int = 1,
    guidance: float | None = None,
    repeats: int = 60,
    own_keys: bool = False,
    clock: Callable[[], float] = time.perf_counter,
) -> Latency:
    """Times a generator on the first device, and fits the time of a call.

    Each number of steps is timed with one loop and with L_max (with two, where L_max is one). They take turns of a few
    calls, so that a machine that is busy for a while slows all of them. Loops are traced: each number of steps is one
    compiled program, which later calls of the same batch use again.

    **Arguments:**

    - `generator`: what to time.
    - `batch`: samples of a call.
    - `steps`: numbers of sampling steps, about three.
    - `every`: all but the smallest of them are also timed with loops at every n-th step alone, unless n is 1.
    - `guidance`: the scale; default as the generator is sampled.
    - `repeats`: timed calls of each; fewer, but fifteen at least, where all together would take longer than five
      seconds.
    - `own_keys`: time calls with a key for each label, which are other programs.
    - `clock`: seconds, as `time.perf_counter` tells them.

    **Returns:** the [`Latency`][elt_zoo.anytime.Latency].

    **Raises:** `ValueError` for counts below 1, or steps that the sampler cannot take.
    """
    timings = time_calls(
        generator,
        batch=batch,
        steps=steps,
        every=every,
        guidance=guidance,
        repeats=repeats,
        own_keys=own_keys,
        clock=clock,
    )
    return fit_latency(timings, batch=batch)


def time_calls(
    generator: Generator,
    *,
    batch: int,
    steps: Sequence[int],
    every: int,
    guidance: float | None,
    repeats: int,
    own_keys: bool = False,
    clock: Callable[[], float] = time.perf_counter,
) -> list[Timing]:
    """The timings of [`measure_latency`][elt_zoo.anytime.measure_latency], which says what the arguments are."""
    if min(batch, repeats, every, len(steps), *steps) < 1:
        raise ValueError(
            f"`measure_latency(batch={batch}, steps={tuple(steps)}, every={every}, repeats={repeats})`: each must be "
            "at least 1."
        )
    labels = np.arange(batch) % generator.config.num_classes
    kinds = [(count, 1) for count in steps] + [(count, every) for count in cached_steps(steps, every)]
    budgets = [
        spread_out((loops,) * count, count, apart)
        for count, apart in kinds
        for loops in (1, max(generator.config.max_loops, 2))
    ]

    def seconds(loops: tuple[int, ...]) -> float:
        started = clock()
        budget, key = table_budget(loops), jax.random.key(0)  # as every call of a user makes them
        key = jax.random.split(key, batch) if own_keys else key
        generator.sample(labels, key=key, loops=budget, steps=len(loops), guidance=guidance, batch_size=batch)
        return clock() - started

    for loops in budgets:  # compiles
        seconds(loops)
    once = sum(map(seconds, budgets))
    repeats = min(repeats, max(_FEWEST, math.floor(_LONGEST / once)))
    times: dict[tuple[int, ...], list[float]] = {loops: [] for loops in budgets}
    for turn in range(0, repeats, _IN_A_ROW):
        for loops in budgets:
            times[loops] += [seconds(loops) for _ in range(min(_IN_A_ROW, repeats - turn))]
    return [Timing(steps=len(loops), loops=sum(loops), seconds=tuple(took)) for loops, took in times.items()]
