import csv
import dataclasses
import platform
import re
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ..diagnostics import held_out_losses
from ..figures import Curve, plot_losses, plot_quality, save_grid
from ..generator import Generator, save
from ..metrics import DigitsEvaluator, MovingDigitsEvaluator
from ..models import ElasticModel
from ..profile import sample_compute
from ..recipes import DIGITS, MOVING_DIGITS, Look, OnEvaluate, Run, Task, Trained
from ..storage import atomic_write, write_json
from ..tokenizers import AbstractTokenizer
from ._grid import versions
from ._results import markdown, write_csv

Row = dict[str, Any]
Quality = Callable[[np.ndarray, np.ndarray], Mapping[str, float]]
"""Pixels in [−1, 1] and the intended classes → named scores."""
_EXIT_LOSS = re.compile(r"teacher|student|final|exit_\d+")  # the columns that are losses of one exit
_PICTURED_CLASSES = 10
_PICTURES_OF_EACH = 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReportOptions:
    """How a run is measured at the end.

    **Fields:**

    - `samples`: at each loop count, as many of each class; `None` for as many as are pictured.
    - `sample_seeds`: sets of samples from different noise; scores are means over them, with their standard deviation.
    - `heldout_copies`: how often every held-out example is corrupted.
    - `heldout_batch`: held-out examples at a time.
    """

    samples: int | None = None
    sample_seeds: int = 1
    heldout_copies: int = 1
    heldout_batch: int = 64

    def __post_init__(self):
        for name in ("samples", "sample_seeds", "heldout_copies", "heldout_batch"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"`{name}={value}` must be at least 1.")

    @classmethod
    def of(cls, task: Task, *, samples: int | None = None, sample_seeds: int = 1) -> "ReportOptions":
        """What suits a task: on the digits 1,000 samples, whose held-out part is corrupted four times over, and 100
        clips of moving digits.
        """
        if task.data == DIGITS:
            return cls(samples=samples or 1000, sample_seeds=sample_seeds, heldout_copies=4, heldout_batch=1440)
        if task.data == MOVING_DIGITS:
            return cls(samples=samples or 100, sample_seeds=sample_seeds)
        return cls(samples=samples, sample_seeds=sample_seeds)


def report_run(run: Run, results: Mapping[Any, Trained], options: ReportOptions | None = None) -> str:
    """Measures every trained model at loop counts up to 2·L_max, and leaves it in the run's folder.

    It writes pictures of samples (`samples.png`), the loss curves (`losses.png`), `quality.csv`, `quality.md`,
    `quality.png`, the generators (`model` and one for each other objective) and `summary.json`.

    **Arguments:** `run`, and what [`train`][elt_zoo.recipes.train] returned; `options`: default what suits the task.

    **Returns:** the table in Markdown.
    """
    task, folder = run.task, run.folder
    options = ReportOptions.of(task) if options is None else options
    quality, evaluator = judge_of(task)
    started = time.perf_counter()
    rows, pictures = [], {}
    for name, trained in results.items():
        losses = exit_losses_of(trained.model, task, options)
        measured, pictures[name] = sample_exits(task.generator(trained.model), options, quality=quality)
        rows += [
            {"objective": name, "loops": row["loops"], "heldout_loss": losses[row["loops"] - 1]} | row
            for row in measured
        ]
    if next(iter(pictures.values())):
        save_pictures(run, pictures)
    table = markdown(rows)
    write_csv(folder / "quality.csv", rows)
    with atomic_write(folder / "quality.md") as file:
        file.write_text(table)
    floors = {} if evaluator is None else evaluator["floors"]
    training = loss_curves(folder, "metrics", results)
    plot_losses(folder / "losses.png", training=training, heldout=loss_curves(folder, "heldout", results))
    plot_quality(folder / "quality.png", rows, max_loops=task.config.max_loops, floors=floors)
    summary = {
        "config": run.config(run.options.objective) | {"out": str(folder)},
        "model": task.config.to_dict(),
        "sampler": dataclasses.asdict(task.settings),
        "optimizer": dataclasses.asdict(run.optimizer),
        "report": dataclasses.asdict(options),
        "evaluator": evaluator,
        "results": rows,
        "seconds": {"measuring": time.perf_counter() - started}
        | {f"{name}_step": trained.seconds_per_step for name, trained in results.items()},
        "versions": versions() | {"device": str(jax.devices()[0]), "machine": platform.platform()},
    }
    write_json(folder / "summary.json", summary)
    for name, trained in results.items():
        mine = [row for row in rows if row["objective"] == name]
        protocol = {key: summary[key] for key in ("report", "evaluator", "versions")}
        metadata = {"objective": name, "training": run.config(name), "results": mine, "protocol": protocol}
        where = folder / ("model" if name == run.options.objective else f"model-{name}")
        save(where, task.generator(trained.model, metadata=metadata), overwrite=True)
    return table


