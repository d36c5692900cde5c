"""What a run is worth at every loop count: held-out loss, samples, compute, and the files that say so."""

import csv
import dataclasses
import json
import platform
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from pictures import plot_quality, save_clip_grid, save_sample_grid
from runs import Run, Trained
from tasks import Task

import elt_zoo
from elt_zoo.diagnostics import exit_losses
from elt_zoo.models import BatchedPredict
from elt_zoo.profile import profile

Row = dict[str, Any]
Quality = Callable[[np.ndarray, np.ndarray], Mapping[str, float]]
"""Pixels in [−1, 1] and the intended classes → named figures."""
_PICTURED_CLASSES = 10
_PICTURES_OF_EACH = 2


def report(
    run: Run,
    results: Mapping[Any, Trained],
    *,
    samples: int | None = None,
    quality: Quality | None = None,
    evaluator: Mapping[str, Any] | None = None,
    heldout_copies: int = 1,
    heldout_batch: int = 64,
) -> str:
    """Measures every trained model at loop counts up to 2·L_max and leaves pictures, a table, a plot, the models and
    `summary.json` in the run's folder. Returns the table as Markdown.

    `samples` are drawn at each loop count for `quality`, as many of each class, by default as many as are pictured;
    `evaluator` describes it in the summary. The held-out data are corrupted `heldout_copies` times over.
    """
    task, folder = run.task, run.folder
    started = time.perf_counter()
    rows, drawn = [], {}
    for name, trained in results.items():
        losses = heldout_losses(trained.model, task, copies=heldout_copies, batch=heldout_batch)
        measured, drawn[name] = sample_exits(trained.model, task, samples=samples, quality=quality)
        rows += [{"objective": name, "heldout_loss": losses[row["loops"] - 1]} | row for row in measured]
    rows = [{"objective": row["objective"], "loops": row["loops"]} | row for row in rows]
    if task.representation.decode is not None:
        save_pictures(run, drawn)
    table = save_table(folder, rows)
    floors = {} if evaluator is None else evaluator.get("floors", {})
    plot_quality(folder / "quality.png", rows, max_loops=task.model.max_loops, floors=floors)
    summary = {
        "config": dataclasses.asdict(run.options) | run.recipe._asdict() | {"out": str(folder)} | dict(run.data),
        "model": task.model.to_dict(),
        "sampler": dataclasses.asdict(task.settings),
        "optimizer": dataclasses.asdict(run.optimizer_config),
        "evaluator": evaluator,
        "results": rows,
        "seconds": {"measuring": time.perf_counter() - started}
        | {f"{name}_step": trained.seconds_per_step for name, trained in results.items()},
        "versions": {"elt_zoo": elt_zoo.__version__, "jax": jax.__version__, "equinox": eqx.__version__}
        | {"python": platform.python_version(), "device": str(jax.devices()[0]), "machine": platform.platform()},
    }
    (folder / "summary.json").write_text(json.dumps(summary, indent=2, default=str))
    for name, trained in results.items():
        save_model(run, name, trained.model, [row for row in rows if row["objective"] == name])
    return table


def heldout_losses(model: Any, task: Task, *, copies: int, batch: int) -> list[float]:
    """The loss of exits 1 to 2·L_max on the held-out data, each corrupted `copies` times; the mean over batches."""
    examples, labels = (jnp.tile(leaf, (copies,) + (1,) * (leaf.ndim - 1)) for leaf in task.heldout)
    batch = min(batch, len(labels))
    losses = [
        exit_losses(
            model,
            task.loss,
            task.corruption(0.0),
            examples[start : start + batch],
            labels[start : start + batch],
            loops=2 * task.model.max_loops,
            key=jax.random.key(start),
        )
        for start in range(0, len(labels) - batch + 1, batch)
    ]
    return np.mean(jax.device_get(losses), axis=0).tolist()


def sample_exits(
    model: Any, task: Task, *, samples: int | None, quality: Quality | None
) -> tuple[list[Row], dict[int, np.ndarray]]:
    """For every loop count up to L_max and two beyond a row (quality, compute, time), and pictures of the first
    classes.
    """
    max_loops, num_classes = task.model.max_loops, task.model.num_classes
    pictured = min(num_classes, _PICTURED_CLASSES)
    if samples is None:
        classes = jnp.tile(jnp.arange(pictured), _PICTURES_OF_EACH)
    else:
        classes = jnp.tile(jnp.arange(num_classes), samples // num_classes)
    decode = task.representation.decode or (lambda samples: samples)
    draw = eqx.filter_jit(
        lambda predict, loops: decode(task.sampler(predict, classes, loops=loops, key=jax.random.key(1)))
    )
    predict = BatchedPredict(model)
    jax.block_until_ready(draw(predict, jnp.asarray(1)))  # compiles; every loop count shares the program
    first = np.concatenate([np.flatnonzero(classes < pictured)])[: _PICTURES_OF_EACH * pictured]
    rows, drawn = [], {}
    for loops in [*range(1, max_loops + 1), max_loops + max(max_loops // 2, 1), 2 * max_loops]:
        started = time.perf_counter()
        pixels = np.asarray(draw(predict, jnp.asarray(loops)))
        seconds = time.perf_counter() - started
        guided = task.sampler.guidance is not None
        compute = profile(task.model, loops=loops, steps=task.sampler.steps, guidance=guided)
        figures = {} if quality is None else dict(quality(pixels, np.asarray(classes)))
        drawn[loops] = pixels[first]
        rows.append(
            {"loops": loops}
            | figures
            | {
                "megaflops_per_sample": compute.sample_flops / 1e6,
                "milliseconds_per_sample": 1e3 * seconds / len(classes),
            }
        )
    return rows, drawn


def save_pictures(run: Run, drawn: Mapping[str, Mapping[int, np.ndarray]]) -> None:
    """A grid of samples of each objective at all loop counts, and one of all objectives at the trained ones."""
    task = run.task
    max_loops = task.model.max_loops
    names = task.train.class_names[: min(task.model.num_classes, _PICTURED_CLASSES)]
    labels = _PICTURES_OF_EACH * [name.split(",")[0][:12] for name in names]
    save = save_clip_grid if next(iter(next(iter(drawn.values())).values())).ndim == 5 else save_sample_grid
    for name, samples in drawn.items():
        rows = {f"L = {loops}": pixels for loops, pixels in samples.items()}
        title = f"{name}, trained for {max_loops} loops"
        save(run.folder / f"samples-{name}.png", rows, labels, title=title)
    rows = {
        f"{name}, L = {loops}": pixels
        for name, samples in drawn.items()
        for loops, pixels in samples.items()
        if loops <= max_loops
    }
    title = f"one model each, trained for {max_loops} loops, drawn with L"
    save(run.folder / "samples.png", rows, labels, title=title)


def save_table(folder: Path, rows: list[Row]) -> str:
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


def save_model(run: Run, name: Any, model: Any, rows: list[Row]) -> None:
    """Writes the averaged model, with its tokenizer, its sampler, and what was measured."""
    task = run.task
    metadata = {
        "objective": name,
        "sampler": dataclasses.asdict(task.settings),
        "training": run.config(name),
        "results": rows,
    }
    folder = run.folder / ("model" if name == run.options.objective else f"model-{name}")
    elt_zoo.save(folder, model, task.model, tokenizer=task.tokenizer, metadata=metadata, overwrite=True)
