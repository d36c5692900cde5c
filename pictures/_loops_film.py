import csv
import hashlib
import io
import os
import time
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np

from elt_zoo.data import from_pixels
from elt_zoo.generator import Generator, load
from elt_zoo.profile import profile
from elt_zoo.storage import atomic_write, write_json

from ._sheets import hash_generator

ELASTIC = "mnist-dit"
_STEPS = 16
_NAMES = {"elastic": "elastic: every loop is an exit", "unlooped": "the same layers, trained without loops"}
_COLOURS = {"elastic": "#1f6feb", "unlooped": "#6b7280"}
_MILLISECONDS, _LAST = 1200, 2400
_COLOURS_OF_GIF = 64


def describe(budgets: str | os.PathLike) -> dict[str, str]:
    """What the film depends on: the elastic model and the distances. The other model is not in the repository."""
    return {"sampled": hash_generator(load(ELASTIC)), "budgets": hashlib.sha256(Path(budgets).read_bytes()).hexdigest()}


def write_loops_film(unlooped: str | os.PathLike, budgets: str | os.PathLike, path: str | os.PathLike) -> None:
    """Writes a GIF with one picture for every loop count: samples of the bundled elastic model and of the same layers
    without loops, from the same noise; what a sample costs on this machine, which should be idle; and distances over
    training seeds. A JSON file beside it says what the film depends on.

    **Arguments:** `unlooped`: the folder of the model without loops; `budgets`: the CSV of `reproduction.budgets`, the
    model without loops first; `path`: of the GIF.

    **Raises:** `FileNotFoundError` for files that are not there.
    """
    from PIL import Image

    elastic, plain = load(ELASTIC), load(unlooped)
    loops = range(1, elastic.config.max_loops + 1)
    samples = {"elastic": _samples(elastic, loops), "unlooped": dict.fromkeys(loops, _samples(plain, range(1, 2))[1])}
    measured = _distances(Path(budgets))
    of_plain, of_elastic = measured.values()
    distances = {"elastic": of_elastic, "unlooped": dict.fromkeys(loops, of_plain[1])}
    costs = {
        count: f"{profile(elastic.config, loops=count, steps=_STEPS).sample_flops / 1e6:.0f} million operations, "
        f"{_milliseconds(elastic, count):.1f} ms a sample"
        for count in loops
    }
    frames = [Image.open(io.BytesIO(_frame(distances, samples, costs, count))) for count in loops]
    # One palette for all pictures, so that nothing flickers.
    palette = frames[0].convert("RGB").quantize(_COLOURS_OF_GIF)
    first, *others = [frame.convert("RGB").quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    durations = [_MILLISECONDS] * len(others) + [_LAST]
    with atomic_write(path) as file:
        first.save(file, "GIF", save_all=True, append_images=others, duration=durations, loop=0, optimize=True)
    digest = hashlib.sha256(Path(path).read_bytes()).hexdigest()
    write_json(Path(path).with_suffix(".json"), describe(budgets) | {"sha256": digest})


def _milliseconds(generator: Generator, loops: int) -> float:
    """For one of ten samples that are made at once: the median of 15 calls."""
    labels, times = np.arange(generator.config.num_classes), []
    for _ in range(16):
        started = time.perf_counter()
        generator.sample(labels, loops=loops, steps=_STEPS, key=jax.random.key(0))
        times.append(time.perf_counter() - started)
    return 1e3 * float(np.median(times[1:])) / len(labels)


def _distances(budgets: Path) -> dict[str, dict[int, np.ndarray]]:
    """By model and loop count, one for each seed."""
    with budgets.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if int(row["steps"]) == _STEPS]
    distances: dict[str, dict[int, np.ndarray]] = {}
    for row in rows:
        of_model = distances.setdefault(row["model"], {})
        loops = int(row["loops"])
        of_model[loops] = np.append(of_model.get(loops, np.empty(0)), float(row["distance"]))
    return distances


def _samples(generator: Generator, loops: range) -> dict[int, np.ndarray]:
    """One image of each class in a row: bytes of (height, classes × width)."""
    labels = np.arange(generator.config.num_classes)
    rows = {}
    for count in loops:
        pixels = from_pixels(generator.sample(labels, loops=count, key=jax.random.key(0)))
        padded = np.pad(pixels[..., 0], ((0, 0), (1, 1), (1, 1)))
        rows[count] = np.concatenate(list(padded), axis=1)
    return rows


def _frame(
    distances: Mapping[str, Mapping[int, np.ndarray]],
    samples: Mapping[str, Mapping[int, np.ndarray]],
    costs: Mapping[int, str],
    loops: int,
) -> bytes:
    """One picture of the film, as a PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.0, 3.0), dpi=100, facecolor="white")
    grid = figure.add_gridspec(
        2, 2, width_ratios=(2.6, 1.0), left=0.02, right=0.985, top=0.77, bottom=0.17, wspace=0.16, hspace=0.35
    )
    plot, numbers = figure.add_subplot(grid[:, 1]), list(samples["elastic"])
    for row, (name, of_loops) in enumerate(samples.items()):
        axes = figure.add_subplot(grid[row, 0])
        axes.imshow(of_loops[loops], cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        axes.set_axis_off()
        axes.set_title(_NAMES[name], fontsize=10, color=_COLOURS[name], loc="left", pad=3)
        means = np.array([distances[name][number].mean() for number in numbers])
        spreads = np.array([distances[name][number].std(ddof=1) for number in numbers])
        plot.plot(numbers, means, color=_COLOURS[name], linewidth=1.5)
        plot.fill_between(numbers, means - spreads, means + spreads, color=_COLOURS[name], alpha=0.2, linewidth=0)
        plot.plot([loops], [means[numbers.index(loops)]], "o", color=_COLOURS[name], markersize=8)
    plot.set_yscale("log")
    plot.set_yticks([1.5, 2, 3, 5, 8], ["1.5", "2", "3", "5", "8"])
    plot.minorticks_off()
    plot.set_xticks(numbers)
    plot.set_xlabel("loops", fontsize=9)
    plot.set_title("Fréchet distance, lower is better", fontsize=9)
    plot.tick_params(labelsize=8)
    plot.spines[["top", "right"]].set_visible(False)
    number = f"{loops} loop" + ("s" if loops > 1 else "")
    figure.text(0.02, 0.9, number, fontsize=17, weight="bold")
    figure.text(0.145, 0.905, costs[loops], fontsize=11, color="0.3")
    figure.text(0.02, 0.05, "Two layers, the same noise in each column; only the number of loops changes.", fontsize=9)
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()
