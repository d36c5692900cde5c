"""Trains one model of the reproduction and measures every exit."""

import dataclasses
import functools
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm import tqdm

from elt_zoo.data import ArraySource, Batch, first_examples, training_batches
from elt_zoo.diagnostics import exit_losses
from elt_zoo.families import DiTConfig, MaskGITConfig, ModelConfig
from elt_zoo.generator import Generator
from elt_zoo.objectives import AbstractObjective
from elt_zoo.profile import profile
from elt_zoo.recipes import Representation, Task, make_task
from elt_zoo.training import (
    OptimizerConfig,
    OptimizerKind,
    TrainState,
    TrainStep,
    fit,
    jit_step,
    make_optimizer,
    make_train_step,
)

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


class Run(NamedTuple):
    """One trained model: figures for a JSON file, twenty images at each loop count that is judged, and the averaged
    model that makes them.
    """

    figures: dict[str, Any]
    pictures: dict[int, np.ndarray]
    generator: Generator


def run(case: Case, seed: int, settings: Settings) -> Run:
    """Trains, and measures the averaged model.

    The seed decides the parameters, the order of the examples and the corruption: two objectives on one model differ
    in nothing else.

    **Returns:** the run, with the losses of exits 1 to 2·L_max on the way and at the end, at the end also those on as
    many training examples, and the quality at the loop counts that are judged.
    """
    trainer = _Trainer.of(case, settings)
    optimizer = trainer.optimizer(1.0)
    steps = {end: jit_step(trainer.step(optimizer, objective)) for end, objective in trainer.stages().items()}
    state = trainer.state(optimizer, jax.random.key(seed))
    batches = training_batches(trainer.task.train, batch_size=settings.batch_size, seed=seed)
    curve: dict[int, list[float]] = {}
    for done in trainer.milestones():
        for end, step in steps.items():
            state = fit(state, step, batches, total_steps=min(end, done)).state
        curve[done] = np.asarray(trainer.losses(state.ema, trainer.task.heldout)).tolist()
    on_training = np.asarray(trainer.losses(state.ema, trainer.seen())).tolist()
    return trainer.measured(state.ema, curve, on_training, int(state.skipped), judged=True)


def run_together(cases: Sequence[Case], seeds: Sequence[int], settings: Settings) -> dict[tuple[Case, int], Run]:
    """Trains cases that differ in their rate alone, each from every seed, in one program: for a GPU, which one small
    model leaves idle. Each model sees what it would see in `run`: the results are the same up to rounding. Samples are
    judged only at the rate that is best on the first seed.

    **Returns:** the runs by case and seed.

    **Raises:** `ValueError` for cases that differ in more than their rate.
    """
    if len({dataclasses.replace(case, learning_rate=None) for case in cases}) != 1:
        raise ValueError(f"Only cases that differ in their rate alone train together, and not {list(cases)}.")
    trainer, first = _Trainer.of(cases[0], settings), cases[0].learning_rate or settings.learning_rate
    pairs = [(case, seed) for case in cases for seed in seeds]
    # The rate is the last factor of an update, weight decay included.
    scales = jnp.asarray([(case.learning_rate or settings.learning_rate) / first for case, _ in pairs])
    of_seed = jnp.asarray([seeds.index(seed) for _, seed in pairs])
    task, batch_size = trainer.task, settings.batch_size
    examples, labels = (jnp.asarray(array) for array in first_examples(task.train, len(task.train)))
    orders = [
        training_batches(ArraySource(np.arange(len(labels)), np.asarray(labels)), batch_size=batch_size, seed=seed)
        for seed in seeds
    ]

    stages = trainer.stages()

    def train_one(end: int, state: TrainState, scale: jax.Array, rows: jax.Array) -> TrainState:
        step = trainer.step(trainer.optimizer(scale), stages[end])
        arrays, static = eqx.partition(state, eqx.is_array)

        def body(arrays: Any, rows: jax.Array) -> tuple[Any, None]:
            state, _ = step(eqx.combine(arrays, static), Batch(examples[rows], labels[rows]))
            return eqx.filter(state, eqx.is_array), None

        return eqx.combine(jax.lax.scan(body, arrays, rows)[0], static)

    @eqx.filter_jit(donate="all")
    def train(end: int, states: TrainState, scales: jax.Array, rows: jax.Array, of_seed: jax.Array) -> TrainState:
        return eqx.filter_vmap(functools.partial(train_one, end))(states, scales, rows[of_seed])

    @eqx.filter_jit
    def losses(models: Any, batch: Batch) -> jax.Array:
        return eqx.filter_vmap(lambda model: trainer.losses(model, batch))(models)

    keys = jax.vmap(jax.random.key)(jnp.asarray(seeds))[of_seed]
    states = eqx.filter_jit(eqx.filter_vmap(lambda key: trainer.state(trainer.optimizer(1.0), key)))(keys)
    curves: list[dict[int, list[float]]] = [{} for _ in pairs]
    before, started = 0, time.perf_counter()
    for done in trainer.milestones():
        for end in stages:
            if count := max(min(end, done) - before, 0):
                rows = np.stack([[next(order).examples for _ in range(count)] for order in orders])
                states = train(end, states, jnp.array(scales), jnp.asarray(rows), jnp.array(of_seed))
                before += count
        for curve, values in zip(curves, np.asarray(losses(states.ema, task.heldout)), strict=True):
            curve[done] = values.tolist()
        took = time.perf_counter() - started
        tqdm.write(f"{cases[0].name} and {len(pairs) - 1} more: {done} of {settings.steps} steps in {took:.0f} s")
    on_training, last = np.asarray(losses(states.ema, trainer.seen())), cases[0].max_loops - 1
    best, _ = min(
        (pair for pair in pairs if pair[1] == seeds[0]), key=lambda pair: curves[pairs.index(pair)][before][last]
    )

    arrays, static = eqx.partition(states.ema, eqx.is_array)
    arrays, skipped = jax.device_get((arrays, states.skipped))

    def measured(index: int, case: Case) -> Run:
        model = eqx.combine(jax.tree.map(lambda leaf: jnp.asarray(leaf[index]), arrays), static)
        return trainer.measured(
            model, curves[index], on_training[index].tolist(), int(skipped[index]), judged=case == best
        )

    return {(case, seed): measured(index, case) for index, (case, seed) in enumerate(pairs)}


