import dataclasses
import functools
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..generator import Generator, load
from ..storage import from_json, read_json, write_json
from ._allocate import Allocations
from ._conditions import Conditions
from ._data import PlanningData, digits_data
from ._latency import Latency, Timing, fit_latency, time_calls
from ._plan import Plan
from ._quality import Quality, StepQuality, measure_quality

_FORMAT = 2
_DIGITS = "digits"


class _Way(NamedTuple):
    """One way to sample: the best loops of so many in total, over the steps."""

    by_steps: StepQuality
    allocations: Allocations
    total: int
    quality: float
    share: float


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Planner:
    """Chooses the steps and the loops of each step that make the best samples in a given time.

    It is made by [`make_planner`][elt_zoo.anytime.make_planner], which measures, and read by
    [`load_planner`][elt_zoo.anytime.load_planner]. A generator that holds it samples by the clock:

        generator = dataclasses.replace(generator, planner=planner)
        generator.sample(labels, milliseconds=40, key=key)

    All plans of a batch size use the programs that were compiled for the measurements, one for each number of steps.

    **Fields:**

    - `generator`: what it plans for.
    - `guidance`: the scale of its plans.
    - `latencies`: the time of a call, for each batch size.
    - `quality`: how good samples are, for any steps and loops.
    """

    generator: Generator
    guidance: float
    latencies: tuple[Latency, ...]
    quality: Quality

    @property
    def every(self) -> int:
        """n, where it also plans to run the loops at every n-th step alone; 1 where it does not."""
        return max(by_steps.every for by_steps in self.quality.by_steps)

    @property
    def batches(self) -> tuple[int, ...]:
        """The batch sizes whose time is known, rising."""
        return tuple(sorted(latency.batch for latency in self.latencies))

    def latency(self, batch: int) -> Latency:
        """The time of a call that samples one batch.

        **Raises:** `ValueError` for a batch size that was not measured.
        """
        for latency in self.latencies:
            if latency.batch == batch:
                return latency
        raise ValueError(
            f"`batch={batch}` was not measured, only {', '.join(map(str, self.batches))}: use one of these, or "
            f"`make_planner(generator, batches=({batch},))`."
        )

    def plan(self, milliseconds: float, *, batch: int = 1, headroom: float | None = None) -> Plan:
        """The best way to sample one batch in a given time.

        **Arguments:**

        - `milliseconds`: for the call, decoding to pixels included.
        - `batch`: samples, one of `batches`.
        - `headroom`: how many times the predicted median must fit into the budget; default as many as 199 calls of
          200 were measured to take at most. 1 plans by the median.

        **Returns:** the [`Plan`][elt_zoo.anytime.Plan]; of equally good ones the fastest.

        **Raises:** `ValueError` for a budget that is no positive number or below the fastest plan, which it names, a
        batch size that was not measured, or a headroom below 1.
        """
        if not 0 < milliseconds < math.inf:
            raise ValueError(f"`plan(milliseconds={milliseconds})` must be a positive number of milliseconds.")
        plans = self._plans(batch, headroom)
        within = [(late, quality, way) for late, quality, way in plans if late <= milliseconds]
        if not within:
            fastest = self._plan(min(plans)[2], batch, headroom)
            raise ValueError(
                f"`plan(milliseconds={milliseconds:g}, batch={batch})` is below the fastest plan, {fastest}. Give more "
                "time, or plan with fewer steps."
            )
        best = min(within, key=lambda each: (each[1], each[0]))
        return self._plan(best[2], batch, headroom)

    def frontier(self, *, batch: int = 1, headroom: float | None = None) -> tuple[Plan, ...]:
        """Every plan that no other beats in both time and quality, from the fastest to the best.

        **Arguments**, **Raises:** as for `plan`.
        """
        front, best = [], math.inf
        for _, quality, way in sorted(self._plans(batch, headroom), key=lambda each: each[:2]):
            if quality < best:
                front.append(self._plan(way, batch, headroom))
                best = quality
        return tuple(front)

    def save(self, path: str | os.PathLike) -> Path:
        """Writes what was measured, and what it holds for, to a JSON file: beside the model, for instance.

        **Returns:** the path. **Raises:** `OSError` in one line if it cannot be written.
        """
        content = _Measured(
            format=_FORMAT,
            conditions=Conditions.of(self.generator),
            guidance=self.guidance,
            latencies=self.latencies,
            quality=self.quality,
        )
        write_json(path, dataclasses.asdict(content))
        return Path(path)

    def check(self, generator: Generator) -> None:
        """**Raises:** `ValueError` if a generator has another model, tokenizer, config or settings than this one's."""
        mine = self.generator
        same = generator.model is mine.model and generator.tokenizer is mine.tokenizer
        if not same or (generator.config, generator.settings) != (mine.config, mine.settings):
            raise ValueError(
                "The planner was made for another generator: its model, tokenizer, config or settings differ. Use "
                "`make_planner(generator)`, or `dataclasses.replace(generator, planner=None, ...)`."
            )

    def _plans(self, batch: int, headroom: float | None) -> list[tuple[float, float, int]]:
        """For every way the time of a late call in milliseconds, the quality, and the way's number."""
        latency = self.latency(batch)
        scale = 1e3 * _headroom(latency, headroom)
        return [
            (scale * latency.predict(steps=way.by_steps.steps, loops=way.total), way.quality, number)
            for number, way in enumerate(self._ways)
        ]

    def _plan(self, number: int, batch: int, headroom: float | None) -> Plan:
        way, latency = self._ways[number], self.latency(batch)
        milliseconds = 1e3 * latency.predict(steps=way.by_steps.steps, loops=way.total)
        error = self.quality.error
        return Plan(
            batch=batch,
            steps=way.by_steps.steps,
            loops=way.by_steps.at_steps(way.allocations.loops(way.total)),
            guidance=self.guidance,
            milliseconds=milliseconds,
            late_milliseconds=milliseconds * _headroom(latency, headroom),
            quality=way.quality,
            # Of a point between two that were measured apart.
            error=None if error is None else error * math.hypot(way.share, 1.0 - way.share),
            measure=self.quality.measure,
        )

    @functools.cached_property
    def _ways(self) -> tuple[_Way, ...]:
        return tuple(way for by_steps in self.quality.by_steps for way in _ways(by_steps))


