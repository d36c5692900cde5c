import dataclasses
import functools
import threading
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..anytime import Plan, Planner, make_planner
from ..generator import Generator
from ..profile import Profile, profile
from ._loop_views import LoopViews, loop_views

_REMEMBERED = 256
_MOST_PROGRAMS = 32


@dataclasses.dataclass(frozen=True, kw_only=True)
class Choice:
    """What the sliders say: the class, and how to sample it."""

    label: int
    loops: int
    steps: int
    guidance: float
    seed: int


class Samples(NamedTuple):
    """Pixels in [−1, 1] of shape (count, \\*pixels), and how long the call took that sampled them."""

    pixels: np.ndarray
    seconds: float


class Studio:
    """A generator with all that the page shows of it. Equal choices are sampled once.

    **Arguments:** `generator`; its `planner`, if it has one, serves `planned`; `count`: samples at a time.

    **Fields:** `generator`, `count`; `loops`: the loop counts to show, to twice those of training.
    """

    def __init__(self, generator: Generator, *, count: int = 4):
        generator.pixels  # noqa: B018  (refuses a missing tokenizer)
        self.generator, self.count = generator, count
        self.loops = tuple(range(1, 2 * generator.config.max_loops + 1))
        self._compiled: set[tuple[int, bool]] = set()
        self.samples = functools.lru_cache(maxsize=_REMEMBERED)(self._samples)
        self.views = functools.lru_cache(maxsize=_REMEMBERED)(self._views)

    @property
    def first(self) -> Choice:
        """What the page starts with: the generator's own settings at L_max."""
        settings, config = self.generator.settings, self.generator.config
        return Choice(
            label=min(3, config.num_classes - 1),
            loops=config.max_loops,
            steps=settings.steps,
            guidance=settings.guidance,
            seed=0,
        )

    def _samples(self, choice: Choice) -> Samples:
        """Samples of the chosen class, each from a noise of its own."""
        sample = functools.partial(
            self.generator.sample,
            [choice.label] * self.count,
            loops=choice.loops,
            steps=choice.steps,
            guidance=choice.guidance,
            batch_size=self.count,
            key=jax.random.key(choice.seed),
        )
        program = (choice.steps, choice.guidance != 1.0)
        if program not in self._compiled:
            sample()  # compiles, which is no part of the time
            self._compiled.add(program)
        started = time.perf_counter()
        return Samples(sample(), time.perf_counter() - started)

    def at_every_loop_count(self, choice: Choice) -> list[Samples]:
        """The same choice at each of `loops`."""
        return [self.samples(dataclasses.replace(choice, loops=loops)) for loops in self.loops]

    def _views(self, choice: Choice) -> LoopViews:
        """How the first of `samples` came to be, and what the exits answered on the way."""
        sampler = self.generator.sampler(steps=choice.steps, guidance=choice.guidance)
        # The noise of `Generator.sample`, whose first batch this is.
        key = jax.random.fold_in(jax.random.key(choice.seed), 0)
        return loop_views(
            self.generator,
            sampler,
            jnp.full(self.count, choice.label, jnp.int32),
            loops=jnp.asarray(choice.loops, jnp.int32),
            exits=len(self.loops),
            key=key,
        )

    def costs(self, choice: Choice) -> Profile:
        """What one sample costs."""
        return dataclasses.replace(
            self._counted, loops=choice.loops, steps=choice.steps, guidance=choice.guidance != 1.0
        )

    @functools.cached_property
    def _counted(self) -> Profile:
        return profile(self.generator.config)

    def measure(self) -> None:
        """Measures this machine, for `planned`. **Raises:** `ValueError` for a generator that needs data of yours."""
        planner = make_planner(self.generator, batches=(self.count,))
        self.generator = dataclasses.replace(self.generator, planner=planner)

    @property
    def planner(self) -> Planner | None:
        """The generator's planner."""
        return self.generator.planner  # pyright: ignore[reportReturnType]

    @property
    def planned_batch(self) -> int:
        """Samples of a plan: of the planner's batch sizes the smallest that is enough, or else the largest.

        **Raises:** `ValueError` without a planner.
        """
        if self.planner is None:
            raise ValueError("`planned` needs a planner: call `measure` first.")
        batches = self.planner.batches
        return next((size for size in batches if size >= self.count), batches[-1])

    def planned(self, choice: Choice, milliseconds: float) -> tuple[Plan, Samples]:
        """The best samples of the chosen class and seed in so many milliseconds.

        **Raises:** `ValueError` without a planner, and for too little time.
        """
        batch = self.planned_batch
        assert self.planner is not None
        plan = self.planner.plan(milliseconds, batch=batch)
        started = time.perf_counter()
        pixels = self.generator.sample(
            [choice.label] * batch, milliseconds=milliseconds, batch_size=batch, key=jax.random.key(choice.seed)
        )
        return plan, Samples(pixels, time.perf_counter() - started)

    def prepare(self) -> None:
        """Samples and counts all that the page starts with."""
        self.costs(self.first)
        self.at_every_loop_count(self.first)

    def warm_up(self) -> None:
        """Compiles the programs of other numbers of steps in another thread, so that sliders need not wait for them."""

        def compile_all() -> None:
            for steps in range(min(self.generator.settings.steps, _MOST_PROGRAMS), 0, -1):
                self.samples(dataclasses.replace(self.first, steps=steps))

        threading.Thread(target=compile_all, daemon=True).start()
