"""Train an elastic looped transformer, sample it at every loop count, and measure what each count is worth.

    python examples/train_imagenet.py                        # digits, diffusion, ILSD beside its vanilla twin
    python examples/train_imagenet.py --framework maskgit    # digits, masked generation
    python examples/train_imagenet.py --preset elt-XL-7Nx4L --framework maskgit --dry-run

With no arguments it trains on the 1,797 real digits that come with scikit-learn. The run goes to `runs/<name>`:
pictures of samples at every loop count, a plot and a table of quality against loops and compute, the trained model, the
metrics, and `summary.json` with every knob. Run it again to resume an interrupted run.
"""

import contextlib
import csv
import dataclasses
import json
import platform
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import tyro
from pictures import plot_quality, save_sample_grid
from samplers import SamplerSettings, make_sampler
from tensorboardX import SummaryWriter
from tqdm import tqdm

import elt_zoo
from elt_zoo.data import ArraySource, digits_to_pixels, load_digits, training_batches
from elt_zoo.metrics import DigitsEvaluator
from elt_zoo.models import BatchedPredict, DiTConfig, MaskGITConfig, ModelConfig, preset
from elt_zoo.objectives import (
    AbstractCorruption,
    AbstractObjective,
    CosineMaskSchedule,
    DeepSupervisionLoss,
    DiffusionCorruption,
    MaskedCorruption,
    MaskedCrossEntropy,
    RandomDepthLoss,
    ShiftedCosineSchedule,
    SigmoidWeightedMSE,
    VanillaLoss,
)
from elt_zoo.profile import profile
from elt_zoo.sampling import DiffusionSampler, MaskedSampler
from elt_zoo.tokenizers import AbstractTokenizer, GreyLevels, PatchCodebook
from elt_zoo.training import (
    Checkpoints,
    OptimizerConfig,
    Precision,
    Report,
    TrainState,
    exit_losses,
    fit,
    jit_step,
    make_optimizer,
    make_train_step,
    stop_on_signals,
)

Objective = Literal["ilsd", "vanilla", "deep_supervision", "random_depth"]


