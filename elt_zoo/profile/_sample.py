import dataclasses
import statistics
import time
from collections.abc import Callable

import jax
from jaxtyping import Array, PyTree

from .._checks import checked
from ..families import ModelConfig
from ..sampling import AbstractSampler, Loops, total_loops
from ._profile import FLOPS, profile
from ._text import count, operations


@dataclasses.dataclass(frozen=True, kw_only=True)
class SampleTime:
    """The time per sample, as [`time_samples`][elt_zoo.profile.time_samples] measures it.

    **Fields:** `median`, `low`, `high`: seconds per sample, with the quartiles; `compilation`: seconds that the first
    call took beyond the median; `samples`: samples per call; `repeats`: timed calls; `device`: where they ran.
    """

    median: float
    low: float
    high: float
    compilation: float
    samples: int
    repeats: int
    device: str

    def __str__(self) -> str:
        milliseconds = [f"{1e3 * seconds:.3g}" for seconds in (self.median, self.low, self.high)]
        return "{} ms (quartiles {} to {}), {} at a time on {}".format(*milliseconds, self.samples, self.device)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SampleCompute:
    """The compute of one sample, to report beside its quality. `str` of it is a table.

    **Fields:**

    - `parameters`: unique parameters, as stored.
    - `effective_parameters`: parameters of a model of equal compute whose layers are all unique.
    - `evaluations`: evaluations of the network per sample, of both branches.
    - `loops`: loops of the trunk per sample, over all evaluations.
    - `macs`: multiply-accumulates of the matrix products per sample, without the sampler's own arithmetic.
    - `time`: the measured time, or `None`.
    """

    parameters: int
    effective_parameters: int
    evaluations: int
    loops: int
    macs: int
    time: SampleTime | None = None

    @property
    def flops(self) -> int:
        """Floating-point operations per sample, in the convention [`FLOPS`][elt_zoo.profile.FLOPS]."""
        return 2 * self.macs

    def __str__(self) -> str:
        rows = [
            ("unique parameters", count(self.parameters)),
            ("effective parameters", count(self.effective_parameters)),
            ("evaluations per sample", str(self.evaluations)),
            ("loops per sample", str(self.loops)),
            ("operations per sample", f"{operations(self.macs)}, {FLOPS}"),
            ("time per sample", "not measured" if self.time is None else str(self.time)),
        ]
        width = max(len(name) for name, _ in rows)
        return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)


@checked
def sample_compute(
    config: ModelConfig,
    sampler: AbstractSampler,
    *,
    loops: Loops,
    time: SampleTime | None = None,
) -> SampleCompute:
    """Counts the compute of one sample from the model's config and the sampler. Nothing is built or run.

    It counts the loops that a budget spends and the steps that are guided.

    **Arguments:** `config`: the model; `sampler`: its sampler; `loops`: as for the sampler; `time`: from
    [`time_samples`][elt_zoo.profile.time_samples], to keep with the rest.

    **Returns:** a [`SampleCompute`][elt_zoo.profile.SampleCompute].

    **Raises:** the sampler's errors for `loops` that it cannot take.
    """
    costs = profile(config, loops=1)
    evaluations = total_loops(1, sampler.steps, guidance=sampler.guidance)
    spent = total_loops(loops, sampler.steps, guidance=sampler.guidance)
    return SampleCompute(
        parameters=costs.parameters,
        effective_parameters=costs.parameters + round(costs.loop_parameters * (spent - evaluations) / evaluations),
        evaluations=evaluations,
        loops=spent,
        macs=evaluations * (costs.forward_macs - costs.loop.macs) + spent * costs.loop.macs,
        time=time,
    )


def time_samples(draw: Callable[[], PyTree[Array]], *, samples: int, repeats: int = 10) -> SampleTime:
    """Measures the wall time per sample. The first call compiles, the second warms up, and `repeats` further calls are
    timed, each until its result is ready.

    **Arguments:** `draw`: returns `samples` samples, such as `lambda: sampler(predict, labels, loops=4, key=key)`;
    `samples`: samples per call; `repeats`: timed calls.

    **Returns:** the median and the quartiles, in seconds per sample.

    **Raises:** `ValueError` if a count is below 1.
    """
    if min(samples, repeats) < 1:
        raise ValueError(f"`time_samples(samples={samples}, repeats={repeats})`: each must be at least 1.")
    first = _seconds(draw)
    _seconds(draw)
    seconds = sorted(_seconds(draw) for _ in range(repeats))
    median = statistics.median(seconds)
    return SampleTime(
        median=median / samples,
        low=seconds[repeats // 4] / samples,
        high=seconds[(3 * repeats) // 4] / samples,
        compilation=max(first - median, 0.0),
        samples=samples,
        repeats=repeats,
        device=jax.devices()[0].device_kind,
    )


def _seconds(draw: Callable[[], PyTree[Array]]) -> float:
    start = time.perf_counter()
    jax.block_until_ready(draw())
    return time.perf_counter() - start
