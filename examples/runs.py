"""Training runs as the examples share them: the knobs, the objectives by name, one resumable run, and its twin."""

import contextlib
import dataclasses
import functools
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from reports import metric_files, progress_bar
from samplers import SamplerSettings
from tasks import Task

import elt_zoo
from elt_zoo.data import UnreadableLog, training_batches
from elt_zoo.objectives import AbstractObjective, DeepSupervisionLoss, RandomDepthLoss, VanillaLoss
from elt_zoo.sharding import data_mesh, replicate, shard_batch
from elt_zoo.training import (
    Checkpoints,
    OptimizerConfig,
    Precision,
    Report,
    TrainState,
    fit,
    jit_step,
    make_optimizer,
    make_train_step,
    stop_on_signals,
)

Objective = Literal["ilsd", "vanilla", "deep_supervision", "random_depth"]
_SHOWN = ("loss", "final", "sampled", "student", "teacher", "distillation", "lambda", "gradient_norm")


@dataclasses.dataclass(frozen=True)
class TrainingOptions:
    """The knobs of training that do not depend on the data."""

    objective: Objective = "ilsd"
    """What to train for."""
    compare: bool = True
    """On the small data that comes with the library: also train the vanilla twin, from the same start on the same
    batches, and plot both. On other data give the twin a run of its own, with `--objective vanilla`."""
    preset: str | None = None
    """A name of `elt_zoo.families.preset_names()`; by default a small model. Its classes and sizes follow the data."""
    out: Path | None = None
    """Where the run goes; by default `runs/<data>-<family>-<objective>`."""
    dry_run: bool = False
    """Build everything abstractly, print sizes and compute, and stop."""

    steps: int | None = None
    """Training steps; the default depends on the data."""
    batch_size: int = 64
    seed: int = 0
    learning_rate: float | None = None
    """Peak; default the paper's 1e-4 with `--preset`, else a high one for small models."""
    accumulation: int = 1
    """Parts that a batch is split into to save memory; the step is that of the whole batch."""
    ema_decay: float | None = None
    """Of the averaged parameters; default 0.9999 with `--preset`, else a lower one for short runs."""
    label_drop: float = 0.1
    """Share of examples that lose their label, for guidance."""
    min_loops: int = 1
    """L_min, the student's earliest exit."""
    per_example: bool = False
    """Draw the student's exit for each example instead of once per batch."""
    loss_bias: float = 0.0
    """b of the sigmoid weighting (diffusion)."""
    label_smoothing: float = 0.0
    """Of the cross-entropy (masked)."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """What the network computes in; parameters stay float32."""

    workers: int | None = None
    """Threads that read ahead; by default one for each core where files are decoded."""
    max_unreadable: int = 100
    """Files that may be unreadable before training stops; each is named in the log and another takes its place."""

    sampler: SamplerSettings = dataclasses.field(default_factory=SamplerSettings)

    checkpoint_every: int = 500
    log_every: int = 50


class Recipe(NamedTuple):
    """What the options leave open until the data and the model are known."""

    steps: int
    learning_rate: float
    ema_decay: float
    small: bool
    """A small model on a short run: warm-up, then a cosine to zero, instead of the paper's constant rate."""

    def resolved(self, options: TrainingOptions) -> "Recipe":
        """With what the options give in place of these defaults."""
        given = {name: getattr(options, name) for name in ("steps", "learning_rate", "ema_decay")}
        return self._replace(**{name: value for name, value in given.items() if value is not None})


@dataclasses.dataclass(frozen=True)
class Run:
    """One training run: what, on what, how and where."""

    options: TrainingOptions
    recipe: Recipe
    task: Task
    folder: Path
    data: Mapping[str, Any]
    """What the data are, for the config that a resumed run must share."""
    compare: bool

    @property
    def objectives(self) -> tuple[Objective, ...]:
        objective = self.options.objective
        return (objective, "vanilla") if self.compare and objective != "vanilla" else (objective,)

    def config(self, objective: Objective) -> dict[str, Any]:
        """What two runs must share for one to resume the other: everything that changes the parameters."""
        names = ("batch_size", "seed", "accumulation", "label_drop", "min_loops", "per_example", "precision")
        knobs = {name: getattr(self.options, name) for name in (*names, "loss_bias", "label_smoothing")}
        knobs |= {"noise_shift": self.task.settings.noise_shift} | self.recipe._asdict() | dict(self.data)
        return {"objective": objective, "model": self.task.model.to_dict(), **knobs}

    @property
    def optimizer_config(self) -> OptimizerConfig:
        recipe, model = self.recipe, self.task.model
        if recipe.small:
            optimizer = OptimizerConfig.digits(total_steps=recipe.steps)
        elif model.family == "dit":
            optimizer = OptimizerConfig.dit(total_steps=recipe.steps)
        else:
            optimizer = OptimizerConfig.maskgit(total_steps=recipe.steps, large=model.dim >= 1280)
        return dataclasses.replace(optimizer, learning_rate=recipe.learning_rate)


