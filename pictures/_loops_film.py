import io
import json
import os
from pathlib import Path
from typing import Any

import jax
import numpy as np

from elt_zoo.data import from_pixels
from elt_zoo.generator import Generator, load
from elt_zoo.storage import atomic_write

_METRIC = "digits_frechet_distance"
_NAMES = {
    "ilsd": "trained with ILSD: every loop is an exit",
    "vanilla": "trained for the last loop only",
    "unlooped": "the same layers, trained without loops",
}
_COLOURS = {"ilsd": "#1f6feb", "vanilla": "#c2410c", "unlooped": "#6b7280"}
_MILLISECONDS, _LAST = 1200, 2400
_COLOURS_OF_GIF = 64


def write_loops_film(run: str | os.PathLike, unlooped: str | os.PathLike, path: str | os.PathLike) -> None:
    """Writes a GIF with one picture for every loop count: samples of a run's model, of its vanilla baseline and of the
    same layers without loops, from the same noise; what a sample costs; and the distances that the runs measured.

    **Arguments:** `run`: the folder of a finished run of images with `--objective ilsd`; `unlooped`: that of one with
    `--objective vanilla --max-loops 1`; `path`: of the GIF.

    **Raises:** `FileNotFoundError` for a folder that is no finished run.
    """
    from PIL import Image

    run, unlooped = Path(run), Path(unlooped)
    models = {
        "ilsd": load(run / "model"),
        "vanilla": load(run / "model-vanilla"),
        "unlooped": load(unlooped / "model"),
    }
    loops = range(1, models["ilsd"].config.max_loops + 1)
    samples = {name: _samples(model, loops) for name, model in models.items() if name != "unlooped"}
    samples["unlooped"] = dict.fromkeys(loops, _samples(models["unlooped"], range(1, 2))[1])
    results = _results(run) + [
        row | {"objective": "unlooped", "loops": count} for row in _results(unlooped)[:1] for count in loops
    ]
    frames = [Image.open(io.BytesIO(_frame(results, samples, count))) for count in loops]
    # One palette for all pictures, so that nothing flickers.
    palette = frames[0].convert("RGB").quantize(_COLOURS_OF_GIF)
    first, *others = [frame.convert("RGB").quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    durations = [_MILLISECONDS] * len(others) + [_LAST]
    with atomic_write(path) as file:
        first.save(file, "GIF", save_all=True, append_images=others, duration=durations, loop=0, optimize=True)


def _results(run: Path) -> list[dict[str, Any]]:
    return json.loads((run / "summary.json").read_text())["results"]


def _samples(generator: Generator, loops: range) -> dict[int, np.ndarray]:
    """One image of each class in a row: bytes of (height, classes × width)."""
    labels = np.arange(generator.config.num_classes)
    rows = {}
    for count in loops:
        pixels = from_pixels(generator.sample(labels, loops=count, key=jax.random.key(0)))
        padded = np.pad(pixels[..., 0], ((0, 0), (1, 1), (1, 1)))
        rows[count] = np.concatenate(list(padded), axis=1)
    return rows


def _frame(results: list[dict[str, Any]], samples: dict[str, dict[int, np.ndarray]], loops: int) -> bytes:
    """One picture of the film, as a PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.0, 3.7), dpi=100, facecolor="white")
    grid = figure.add_gridspec(
        3, 2, width_ratios=(2.6, 1.0), left=0.02, right=0.985, top=0.8, bottom=0.14, wspace=0.16, hspace=0.3
    )
    plot, numbers = figure.add_subplot(grid[:, 1]), list(samples["ilsd"])
    for row, (objective, of_loops) in enumerate(samples.items()):
        axes = figure.add_subplot(grid[row, 0])
        axes.imshow(of_loops[loops], cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        axes.set_axis_off()
        axes.set_title(_NAMES[objective], fontsize=10, color=_COLOURS[objective], loc="left", pad=3)
        measured = {each["loops"]: each[_METRIC] for each in results if each["objective"] == objective}
        plot.plot(numbers, [measured[number] for number in numbers], color=_COLOURS[objective], linewidth=1.5)
        plot.plot([loops], [measured[loops]], "o", color=_COLOURS[objective], markersize=8)
    plot.set_yscale("log")
    plot.set_xticks(numbers)
    plot.set_xlabel("loops", fontsize=9)
    plot.set_title("Fréchet distance, lower is better", fontsize=9)
    plot.tick_params(labelsize=8)
    plot.spines[["top", "right"]].set_visible(False)
    costs = next(each for each in results if (each["objective"], each["loops"]) == ("ilsd", loops))
    said = f"{costs['megaflops_per_sample']:.0f} million operations, {costs['milliseconds_per_sample']:.1f} ms a sample"
    number = f"{loops} loop" + ("s" if loops > 1 else "")
    figure.text(0.02, 0.915, number, fontsize=17, weight="bold")
    figure.text(0.145, 0.92, said, fontsize=11, color="0.3")
    figure.text(0.02, 0.04, "Two layers, the same noise in each column; only the number of loops changes.", fontsize=9)
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()