@dataclasses.dataclass(frozen=True)
class Config:
    """Train an elastic looped transformer and measure every exit."""

    framework: Literal["dit", "maskgit"] = "dit"
    """Diffusion over pixels or latents, or masked generation over tokens."""
    objective: Objective = "ilsd"
    """What to train for."""
    compare: bool = True
    """Also train the vanilla twin, from the same start on the same batches, and plot both."""
    data: str = "digits"
    """`digits`, or (not there yet) the folder of ImageNet."""
    preset: str | None = None
    """A name of `elt_zoo.models.preset_names()`; by default the small model for the digits."""
    tokens: Literal["patches", "pixels"] = "patches"
    """Masked generation on digits: 16 tokens of 2 × 2 pixels from a codebook, or 64 single pixels."""
    out: Path | None = None
    """Where the run goes; by default `runs/<data>-<framework>-<objective>`."""
    dry_run: bool = False
    """Build everything abstractly, print sizes and compute, and stop."""

    steps: int | None = None
    """Default 1,000 (diffusion) or 2,000 (masked)."""
    batch_size: int = 64
    seed: int = 0
    learning_rate: float | None = None
    """Default 8e-3 (diffusion) or 6e-3 (masked) for the small models on digits, else the paper's 1e-4."""
    accumulation: int = 1
    """Batches whose gradients make one optimiser step."""
    ema_decay: float | None = None
    """Default 0.995 (diffusion) or 0.998 (masked) for the small models on digits, else 0.9999."""
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

    sampler: SamplerSettings = dataclasses.field(default_factory=SamplerSettings)
    samples: int = 1000
    """Samples per loop count to measure quality on, as many of each class."""

    checkpoint_every: int = 500
    log_every: int = 50

    def __post_init__(self):
        if self.data != "digits":
            raise ValueError(
                f"`--data {self.data}`: reading ImageNet is not part of this version yet. Only `--data digits` trains; "
                "any preset can be inspected with `--dry-run`."
            )
        if self.samples < 100 or self.samples % 10:
            raise ValueError(f"`--samples {self.samples}` must be a multiple of the 10 classes, and at least 100.")

    @property
    def recipe(self) -> "Recipe":
        """The knobs whose defaults depend on the framework and the model."""
        masked, small = self.framework == "maskgit", self.preset is None
        default = Recipe(
            steps=2000 if masked else 1000,
            learning_rate=(6e-3 if masked else 8e-3) if small else 1e-4,
            ema_decay=(0.998 if masked else 0.995) if small else 0.9999,
        )
        given = {name: getattr(self, name) for name in dataclasses.asdict(default)}
        return dataclasses.replace(default, **{name: value for name, value in given.items() if value is not None})

    @property
    def model(self) -> ModelConfig:
        name = (
            self.preset
            or {"dit": "digits-dit", "patches": "digits-maskgit", "pixels": "digits-maskgit-pixels"}[
                "dit" if self.framework == "dit" else self.tokens
            ]
        )
        config = preset(name)
        if config.framework != self.framework:
            raise ValueError(f"Preset {name!r} is for `--framework {config.framework}`, not {self.framework}.")
        return config

    @property
    def folder(self) -> Path:
        return self.out or Path("runs") / f"{self.data}-{self.framework}-{self.objective}"

    @property
    def objectives(self) -> tuple[Objective, ...]:
        return (self.objective, "vanilla") if self.compare and self.objective != "vanilla" else (self.objective,)

    def run_config(self, objective: Objective) -> dict[str, Any]:
        """What two runs must share for one to resume the other: everything that changes the parameters."""
        cosmetic = ("out", "dry_run", "compare", "objective", "sampler", "samples", "log_every", "checkpoint_every")
        knobs = {name: value for name, value in dataclasses.asdict(self).items() if name not in cosmetic}
        knobs["noise_shift"] = self.sampler.noise_shift
        return {"objective": objective, "model": self.model.to_dict(), **knobs, **dataclasses.asdict(self.recipe)}


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What `Config` leaves open until the framework and the model are known."""

    steps: int
    learning_rate: float
    ema_decay: float


@dataclasses.dataclass(frozen=True)
class Task:
    """A framework's parts, put together for one data set."""

    train: ArraySource
    heldout: tuple[jax.Array, jax.Array]
    corruption: Callable[[float], AbstractCorruption]
    """Label-drop rate → corruption."""
    loss: MaskedCrossEntropy | SigmoidWeightedMSE
    sampler: MaskedSampler | DiffusionSampler
    decode: Callable[[jax.Array], jax.Array]
    """Samples → pixels in [−1, 1], batched."""
    tokenizer: AbstractTokenizer | None = None


def make_task(config: Config) -> Task:
    train, heldout = load_digits("train"), load_digits("heldout")
    pixels, heldout_pixels = digits_to_pixels(train.images), digits_to_pixels(heldout.images)
    labels = jnp.asarray(heldout.labels)
    model = config.model
    if isinstance(model, DiTConfig):
        schedule = ShiftedCosineSchedule(config.sampler.noise_shift)
        return Task(
            train=ArraySource(pixels, train.labels),
            heldout=(jnp.asarray(heldout_pixels), labels),
            corruption=lambda drop: DiffusionCorruption(
                schedule, prediction=model.prediction, null_label=model.num_classes, label_drop=drop
            ),
            loss=SigmoidWeightedMSE(model.prediction, config.loss_bias),
            sampler=make_sampler(model, config.sampler),
            decode=lambda samples: samples,
        )
    assert isinstance(model, MaskGITConfig)
    tokenizer = (
        PatchCodebook.fit(pixels, codebook_size=model.codebook_size)
        if config.tokens == "patches"
        else GreyLevels((8, 8, 1), model.codebook_size)
    )
    encode = jax.jit(jax.vmap(tokenizer.encode))
    return Task(
        train=ArraySource(np.asarray(encode(pixels)), train.labels),
        heldout=(encode(heldout_pixels), labels),
        corruption=lambda drop: MaskedCorruption(
            CosineMaskSchedule(), mask_id=model.codebook_size, null_label=model.num_classes, label_drop=drop
        ),
        loss=MaskedCrossEntropy(config.label_smoothing),
        sampler=make_sampler(model, config.sampler),
        decode=jax.vmap(tokenizer.decode),
        tokenizer=tokenizer,
    )


