"""Trains one model of the reproduction and measures every exit."""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from reproduce_cases import Case, exit_cases
from reproduce_data import CLASSES, PATCH, Judge, SmallData, digits, mnist

from elt_zoo.corruption import (
    AbstractCorruption,
    CosineMaskSchedule,
    DiffusionCorruption,
    MaskedCorruption,
    Prediction,
    ShiftedCosineSchedule,
)
from elt_zoo.data import ArraySource, Batch, training_batches
from elt_zoo.diagnostics import exit_losses
from elt_zoo.families import DiTConfig, MaskGITConfig, ModelConfig
from elt_zoo.models import BatchedPredict
from elt_zoo.objectives import MaskedCrossEntropy, SigmoidWeightedMSE
from elt_zoo.profile import profile
from elt_zoo.sampling import DDIM, DiffusionSampler, MaskedSampler
from elt_zoo.training import OptimizerConfig, TrainState, fit, jit_step, make_optimizer, make_train_step


@dataclasses.dataclass(frozen=True)
class Settings:
    """What all runs share, so that they compare."""

    mnist: str | None = None
    """Folder of MNIST's files."""
    steps: int = 1000
    milestones: int = 20
    """How often the loss of every exit is measured on the way."""
    batch_size: int = 64
    learning_rate: float = 4e-3
    ema_decay: float = 0.995
    label_drop: float = 0.1
    dim: int = 64
    num_heads: int = 2
    diffusion_steps: int = 16
    masked_steps: int = 12
    samples: int = 1000
    """Generated images at each loop count that is judged, as many of each class."""


@dataclasses.dataclass(frozen=True)
class Parts:
    """What a framework needs for one data set."""

    train: Batch
    heldout: Batch
    model: ModelConfig
    corruption: AbstractCorruption
    heldout_corruption: AbstractCorruption
    loss: MaskedCrossEntropy | SigmoidWeightedMSE
    sampler: DiffusionSampler | MaskedSampler
    decode: Any


@functools.cache
def load(name: str, folder: str | None) -> tuple[SmallData, Judge]:
    """The data set and its judge, which takes seconds to fit, once for all runs of a process."""
    if name == "digits":
        data = digits()
    else:
        assert folder is not None
        data = mnist(Path(folder))
    return data, Judge(data)


def parts_of(case: Case, data: SmallData, settings: Settings) -> Parts:
    shared: dict[str, Any] = {"dim": settings.dim, "num_heads": settings.num_heads, "num_classes": CLASSES}
    shared |= {"num_layers": case.num_layers, "max_loops": case.max_loops}
    if case.framework == "dit":
        schedule = ShiftedCosineSchedule()
        train_corruption, heldout_corruption = (
            DiffusionCorruption(schedule, prediction=Prediction.V, null_label=CLASSES, label_drop=drop)
            for drop in (settings.label_drop, 0.0)
        )
        return Parts(
            data.train,
            data.heldout,
            DiTConfig(shape=data.shape, patch_size=PATCH, **shared),
            train_corruption,
            heldout_corruption,
            SigmoidWeightedMSE(Prediction.V),
            DiffusionSampler(
                shape=data.shape,
                prediction=Prediction.V,
                null_label=CLASSES,
                steps=settings.diffusion_steps,
                schedule=schedule,
                update=DDIM(),
                clip_x0=1.0,
            ),
            lambda samples: samples,
        )
    tokenizer, codes = data.tokenizer, data.codebook_size
    train_corruption, heldout_corruption = (
        MaskedCorruption(CosineMaskSchedule(), mask_id=codes, null_label=CLASSES, label_drop=drop)
        for drop in (settings.label_drop, 0.0)
    )
    return Parts(
        data.tokens(data.train),
        data.tokens(data.heldout),
        MaskGITConfig(grid=tokenizer.grid, codebook_size=codes, **shared),
        train_corruption,
        heldout_corruption,
        MaskedCrossEntropy(),
        MaskedSampler(
            grid=tokenizer.grid,
            codebook_size=codes,
            mask_id=codes,
            null_label=CLASSES,
            steps=settings.masked_steps,
            temperature_bias=0.9,
            temperature_scale=0.2,
            confidence_noise=10.0,
        ),
        jax.vmap(tokenizer.decode),
    )


def run(case: Case, seed: int, settings: Settings) -> tuple[dict[str, Any], dict[int, np.ndarray]]:
    """Trains, and measures the averaged model.

    The seed decides the parameters, the order of the examples and the corruption: two objectives on one model differ
    in nothing else.

    **Returns:** what a JSON file holds — the losses of exits 1 to 2·L_max on the way and at the end, and the quality at
    the loop counts that are judged — and twenty images at each of these.
    """
    data, judge = load(case.data, settings.mnist)
    parts = parts_of(case, data, settings)
    optimizer = make_optimizer(OptimizerConfig.digits(total_steps=settings.steps, learning_rate=settings.learning_rate))
    step = jit_step(
        make_train_step(
            optimizer,
            case.make_objective(parts.loss),
            parts.corruption,
            total_steps=settings.steps,
            ema_decay=settings.ema_decay,
        )
    )
    build_key, train_key = jax.random.split(jax.random.key(seed))
    state = TrainState.create(parts.model.build(key=build_key), optimizer, key=train_key)
    source = ArraySource(parts.train.examples, parts.train.labels)
    batches = training_batches(source, batch_size=settings.batch_size, seed=seed)
    examples, labels = jnp.asarray(parts.heldout.examples), jnp.asarray(parts.heldout.labels)
    curve: dict[int, list[float]] = {}
    for milestone in range(1, settings.milestones + 1):
        done = max(settings.steps * milestone // settings.milestones, 1)
        state = fit(state, step, batches, total_steps=done).state
        losses = exit_losses(
            state.ema,
            parts.loss,
            parts.heldout_corruption,
            examples,
            labels,
            loops=2 * case.max_loops if case.max_loops > 1 else 1,
            key=jax.random.key(0),
        )
        curve[done] = np.asarray(losses).tolist()
    quality, pictures = judge_exits(state.ema, case, parts, judge, settings)
    costs = profile(parts.model, steps=parts.sampler.steps)
    figures = {
        "curve": curve,
        "quality": quality,
        "parameters": costs.parameters,
        "trunk_parameters": costs.trunk_parameters,
        "sample_flops": costs.sample_flops,
        "skipped": int(state.skipped),
    }
    return figures, pictures


def judge_exits(
    model: Any, case: Case, parts: Parts, judge: Judge, settings: Settings
) -> tuple[dict[int, dict[str, float]], dict[int, np.ndarray]]:
    """Quality by loop count: at L_max, and of the models whose exits are compared at the others too."""
    loops = {case.max_loops}
    if case in exit_cases(case.data, case.framework):
        loops |= {1, case.max_loops // 2, 2 * case.max_loops}
    classes = jnp.tile(jnp.arange(CLASSES), settings.samples // CLASSES)
    draw = eqx.filter_jit(
        lambda predict, count: parts.decode(parts.sampler(predict, classes, loops=count, key=jax.random.key(1)))
    )
    predict = BatchedPredict(model)
    quality, pictures = {}, {}
    for count in sorted(loops):
        pixels = np.asarray(draw(predict, jnp.asarray(count)))
        quality[count] = judge(pixels, np.asarray(classes))
        pictures[count] = pixels[: 2 * CLASSES]
    return quality, pictures
