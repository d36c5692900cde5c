"""A small generator of one number, and an evaluation of it whose measures are made up: what costs nothing to write."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import equinox as eqx
import jax
import numpy as np

from elt_zoo.evaluation import Evaluator, SamplePlan, _grid, evaluate_grid, grid
from elt_zoo.evaluation._samples import Samples
from elt_zoo.families import DiTConfig
from elt_zoo.generator import Generator
from elt_zoo.metrics import AbstractExtractor, GaussianStatistics, SetStatistics

_SIZES: dict[str, Any] = {"dim": 8, "num_layers": 1, "num_heads": 1, "max_loops": 2, "num_classes": 2}
_CONFIG = DiTConfig(shape=(4, 4, 1), patch_size=2, **_SIZES)


def small_generator(number: int) -> Generator:
    """All its parameters are that number, in NumPy: nothing is compiled."""
    model = eqx.filter_eval_shape(_CONFIG.build, key=jax.random.key(0))
    filled = jax.tree.map(lambda leaf: np.full(leaf.shape, number, leaf.dtype), model)
    return Generator(filled, _CONFIG, metadata={"number": number})


def evaluate_made_up(folder: Path, loops: Sequence[str]) -> str:
    """Evaluates a generator at these loops, and exports its samples. The distance is 1.5 everywhere."""
    evaluator = Evaluator(
        extractor=_NoExtractor(),
        reference=SetStatistics(GaussianStatistics(None, np.zeros(1), np.zeros((1, 1)))),
        distance="distance",
        card={"name": "made up", "reference": "none"},
        allow_few=True,
    )
    plan = SamplePlan(samples=2, batch_size=2, devices=1)
    with mock.patch.object(_grid, "_measure", _measure):
        cells = grid(loops, (2,), (1.0,))
        return evaluate_grid(small_generator(1), cells, evaluator, plan, folder, name="mine", export=True)


class _NoExtractor(AbstractExtractor):
    """What is never called, since nothing is measured."""

    name, num_features = "none", 1

    def __call__(self, examples: Any) -> Any:
        raise AssertionError("nothing is measured, so no features are asked for")


def _measure(sampler: Any, evaluator: Evaluator, cell: Any, samples: Any, name: str) -> dict[str, Any]:
    list(samples.written(iter([Samples(np.zeros((2, 4, 4, 1), np.float32), np.arange(2, dtype=np.int32))])))
    time = {"median": 0.1, "repeats": 1, "device": "none"}
    compute = {"flops": int(cell.loops), "parameters": 1, "effective_parameters": 1, "time": time}
    return {"figures": {"distance": 1.5}, "sets": [{"distance": 1.5}], "compute": compute, "run": {"model": name}}
