"""Trains one model of the reproduction and measures every exit."""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from elt_zoo.data import ArraySource, Batch, first_examples, training_batches
from elt_zoo.diagnostics import exit_losses
from elt_zoo.families import DiTConfig, MaskGITConfig, ModelConfig
from elt_zoo.generator import Generator
from elt_zoo.profile import profile
from elt_zoo.recipes import Representation, Task, make_task
from elt_zoo.training import OptimizerConfig, OptimizerKind, TrainState, fit, jit_step, make_optimizer, make_train_step

from ._cases import Case
from ._data import CLASSES, PATCH, Judge, SmallData, cifar10, digits, mnist


@dataclasses.dataclass(frozen=True)
class Settings:
    """What all runs share, so that they compare."""

    mnist: str | None = None
    """Folder of MNIST's files."""
    cifar10: str | None = None
    """CIFAR-10: its official files, or its images by class."""
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

    def place(self, data: str) -> str | None:
        """Where a data set lies, if it does not come with the library."""
        return {"MNIST": self.mnist, "CIFAR-10": self.cifar10}.get(data)


@functools.cache
def load(name: str, place: str | None) -> tuple[SmallData, Judge]:
    """The data set and its judge, which takes seconds to fit, once for all runs of a process."""
    if name == "digits":
        data = digits()
    else:
        assert place is not None
        data = mnist(Path(place)) if name == "MNIST" else cifar10(place)
    return data, Judge(data)


def task_of(case: Case, data: SmallData, settings: Settings) -> Task:
    """The model of a case, fitted to a data set."""
    masked = case.family == "maskgit"
    shared: dict[str, Any] = {"dim": settings.dim, "num_heads": settings.num_heads, "num_classes": CLASSES}
    shared |= case.sizes
    train, heldout = (data.tokens(part) if masked else part for part in (data.train, data.heldout))
    config: ModelConfig
    if masked:
        config = MaskGITConfig(grid=data.tokenizer.grid, codebook_size=data.codebook_size, **shared)
        sampler = {"temperature_bias": 0.9, "temperature_scale": 0.2, "confidence_noise": 10.0}
        sampler["steps"] = settings.masked_steps
    else:
        config = DiTConfig(shape=data.shape, patch_size=PATCH, **shared)
        sampler = {"steps": settings.diffusion_steps}
    return make_task(
        config,
        ArraySource(train.examples, train.labels),
        heldout,
        Representation(codebook_size=data.codebook_size if masked else None),
        data=data.name,
        tokenizer=data.tokenizer if masked else None,
        settings=sampler,
    )


def run(case: Case, seed: int, settings: Settings) -> tuple[dict[str, Any], dict[int, np.ndarray]]:
    """Trains, and measures the averaged model.

    The seed decides the parameters, the order of the examples and the corruption: two objectives on one model differ
    in nothing else.

    **Returns:** what a JSON file holds — the losses of exits 1 to 2·L_max on the way and at the end, at the end also
    those on as many training examples, and the quality at the loop counts that are judged — and twenty images at each
    of these.
    """
    data, judge = load(case.data, settings.place(case.data))
    task = task_of(case, data, settings)
    config, loss = task.config, task.config.loss()
    rate = settings.learning_rate if case.learning_rate is None else case.learning_rate
    recipe = OptimizerConfig.digits(total_steps=settings.steps, learning_rate=rate)
    optimizer = make_optimizer(dataclasses.replace(recipe, kind=OptimizerKind(case.optimizer)))
    step = jit_step(
        make_train_step(
            optimizer,
            case.make_objective(loss),
            config.corruption(label_drop=settings.label_drop),
            total_steps=settings.steps,
            ema_decay=settings.ema_decay,
        )
    )
    build_key, train_key = jax.random.split(jax.random.key(seed))
    state = TrainState.create(config.build(key=build_key), optimizer, key=train_key)
    batches = training_batches(task.train, batch_size=settings.batch_size, seed=seed)

    def losses_on(batch: Batch) -> list[float]:
        losses = exit_losses(
            state.ema,
            loss,
            config.corruption(),
            jnp.asarray(batch.examples),
            jnp.asarray(batch.labels),
            loops=2 * case.max_loops if case.max_loops > 1 else 1,
            key=jax.random.key(0),
        )
        return np.asarray(losses).tolist()

    curve: dict[int, list[float]] = {}
    for milestone in range(1, settings.milestones + 1):
        done = max(settings.steps * milestone // settings.milestones, 1)
        state = fit(state, step, batches, total_steps=done).state
        curve[done] = losses_on(task.heldout)
    quality, pictures = judge_exits(task.generator(state.ema), case, judge, settings)
    costs = profile(config, steps=task.settings.steps)
    figures = {
        "curve": curve,
        "train_losses": losses_on(first_examples(task.train, len(task.heldout.labels))),
        "quality": quality,
        "parameters": costs.parameters,
        "trunk_parameters": costs.trunk_parameters,
        "sample_flops": costs.sample_flops,
        "skipped": int(state.skipped),
    }
    return figures, pictures


def judge_exits(
    generator: Generator, case: Case, judge: Judge, settings: Settings
) -> tuple[dict[int, dict[str, float]], dict[int, np.ndarray]]:
    """Quality by loop count: at L_max, and where there are other exits at those too."""
    loops = {case.max_loops}
    if case.max_loops > 1:
        loops |= {1, case.max_loops // 2, 2 * case.max_loops}
    classes = np.tile(np.arange(CLASSES, dtype=np.int32), settings.samples // CLASSES)
    quality, pictures = {}, {}
    for count in sorted(loops):
        pixels = generator.sample(classes, loops=count, key=jax.random.key(1), batch_size=len(classes))
        quality[count] = judge(pixels, classes)
        pictures[count] = pixels[: 2 * CLASSES]
    return quality, pictures