class Trained(NamedTuple):
    """What a run leaves: the averaged model, whether all steps were taken, and the pace."""

    model: Any
    finished: bool
    seconds_per_step: float


def make_objective(name: Objective, run: Run) -> AbstractObjective:
    loss, max_loops, options = run.task.loss, run.task.model.max_loops, run.options
    match name:
        case "ilsd":
            return elt_zoo.ILSDLoss(
                loss,
                loss.distillation,
                max_loops=max_loops,
                min_loops=options.min_loops,
                per_example=options.per_example,
            )
        case "vanilla":
            return VanillaLoss(loss, max_loops=max_loops)
        case "deep_supervision":
            return DeepSupervisionLoss(loss, max_loops=max_loops)
        case "random_depth":
            return RandomDepthLoss(
                loss, max_loops=max_loops, min_loops=options.min_loops, per_example=options.per_example
            )


def train(run: Run) -> dict[Objective, Trained]:
    """Trains with the run's objective and, to compare, its vanilla twin; or resumes them."""
    run.folder.mkdir(parents=True, exist_ok=True)
    # Both twins at once: each leaves much of a small machine idle. A signal stops both after their running step.
    with stop_on_signals() as stop, ThreadPoolExecutor(len(run.objectives)) as pool:
        jobs = [pool.submit(train_one, name, run, stop, row) for row, name in enumerate(run.objectives)]
        try:
            return {name: job.result() for name, job in zip(run.objectives, jobs, strict=True)}
        except BaseException:
            stop.set()
            raise


def train_one(name: Objective, run: Run, stop: threading.Event, row: int) -> Trained:
    """Trains with one objective, or resumes it."""
    options, recipe, task = run.options, run.recipe, run.task
    optimizer = make_optimizer(run.optimizer_config)
    build_key, train_key = jax.random.split(jax.random.key(options.seed))
    # Programs of twins that run at once may not wait for each other on several devices.
    mesh = data_mesh() if jax.device_count() > 1 and len(run.objectives) == 1 else None
    encode, put = task.representation.encode, None if mesh is None else functools.partial(shard_batch, mesh=mesh)
    checkpoints = Checkpoints(run.folder / "checkpoints" / name, run.config(name), every=options.checkpoint_every)
    batches = training_batches(
        task.train,
        batch_size=options.batch_size,
        seed=options.seed,
        workers=options.workers,
        unreadable=UnreadableLog(options.max_unreadable),
        put=put,
    )

    def start() -> TrainState:
        return TrainState.create(task.model.build(key=build_key), optimizer, key=train_key)

    if checkpoints.latest_step() is None:
        state = start()
    else:
        state, position = checkpoints.restore(eqx.filter_eval_shape(start))
        batches.set_state(position)
    step = make_train_step(
        optimizer,
        make_objective(name, run),
        task.corruption(options.label_drop),
        total_steps=recipe.steps,
        ema_decay=recipe.ema_decay,
        precision=Precision(jnp.dtype(options.precision)),
        dropout=task.model.dropout > 0.0,
        accumulation=options.accumulation,
        prepare=task.representation.prepare,
    )
    with (
        progress_bar(name, steps=recipe.steps, taken=int(state.step), show=_SHOWN, row=row) as move,
        metric_files(run.folder, name) as write,
        contextlib.closing(checkpoints),
        contextlib.closing(batches),
    ):

        def on_report(report: Report) -> None:
            move(report)
            write(report)

        result = fit(
            state if mesh is None else replicate(state, mesh),
            jit_step(step),
            batches,
            total_steps=recipe.steps,
            log_every=options.log_every,
            on_report=on_report,
            checkpoints=checkpoints,
            encode=encode,
            stop=stop,
        )
    return Trained(result.state.ema, result.finished, result.seconds_per_step)