def watch(run: Run) -> OnEvaluate:
    """What to give [`train`][elt_zoo.recipes.train] as `on_evaluate`: it appends the held-out loss of every exit to
    `heldout-<objective>.csv`, writes a grid of samples at 1 and L_max loops to `progress/`, and returns both for the
    trackers. All grids start from the same noise.
    """
    task, options = run.task, ReportOptions()

    def on_evaluate(name: str, step: int, model: ElasticModel) -> Look:
        losses = exit_losses_of(model, task, options, loops=task.config.max_loops)
        file = run.folder / f"heldout-{name}.csv"
        with file.open("a") as handle:
            if handle.tell() == 0:
                handle.write(",".join(["step", *(f"exit_{loop + 1}" for loop in range(len(losses)))]) + "\n")
            handle.write(",".join([str(step), *(f"{loss:.6f}" for loss in losses)]) + "\n")
        values = {f"heldout/exit_{loop + 1}": loss for loop, loss in enumerate(losses)}
        generator = task.generator(model)
        if not has_pixels(generator):
            return Look(values, {})
        (run.folder / "progress").mkdir(exist_ok=True)
        labels = np.arange(min(task.config.num_classes, _PICTURED_CLASSES), dtype=np.int32)
        rows = {
            f"L = {loops}": generator.sample(labels, loops=loops, key=jax.random.key(1))
            for loops in sorted({1, task.config.max_loops})
        }
        names = _short(task.train.class_names)[: len(labels)]
        picture = run.folder / "progress" / f"{name}-{step}.png"
        save_grid(picture, rows, names, title=f"{name}, step {step}")
        return Look(values, {"samples": picture})

    return on_evaluate


def exit_losses_of(model: ElasticModel, task: Task, options: ReportOptions, *, loops: int | None = None) -> list[float]:
    """The held-out loss of exits 1 to `loops`, by default 2·L_max."""
    losses = held_out_losses(
        model,
        task.config.loss(),
        task.config.corruption(),
        task.heldout.examples,
        task.heldout.labels,
        loops=2 * task.config.max_loops if loops is None else loops,
        copies=options.heldout_copies,
        batch_size=options.heldout_batch,
        key=jax.random.key(0),
    )
    return np.asarray(losses).tolist()


def loss_curves(folder: Path, kind: str, names: Iterable[str]) -> dict[str, Curve]:
    """The loss of every exit in `<kind>-<name>.csv`, by training step: the last row where a resumed run has two."""
    curves: dict[str, dict[int, float]] = {}
    for name in names:
        file = folder / f"{kind}-{name}.csv"
        if not file.exists():
            continue
        with file.open(newline="") as handle:
            for row in csv.DictReader(handle):
                for column in filter(_EXIT_LOSS.fullmatch, row):
                    if not row[column]:  # an exit that was not trained yet
                        continue
                    label = f"{name}: {column.replace('_', ' ')}"
                    curves.setdefault(label, {})[int(row["step"])] = float(row[column])
    return {label: dict(sorted(curve.items())) for label, curve in curves.items()}


