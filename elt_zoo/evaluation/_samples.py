import dataclasses
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
    - `devices`: how many devices share every batch.
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
        if not 1 <= self.devices <= jax.device_count():
            raise ValueError(f"`--devices {self.devices}`: there are {jax.device_count()}.")
        if self.batch_size % self.devices:
            raise ValueError(f"`--batch-size {self.batch_size}` must be a multiple of the {self.devices} device(s).")


class CellSampler:
    """Samples the sets of a plan for any cell. All cells start from the same noise."""

    def __init__(self, generator: Generator, plan: SamplePlan):
        self.generator, self.plan = generator, plan
        self._mesh = data_mesh(jax.devices()[: plan.devices])
        self.time: SampleTime | None = None
        """Of the set sampled last, decoding to pixels included."""

    def batches(self, cell: Cell, *, repeat: int = 0) -> Iterator[Samples]:
        """A set of samples; another one for every `repeat`."""
        plan, seconds = self.plan, []
        labels = np.arange(plan.samples, dtype=np.int32) % self.generator.config.num_classes
        key = jax.random.fold_in(jax.random.key(plan.seed), repeat)
        first = self._seconds(self._drawn(cell, labels[: plan.batch_size], key))[0]  # compiles
        batches = self._drawn(cell, labels, key)
        for start in range(0, plan.samples, plan.batch_size):
            taken, pixels = self._seconds(batches)
            seconds.append(taken / plan.batch_size)
            yield Samples(pixels, labels[start : start + plan.batch_size])
        low, median, high = np.quantile(seconds, (0.25, 0.5, 0.75)).tolist()
        self.time = SampleTime(
            median=median,
            low=low,
            high=high,
            compilation=max(first - median * plan.batch_size, 0.0),
            samples=plan.batch_size,
            repeats=len(seconds),
            device=f"{plan.devices} × {jax.devices()[0].device_kind}",
        )

    def _drawn(self, cell: Cell, labels: np.ndarray, key: jax.Array) -> Iterator[np.ndarray]:
        return self.generator.batches(
            labels,
            key=key,
            loops=cell.budget,
            steps=cell.steps,
            guidance=cell.guidance,
            batch_size=self.plan.batch_size,
            mesh=self._mesh,
        )

    @staticmethod
    def _seconds(batches: Iterator[np.ndarray]) -> tuple[float, np.ndarray]:
        started = time.perf_counter()
        pixels = next(batches)
        return time.perf_counter() - started, pixels