def make_planner(
    generator: Generator | str | os.PathLike,
    data: PlanningData | None = None,
    *,
    batches: Sequence[int] = (1,),
    steps: Sequence[int] | None = None,
    every: int = 3,
    guidance: float | None = None,
    samples: int = 500,
    sets: int = 2,
    repeats: int = 40,
    seed: int = 0,
) -> Planner:
    """Measures how long a generator takes on this machine and how good its samples are, for any steps and loops.

    **Arguments:**

    - `generator`: what to plan for, or what [`load`][elt_zoo.load] takes.
    - `data`: held-out examples and a distance. A generator of digits has its own: the held-out digits, and the digits
      Fréchet distance.
    - `batches`: the batch sizes to plan for.
    - `steps`: the numbers of sampling steps to choose from, each a compiled program; default those of the generator's
      settings, half and a quarter of them; without a distance those of the settings alone.
    - `every`: n, to also plan loops at every n-th step alone, but for the smallest number of steps; 1 never does.
    - `guidance`: the scale; default as the generator is sampled.
    - `samples`, `sets`, `seed`: as for [`measure_quality`][elt_zoo.anytime.measure_quality].
    - `repeats`: as for [`measure_latency`][elt_zoo.anytime.measure_latency]; calls are timed at the beginning and once
      more at the end.

    **Returns:** the [`Planner`][elt_zoo.anytime.Planner].

    **Raises:** `ValueError` without data where the generator is not one of digits, and what the measurements raise.
    """
    generator = generator if isinstance(generator, Generator) else load(generator)
    if data is None:
        if (name := generator.metadata.get("data")) != _DIGITS:
            raise ValueError(
                f"`make_planner` needs held-out data of what the model was trained on ({name or 'unknown'}): give "
                "`data=PlanningData(examples=..., labels=...)`, with a distance to choose the steps as well."
            )
        data = digits_data(generator)
    if steps is None:
        most = generator.settings.steps
        steps = (most,) if data.distance is None else sorted({max(round(most / part), 1) for part in (1, 2, 4)})
    steps, batches = tuple(dict.fromkeys(steps)), tuple(dict.fromkeys(batches))
    for count in steps:  # refuses what the sampler cannot take before anything takes long
        generator.sampler(steps=count, guidance=guidance)
    scale = generator.settings.guidance if guidance is None else float(guidance)
    apart = 1 if data.distance is None else every

    def time_all() -> list[list[Timing]]:
        options: dict[str, Any] = {"steps": steps, "every": apart, "guidance": guidance, "repeats": repeats}
        return [time_calls(generator, batch=batch, **options) for batch in batches]

    # Before and after the rest: a machine is not as fast at one time as at another.
    before = time_all()
    quality = measure_quality(
        generator, data, steps=steps, every=every, guidance=guidance, samples=samples, sets=sets, seed=seed
    )
    timings = zip(batches, before, time_all(), strict=True)
    latencies = tuple(fit_latency([*first, *second], batch=batch) for batch, first, second in timings)
    return Planner(generator=generator, guidance=scale, latencies=latencies, quality=quality)