def make_objective(name: Objective, config: Config, task: Task) -> AbstractObjective:
    loss, max_loops = task.loss, config.model.max_loops
    match name:
        case "ilsd":
            return elt_zoo.ILSDLoss(
                loss, loss.distillation, max_loops=max_loops, min_loops=config.min_loops, per_example=config.per_example
            )
        case "vanilla":
            return VanillaLoss(loss, max_loops=max_loops)
        case "deep_supervision":
            return DeepSupervisionLoss(loss, max_loops=max_loops)
        case "random_depth":
            return RandomDepthLoss(
                loss, max_loops=max_loops, min_loops=config.min_loops, per_example=config.per_example
            )


def make_optimizer_config(config: Config) -> OptimizerConfig:
    recipe = config.recipe
    updates = max(recipe.steps // config.accumulation, 1)
    if config.preset is None:
        optimizer = OptimizerConfig.digits(total_steps=updates, learning_rate=recipe.learning_rate)
    elif config.framework == "dit":
        optimizer = OptimizerConfig.dit(total_steps=updates)
    else:
        optimizer = OptimizerConfig.maskgit(total_steps=updates, large=config.model.dim >= 1280)
    return dataclasses.replace(optimizer, learning_rate=recipe.learning_rate, accumulation=config.accumulation)


def train(name: Objective, config: Config, task: Task, stop: threading.Event, row: int) -> tuple[Any, bool, float]:
    """Trains with one objective, or resumes it. Returns the averaged model, whether training is complete, and seconds
    per step.
    """
    recipe = config.recipe
    optimizer = make_optimizer(make_optimizer_config(config))
    objective = make_objective(name, config, task)
    build_key, train_key = jax.random.split(jax.random.key(config.seed))
    checkpoints = Checkpoints(config.folder / "checkpoints" / name, config.run_config(name))
    batches = training_batches(task.train, batch_size=config.batch_size, seed=config.seed)

    def start() -> TrainState:
        return TrainState.create(config.model.build(key=build_key), optimizer, key=train_key)

    if checkpoints.latest_step() is None:
        state = start()
    else:
        state, place = checkpoints.restore(eqx.filter_eval_shape(start))
        batches.set_state(place)
    step = make_train_step(
        optimizer,
        objective,
        task.corruption(config.label_drop),
        total_steps=recipe.steps,
        ema_decay=recipe.ema_decay,
        precision=Precision(jnp.dtype(config.precision)),
        dropout=config.model.dropout > 0.0,
    )
    with (
        tqdm(total=recipe.steps, initial=int(state.step), desc=name, position=row, unit="step") as bar,
        metric_files(config.folder, name) as write,
        contextlib.closing(checkpoints),
    ):

        def on_report(report: Report) -> None:
            bar.set_postfix(
                {k: f"{v:.3f}" for k, v in report.metrics.items()} | {"images/s": f"{report.examples_per_second:.0f}"}
            )
            bar.update(report.step - bar.n)
            write(report)

        result = fit(
            state,
            jit_step(step),
            batches,
            total_steps=recipe.steps,
            log_every=config.log_every,
            on_report=on_report,
            checkpoints=checkpoints,
            checkpoint_every=config.checkpoint_every,
            stop=stop,
        )
    return result.state.ema, result.finished, result.seconds_per_step


@contextlib.contextmanager
def metric_files(folder: Path, name: str) -> Iterator[Callable[[Report], None]]:
    """Appends reports to `metrics-<name>.csv` and to TensorBoard's event files."""
    file = folder / f"metrics-{name}.csv"
    with file.open("a", newline="") as handle, SummaryWriter(str(folder / "tensorboard" / name)) as board:
        writer = csv.writer(handle)

        def write(report: Report) -> None:
            values = report.metrics | {"images_per_second": report.examples_per_second}
            if handle.tell() == 0:
                writer.writerow(["step", *values])
            writer.writerow([report.step, *values.values()])
            handle.flush()
            for metric, value in values.items():
                board.add_scalar(metric, value, report.step)

        yield write


def evaluate(
    name: Objective, model: Any, config: Config, task: Task, evaluator: DigitsEvaluator
) -> tuple[list[dict[str, Any]], dict[int, np.ndarray]]:
    """For every loop count up to 2·L_max a row (held-out loss, quality of samples, compute) and two samples of every
    class.
    """
    max_loops = config.model.max_loops
    loop_counts = [*range(1, max_loops + 1), max_loops + max(max_loops // 2, 1), 2 * max_loops]
    examples, labels = (jnp.tile(leaf, (4,) + (1,) * (leaf.ndim - 1)) for leaf in task.heldout)
    losses = exit_losses(
        model, task.loss, task.corruption(0.0), examples, labels, loops=2 * max_loops, key=jax.random.key(0)
    )
    classes = jnp.tile(jnp.arange(config.model.num_classes), config.samples // config.model.num_classes)
    predict = BatchedPredict(model)
    sample = eqx.filter_jit(
        lambda predict, loops: task.decode(task.sampler(predict, classes, loops=loops, key=jax.random.key(1)))
    )
    jax.block_until_ready(sample(predict, jnp.asarray(1)))  # compiles; every loop count shares the program
    rows, drawn = [], {}
    for loops in loop_counts:
        started = time.perf_counter()
        pixels = np.asarray(sample(predict, jnp.asarray(loops)))
        seconds = time.perf_counter() - started
        quality = evaluator(pixels, np.asarray(classes))
        compute = profile(
            config.model, loops=loops, steps=task.sampler.steps, guidance=task.sampler.guidance is not None
        )
        drawn[loops] = pixels[: 2 * config.model.num_classes]
        rows.append(
            {
                "objective": name,
                "loops": loops,
                "heldout_loss": float(losses[loops - 1]),
                "digits_frechet_distance": quality.frechet_distance,
                "accuracy": quality.accuracy,
                "nearest_train_distance": quality.nearest_distance,
                "megaflops_per_sample": compute.sample_flops / 1e6,
                "milliseconds_per_sample": 1e3 * seconds / config.samples,
            }
        )
    return rows, drawn


def save_pictures(config: Config, drawn: dict[Objective, dict[int, np.ndarray]]) -> None:
    """A grid of samples of each objective at all loop counts, and one of all objectives at the trained ones."""
    max_loops, labels = config.model.max_loops, 2 * list(range(config.model.num_classes))
    for name, samples in drawn.items():
        rows = {f"L = {loops}": pixels for loops, pixels in samples.items()}
        title = f"{name}, trained for {max_loops} loops"
        save_sample_grid(config.folder / f"samples-{name}.png", rows, labels, title=title)
    rows = {
        f"{name}, L = {loops}": pixels
        for name, samples in drawn.items()
        for loops, pixels in samples.items()
        if loops <= max_loops
    }
    title = f"one model each, trained for {max_loops} loops, drawn with L"
    save_sample_grid(config.folder / "samples.png", rows, labels, title=title)


def save_table(folder: Path, rows: list[dict[str, Any]]) -> str:
    """Writes the rows as CSV and Markdown, and returns the Markdown."""
    with (folder / "quality.csv").open("w", newline="") as handle:
        writer = csv.DictWriter(handle, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    columns = [name.replace("_", " ") for name in rows[0]]
    lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    for row in rows:
        cells = [f"{value:.4g}" if isinstance(value, float) else str(value) for value in row.values()]
        lines.append("| " + " | ".join(cells) + " |")
    text = "\n".join(lines) + "\n"
    (folder / "quality.md").write_text(text)
    return text


def main(config: Config) -> None:
    if config.dry_run:
        guided = config.sampler.guidance is not None
        print(
            profile(config.model, batch=config.batch_size, steps=config.sampler.steps_of(config.model), guidance=guided)
        )
        return
    started = time.perf_counter()
    task = make_task(config)
    config.folder.mkdir(parents=True, exist_ok=True)
    # Both twins at once: each leaves much of a small machine idle. A signal stops both after their running step.
    with stop_on_signals() as stop, ThreadPoolExecutor(len(config.objectives)) as pool:
        runs = [pool.submit(train, name, config, task, stop, row) for row, name in enumerate(config.objectives)]
        try:
            results: dict[Objective, Any] = {
                name: run.result() for name, run in zip(config.objectives, runs, strict=True)
            }
        except BaseException:
            stop.set()
            raise
    if not all(finished for _, finished, _ in results.values()):
        print(f"Stopped on request; the state is saved. Run the same command again to resume {config.folder}.")
        return
    trained = time.perf_counter()

    evaluator = DigitsEvaluator()
    floor = evaluator.floor()
    rows, drawn = [], {}
    for name, (model, _, _) in results.items():
        measured, drawn[name] = evaluate(name, model, config, task, evaluator)
        rows += measured
    save_pictures(config, drawn)
    table = save_table(config.folder, rows)
    plot_quality(config.folder / "quality.png", rows, max_loops=config.model.max_loops, floor=floor["heldout"])
    summary = {
        "config": dataclasses.asdict(config) | dataclasses.asdict(config.recipe) | {"out": str(config.folder)},
        "model": config.model.to_dict(),
        "optimizer": dataclasses.asdict(make_optimizer_config(config)),
        "evaluator": "digits Fréchet distance of elt_zoo.metrics.DigitsEvaluator (not FID)",
        "real_digits": floor,
        "results": rows,
        "seconds": {"training": trained - started, "total": time.perf_counter() - started}
        | {f"{name}_step": seconds for name, (_, _, seconds) in results.items()},
        "versions": {"elt_zoo": elt_zoo.__version__, "jax": jax.__version__, "equinox": eqx.__version__}
        | {"python": platform.python_version(), "device": str(jax.devices()[0]), "machine": platform.platform()},
    }
    (config.folder / "summary.json").write_text(json.dumps(summary, indent=2, default=str))
    for name, (model, _, _) in results.items():
        settings = dataclasses.replace(config.sampler, steps=task.sampler.steps)
        results_of = [row for row in rows if row["objective"] == name]
        metadata = {
            "objective": name,
            "sampler": dataclasses.asdict(settings),
            "training": config.run_config(name),
            "results": results_of,
        }
        folder = config.folder / ("model" if name == config.objective else f"model-{name}")
        elt_zoo.save(folder, model, config.model, tokenizer=task.tokenizer, metadata=metadata, overwrite=True)
    print(
        f"\n{table}\nReal held-out digits: distance {floor['heldout']:.2f}, accuracy {floor['heldout_accuracy']:.3f}."
    )
    print(f"Pictures, table, metrics and model are in {config.folder} ({time.perf_counter() - started:.0f} s).")


if __name__ == "__main__":
    try:
        main(tyro.cli(Config, description=__doc__))
    except (ValueError, FileExistsError) as error:
        raise SystemExit(f"error: {error}") from None
