"""How long a training loop waits for precomputed tokens: the section `wait` of `data.py`.

It trains one loop of a small model, so that the step is short and the wait weighs most.
"""

import dataclasses
import statistics
import tempfile
from pathlib import Path
from typing import Any

import jax
from data_tokens import SIDE, Reader, SpelledCodes

from elt_zoo.corruption import CosineMaskSchedule, MaskedCorruption
from elt_zoo.data import ShardedTokens, precompute, to_tokens, training_batches
from elt_zoo.families import MaskGITConfig, preset
from elt_zoo.objectives import MaskedCrossEntropy, VanillaLoss
from elt_zoo.training import OptimizerConfig, Report, TrainState, fit, jit_step, make_optimizer, make_train_step

PRESET = "tiny-maskgit"
BATCH = 64


def rows(examples: int = 20_000, *, steps: int = 60, log_every: int = 10) -> list[dict[str, Any]]:
    """One row: the median over the reports of the share of the time that was spent waiting."""
    reports: list[Report] = []
    with tempfile.TemporaryDirectory() as scratch:
        precompute(SpelledCodes(examples), Reader(), Path(scratch) / "shards", size=SIDE, batch_size=2048)
        source = ShardedTokens(Path(scratch) / "shards")
        state, step = _training(source, steps)
        batches = training_batches(source, batch_size=BATCH, seed=0)
        result = fit(state, step, batches, total_steps=steps, log_every=log_every, on_report=reports.append)
    return [
        {
            "case": f"training {PRESET} on tokens, batches of {BATCH}",
            "rounds": len(reports),
            "data_wait": statistics.median(report.data_wait for report in reports),
            "step_ms": 1e3 * result.seconds_per_step,
        }
    ]


def _training(source: ShardedTokens, steps: int) -> tuple[Any, Any]:
    """The state at the start and the step."""
    config = preset(PRESET)
    assert isinstance(config, MaskGITConfig)
    grid = source.index.shape
    assert grid is not None  # tokens have one
    config = dataclasses.replace(
        config, num_classes=source.num_classes, grid=grid, codebook_size=source.codebook_size, max_loops=1
    )
    optimizer = make_optimizer(OptimizerConfig(learning_rate=1e-4, total_steps=steps))
    corruption = MaskedCorruption(
        CosineMaskSchedule(), mask_id=source.codebook_size, null_label=source.num_classes, label_drop=0.1
    )
    step = make_train_step(
        optimizer,
        VanillaLoss(MaskedCrossEntropy(), max_loops=1),
        corruption,
        total_steps=steps,
        prepare=lambda batch, _: to_tokens(batch),
    )
    model_key, train_key = jax.random.split(jax.random.key(0))
    return TrainState.create(config.build(key=model_key), optimizer, key=train_key), jit_step(step)
