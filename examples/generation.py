"""Samples of a saved model in batches: the classes in turn, the same ones whenever they are drawn."""

import dataclasses
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from cells import Cell
from samplers import SamplerSettings, make_sampler

from elt_zoo.generator import LoadedModel
from elt_zoo.models import BatchedPredict
from elt_zoo.profile import SampleTime
from elt_zoo.sampling import DiffusionSampler, MaskedSampler
from elt_zoo.sharding import data_mesh, replicate, shard_batch


class Samples(NamedTuple):
    pixels: np.ndarray
    """In [−1, 1], channels last."""
    labels: np.ndarray


class Generator:
    """Draws a set of samples for any cell. Batch number b depends on the seed, b and the batch size alone: neither on
    what was drawn before nor on the devices. All cells start from the same noise.
    """

    def __init__(
        self, loaded: LoadedModel, settings: SamplerSettings, *, samples: int, batch_size: int, devices: int, seed: int
    ):
        """**Raises:** `ValueError` for no samples, devices that are not there or that do not divide a batch."""
        if samples < 1:
            raise ValueError(f"`--samples {samples}`: draw at least one.")
        if not 1 <= devices <= jax.device_count():
            raise ValueError(f"`--devices {devices}`: there are {jax.device_count()}.")
        if batch_size < 1 or batch_size % devices:
            raise ValueError(f"`--batch-size {batch_size}` must be a multiple of the {devices} device(s).")
        self._loaded, self._settings, self._seed = loaded, settings, seed
        self.samples, self.batch_size = samples, batch_size
        self._mesh = data_mesh(jax.devices()[:devices])
        self._network = replicate((BatchedPredict(loaded.model), loaded.tokenizer), self._mesh)
        self.time: SampleTime | None = None
        """Of the set drawn last, with decoding to pixels."""

    def sampler(self, cell: Cell) -> DiffusionSampler | MaskedSampler:
        """**Raises:** `ValueError` for steps that it cannot take."""
        guidance = cell.guidance if cell.guided else None
        return make_sampler(
            self._loaded.config, dataclasses.replace(self._settings, steps=cell.steps, guidance=guidance)
        )

    def batches(self, cell: Cell, *, repeat: int = 0) -> Iterator[Samples]:
        """A set of samples; another one for every `repeat`."""
        sampler, budget = self.sampler(cell), cell.budget
        seed = jax.random.fold_in(jax.random.key(self._seed), repeat)
        seconds: list[float] = []
        first = self._timed(sampler, budget, self._labels(0), jax.random.fold_in(seed, 0))[1]  # compiles
        for number, start in enumerate(range(0, self.samples, self.batch_size)):
            labels = self._labels(start)
            pixels, taken = self._timed(sampler, budget, labels, jax.random.fold_in(seed, number))
            seconds.append(taken / self.batch_size)
            # The last batch is filled up like the others, so that nothing compiles for it.
            wanted = min(self.batch_size, self.samples - start)
            yield Samples(pixels[:wanted], labels[:wanted])
        low, median, high = np.quantile(seconds, (0.25, 0.5, 0.75)).tolist()
        self.time = SampleTime(
            median=median,
            low=low,
            high=high,
            compilation=max(first - median * self.batch_size, 0.0),
            samples=self.batch_size,
            repeats=len(seconds),
            device=f"{self._mesh.size} × {jax.devices()[0].device_kind}",
        )

    def _labels(self, start: int) -> np.ndarray:
        """The classes in turn, so that any number of samples has as many of each as can be, and no part has few."""
        return np.arange(start, start + self.batch_size, dtype=np.int32) % self._loaded.config.num_classes

    def _timed(self, sampler: Any, budget: Any, labels: np.ndarray, key: jax.Array) -> tuple[np.ndarray, float]:
        placed = shard_batch(jnp.asarray(labels), self._mesh)
        sampler, budget, key = replicate((sampler, budget, key), self._mesh)
        started = time.perf_counter()
        pixels = np.asarray(_draw(sampler, self._network, placed, budget, key))
        return pixels, time.perf_counter() - started


@eqx.filter_jit
def _draw(sampler: Any, network: tuple[BatchedPredict, Any], labels: Any, budget: Any, key: Any) -> jax.Array:
    """Everything is an argument: one program for all cells of equal steps, guided or not."""
    predict, tokenizer = network
    samples = sampler(predict, labels, loops=budget, key=key)
    return samples if tokenizer is None else jax.vmap(tokenizer.decode)(samples)
