import dataclasses
import itertools
import time
from collections.abc import Iterator
from typing import NamedTuple

import jax
import numpy as np

from ..generator import Generator
from ..profile import SampleTime
from ..sharding import data_mesh
from ._cells import Cell


class Samples(NamedTuple):
    """A batch of samples and the classes that they were asked to be."""

    pixels: np.ndarray
    """In [−1, 1], channels last."""
    labels: np.ndarray


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplePlan:
    """How many samples a cell is measured on, and how they are made.

    **Fields:**

    - `samples`: of a set, the classes in turn.
    - `batch_size`: samples at a time, a multiple of the devices. Other batches are other samples.
    - `devices`: how many devices of a process share every batch. Several processes share the batches.
    - `seed`: the first of the seeds.
    - `repeats`: sets of samples, each from its own noise.

    **Raises:** `ValueError` for counts below 1, devices that are not there or that do not divide a batch.
    """

    samples: int
    batch_size: int
    devices: int
    seed: int = 0
    repeats: int = 1

    def __post_init__(self):
        for name in ("samples", "batch_size", "repeats"):
            if getattr(self, name) < 1:
                raise ValueError(f"`--{name.replace('_', '-')} {getattr(self, name)}` must be at least 1.")
        if not 1 <= self.devices <= jax.local_device_count():
            each = "" if jax.process_count() == 1 else " in a process"
            raise ValueError(f"`--devices {self.devices}`: there are {jax.local_device_count()}{each}.")
        if self.batch_size % self.devices:
            raise ValueError(f"`--batch-size {self.batch_size}` must be a multiple of the {self.devices} device(s).")


def shares(count: int, batch_size: int) -> list[range]:
    """Which of some things, that are handled in batches, each process handles: whole batches, in the order of the
    processes. Process 0 has at least one, the others may have none.
    """
    batches, processes = -(-count // batch_size), jax.process_count()
    bounds = [min(-(-batches * process // processes) * batch_size, count) for process in range(processes + 1)]
    return [range(*pair) for pair in itertools.pairwise(bounds)]


class CellSampler:
    """Samples the sets of a plan for any cell. All cells start from the same noise.

    Of several processes, each samples its own batches of every set: what is in a batch does not depend on who samples
    it.
    """

    def __init__(self, generator: Generator, plan: SamplePlan):
        self.generator, self.plan = generator, plan
        self._mesh = data_mesh(jax.local_devices()[: plan.devices])
        self.time: SampleTime | None = None
        """Of the set sampled last, decoding to pixels included."""
        self.labels = np.arange(plan.samples, dtype=np.int32) % generator.config.num_classes
        """Of every set."""

    def part(self, process: int) -> range:
        """The samples of a set that a process makes, whole batches; process 0 has some, the last ones perhaps none."""
        return shares(self.plan.samples, self.plan.batch_size)[process]

    def batches(self, cell: Cell, *, repeat: int = 0) -> Iterator[Samples]:
        """This process's part of a set of samples; another set for every `repeat`."""
        plan, seconds, mine = self.plan, [], self.part(jax.process_index())
        if not mine:
            return
        key = jax.random.fold_in(jax.random.key(plan.seed), repeat)
        first = self._seconds(self._drawn(cell, self.labels[: plan.batch_size], key))[0]  # compiles
        batches = self._drawn(cell, self.labels[: mine.stop], key, first_batch=mine.start // plan.batch_size)
        for start in mine[:: plan.batch_size]:
            taken, pixels = self._seconds(batches)
            seconds.append(taken / plan.batch_size)
            yield Samples(pixels, self.labels[start : start + plan.batch_size])
        low, median, high = np.quantile(seconds, (0.25, 0.5, 0.75)).tolist()
        self.time = SampleTime(
            median=median,
            low=low,
            high=high,
            compilation=max(first - median * plan.batch_size, 0.0),
            samples=plan.batch_size,
            repeats=len(seconds),
            device=f"{plan.devices} × {jax.local_devices()[0].device_kind}",
        )

    def _drawn(self, cell: Cell, labels: np.ndarray, key: jax.Array, first_batch: int = 0) -> Iterator[np.ndarray]:
        return self.generator.batches(
            labels,
            key=key,
            loops=cell.budget,
            steps=cell.steps,
            guidance=cell.guidance,
            batch_size=self.plan.batch_size,
            mesh=self._mesh,
            first_batch=first_batch,
        )

    @staticmethod
    def _seconds(batches: Iterator[np.ndarray]) -> tuple[float, np.ndarray]:
        started = time.perf_counter()
        pixels = next(batches)
        return time.perf_counter() - started, pixels