@dataclasses.dataclass(frozen=True)
class _Trainer:
    """What the runs of one case share, whatever their seed and their rate."""

    case: Case
    settings: Settings
    task: Task
    judge: Judge

    @classmethod
    def of(cls, case: Case, settings: Settings) -> "_Trainer":
        data, judge = load(case.data, settings.place(case.data))
        return cls(case, settings, task_of(case, data, settings), judge)

    @property
    def rate(self) -> float:
        return self.settings.learning_rate if self.case.learning_rate is None else self.case.learning_rate

    def optimizer(self, scale: float | jax.Array) -> optax.GradientTransformation:
        recipe = OptimizerConfig.digits(total_steps=self.settings.steps, learning_rate=self.rate)
        recipe = dataclasses.replace(recipe, kind=OptimizerKind(self.case.optimizer))
        recipe = recipe if self.case.growth is None else self.case.growth.rewarmed(recipe)
        return optax.chain(make_optimizer(recipe), optax.scale(scale))

    def stages(self) -> dict[int, AbstractObjective]:
        """What is trained for, by the step at which it changes or ends."""
        objective, steps = self.case.make_objective(self.task.config.loss()), self.settings.steps
        growth = self.case.growth
        return {steps: objective} if growth is None else growth.stages(objective, total_steps=steps)

    def step(self, optimizer: optax.GradientTransformation, objective: AbstractObjective) -> TrainStep:
        return make_train_step(
            optimizer,
            objective,
            self.task.config.corruption(label_drop=self.settings.label_drop),
            total_steps=self.settings.steps,
            ema_decay=self.settings.ema_decay,
        )

    def state(self, optimizer: optax.GradientTransformation, key: jax.Array) -> TrainState:
        build_key, train_key = jax.random.split(key)
        return TrainState.create(self.task.config.build(key=build_key), optimizer, key=train_key)

    def milestones(self) -> list[int]:
        steps, count = self.settings.steps, self.settings.milestones
        return list(dict.fromkeys(max(steps * each // count, 1) for each in range(1, count + 1)))

    def seen(self) -> Batch:
        """As many training examples as are held out."""
        return first_examples(self.task.train, len(self.task.heldout.labels))

    def losses(self, model: Any, batch: Batch) -> jax.Array:
        """Of exits 1 to 2·L_max."""
        return exit_losses(
            model,
            self.task.config.loss(),
            self.task.config.corruption(),
            jnp.asarray(batch.examples),
            jnp.asarray(batch.labels),
            loops=2 * self.case.max_loops if self.case.max_loops > 1 else 1,
            key=jax.random.key(0),
        )

    def measured(
        self, model: Any, curve: dict[int, list[float]], on_training: list[float], skipped: int, *, judged: bool
    ) -> Run:
        generator = self.task.generator(model)
        quality, pictures = judge_exits(generator, self.case, self.judge, self.settings) if judged else ({}, {})
        costs = profile(self.task.config, steps=self.task.settings.steps)
        figures = {
            "curve": curve,
            "train_losses": on_training,
            "quality": quality,
            "parameters": costs.parameters,
            "trunk_parameters": costs.trunk_parameters,
            "sample_flops": costs.sample_flops,
            "skipped": skipped,
        }
        return Run(figures, pictures, generator)


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