def plan(
    generator: Generator | str | os.PathLike,
    milliseconds: float,
    data: PlanningData | None = None,
    *,
    batch: int = 1,
    steps: Sequence[int] | None = None,
    guidance: float | None = None,
) -> Plan:
    """The best way to sample one batch in a given time on this machine, measured on the spot. To plan more than once,
    keep the planner of [`make_planner`][elt_zoo.anytime.make_planner].

    **Arguments:** `milliseconds`: for the call; `batch`: samples; the others as for `make_planner`.

    **Returns:** the [`Plan`][elt_zoo.anytime.Plan].

    **Raises:** `ValueError` as `make_planner` and [`Planner.plan`][elt_zoo.anytime.Planner].
    """
    if not 0 < milliseconds < math.inf:  # before anything takes long
        raise ValueError(f"`plan(milliseconds={milliseconds})` must be a positive number of milliseconds.")
    planner = make_planner(generator, data, batches=(batch,), steps=steps, guidance=guidance)
    return planner.plan(milliseconds, batch=batch)


def load_planner(path: str | os.PathLike, generator: Generator) -> Planner:
    """Reads what [`Planner.save`][elt_zoo.anytime.Planner] wrote.

    **Arguments:** `path`: of the file; `generator`: the one that it was measured for.

    **Returns:** the [`Planner`][elt_zoo.anytime.Planner].

    **Raises:** `ValueError` in one line for a damaged file, or one of another machine, device, precision or model;
    `OSError` if it cannot be read.
    """
    content = read_json(path)
    if isinstance(content, dict) and content.get("format") != _FORMAT:
        raise ValueError(
            f"{path} has the format {content.get('format')!r}, and this version of elt_zoo reads {_FORMAT}: measure "
            "again with `make_planner(generator)`."
        )
    try:
        measured = from_json(_Measured, content)
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    if differences := measured.conditions.differences(Conditions.of(generator)):
        raise ValueError(
            f"{path} was measured under other conditions: {'; '.join(differences)}. Measure again with "
            "`make_planner(generator)`."
        )
    return Planner(
        generator=generator,
        guidance=measured.guidance,
        latencies=measured.latencies,
        quality=measured.quality,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Measured:
    """The file of a planner."""

    format: int
    conditions: Conditions
    guidance: float
    latencies: tuple[Latency, ...]
    quality: Quality

    def __post_init__(self):
        if not self.latencies or not self.quality.by_steps:
            raise ValueError("it holds no measurement")


def _ways(by_steps: StepQuality) -> Iterator[_Way]:
    """The best loops for every total, of one number of steps."""
    allocations = Allocations(by_steps.gaps)
    for total, gap in enumerate(allocations.least.tolist(), start=len(by_steps.gaps)):
        yield _Way(by_steps, allocations, total, *by_steps.distance(gap, total))


def _headroom(latency: Latency, given: float | None) -> float:
    headroom = latency.tail if given is None else given
    if not 1 <= headroom < math.inf:
        raise ValueError(f"`headroom={given}` must be a number of at least 1.")
    return headroom