def loop_counts(max_loops: int) -> list[int]:
    """The loop counts that reports look at: up to L_max, and two past it."""
    return [*range(1, max_loops + 1), max_loops + max(max_loops // 2, 1), 2 * max_loops]


def sample_exits(
    generator: Generator, options: ReportOptions, *, quality: Quality | None = None
) -> tuple[list[Row], dict[int, np.ndarray]]:
    """Samples a generator at every loop count up to L_max and two past it.

    **Returns:** a row for each count (mean scores over the sampling seeds, their standard deviation where there are
    several seeds, compute, time), and pictures of the first classes by count; none where a tokenizer is missing.
    """
    config = generator.config
    pictured = min(config.num_classes, _PICTURED_CLASSES)
    if options.samples is None:
        classes = np.tile(np.arange(pictured, dtype=np.int32), _PICTURES_OF_EACH)
    else:
        classes = np.tile(np.arange(config.num_classes, dtype=np.int32), max(options.samples // config.num_classes, 1))
    first = np.flatnonzero(classes < pictured)[: _PICTURES_OF_EACH * pictured]
    draws = has_pixels(generator)
    if draws:
        generator.sample(classes, loops=1, key=jax.random.key(1))  # compiles; every loop count shares the program
    rows, pictures = [], {}
    for loops in loop_counts(config.max_loops):
        row: Row = {"loops": loops}
        seconds = 0.0
        scores: list[Mapping[str, float]] = []
        for seed in range(1, options.sample_seeds + 1) if draws else ():
            started = time.perf_counter()
            pixels = generator.sample(classes, loops=loops, key=jax.random.key(seed))
            seconds += time.perf_counter() - started
            if seed == 1:
                pictures[loops] = pixels[first]
            if quality is not None:
                scores.append(quality(pixels, classes))
        for name in scores[0] if scores else ():
            values = [score[name] for score in scores]
            row[name] = float(np.mean(values))
            if len(values) > 1:
                row[f"{name}_std"] = float(np.std(values, ddof=1))
        compute = sample_compute(config, generator.sampler(), loops=loops)
        row["megaflops_per_sample"] = compute.flops / 1e6
        if draws:
            row["milliseconds_per_sample"] = 1e3 * seconds / (len(classes) * options.sample_seeds)
        rows.append(row)
    return rows, pictures


def has_pixels(generator: Generator) -> bool:
    """Whether a generator can make pixels, or lacks its tokenizer."""
    try:
        return len(generator.pixels.shape) in (3, 4)
    except ValueError:
        return False


def save_pictures(run: Run, pictures: Mapping[Any, Mapping[int, np.ndarray]]) -> None:
    """A grid of samples of each objective at all loop counts, and one of all objectives at the trained ones."""
    max_loops = run.task.config.max_loops
    names = _short(run.task.train.class_names)[: min(run.task.config.num_classes, _PICTURED_CLASSES)]
    labels = _PICTURES_OF_EACH * names
    for name, samples in pictures.items():
        rows = {f"L = {loops}": pixels for loops, pixels in samples.items()}
        save_grid(run.folder / f"samples-{name}.png", rows, labels, title=f"{name}, trained for {max_loops} loops")
    rows = {
        f"{name}, L = {loops}": pixels
        for name, samples in pictures.items()
        for loops, pixels in samples.items()
        if loops <= max_loops
    }
    title = f"one model each, trained for {max_loops} loops, sampled with L"
    save_grid(run.folder / "samples.png", rows, labels, title=title)


def judge_of(task: Task) -> tuple[Quality | None, dict[str, Any] | None]:
    """What measures a task's samples, and its card with what real examples score; none where there is no judge."""
    if task.data == DIGITS:
        return digits_quality()
    return moving_digits_quality(task) if task.data == MOVING_DIGITS else (None, None)


def digits_quality() -> tuple[Quality, dict[str, Any]]:
    """What measures samples of the handwritten digits, and its card with what real digits score."""
    evaluator = DigitsEvaluator()
    floor = evaluator.floor()

    def quality(pixels: np.ndarray, classes: np.ndarray) -> dict[str, float]:
        measured = evaluator(pixels, classes)
        return {
            "digits_frechet_distance": measured.frechet_distance,
            "accuracy": measured.accuracy,
            "nearest_train_distance": measured.nearest_distance,
        }

    card = {
        "name": "digits Fréchet distance of elt_zoo.metrics.DigitsEvaluator (not FID)",
        "floors": {"digits_frechet_distance": floor["heldout"]},
        "real_digits": floor,
    }
    return quality, card


def moving_digits_quality(task: Task) -> tuple[Quality, dict[str, Any]]:
    """What measures clips of moving digits, and its card with what real clips score."""
    assert isinstance(task.tokenizer, AbstractTokenizer)
    frames, size, *_ = task.tokenizer.shape
    evaluator = MovingDigitsEvaluator(size=size)

    def quality(pixels: np.ndarray, classes: np.ndarray) -> dict[str, float]:
        measured = evaluator(pixels, classes)
        return {"accuracy": measured.accuracy, "frame_accuracy": measured.frame_accuracy, "speed": measured.speed}

    card = {
        "name": "accuracy of elt_zoo.metrics.MovingDigitsEvaluator",
        "floors": {},
        "real_clips": dataclasses.asdict(evaluator.floor(frames=frames)),
    }
    return quality, card


def _short(names: Any) -> list[str]:
    return [name.split(",")[0][:12] for name in names]
