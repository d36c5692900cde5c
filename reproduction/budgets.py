"""What loops and sampling steps are worth together: the distance of samples at every pair of them, beside its cost.

    python -m reproduction.loops --data MNIST --mnist /data/mnist --steps 5500 --rates 0.004 0.008 0.016 \\
        --models "2 unique layers" "re-injected × 1/2"
    python -m reproduction.budgets --data MNIST --mnist /data/mnist

A loop more and a step more both cost compute. This samples the models that the study of loops has left in its folder,
the elastic one at every loop count and its layers without loops, with few and with many steps. It says which pairs no
other beats in both distance and compute: of all models, and of the same model, for those who have only that one. Writes
`budgets-<data>.csv`, `.md` and `.png`.
"""

import argparse
import csv
import dataclasses
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator
from tqdm import tqdm

from elt_zoo.generator import Generator
from elt_zoo.generator import load as load_generator
from elt_zoo.profile import environment, profile

from ._cases import FAMILIES, Case
from ._data import CLASSES, Judge
from ._options import ROOT
from ._pool import MODEL, result_path
from ._results import Results, Spread
from ._train import load
from .loops import best, stem_of, wanted_models

STEPS = (2, 4, 8, 16, 32)
MODELS = ("2 unique layers", "re-injected × 1/2")


class Point(NamedTuple):
    """One model at one budget: what a sample costs, and the distances of its seeds."""

    model: str
    steps: int
    loops: int
    flops: int
    distances: tuple[float, ...]

    @property
    def spread(self) -> Spread:
        return Spread.of(self.distances)


def trained(runs: Path, case: Case) -> dict[int, Path]:
    """The models that the study left of a case by seed, at its best rate.

    **Raises:** `FileNotFoundError` if there are none.
    """
    records = [json.loads(path.read_text()) for path in sorted(runs.glob("*/result.json"))]
    mine = [record for record in records if dataclasses.replace(Case(**record["case"]), learning_rate=None) == case]
    if mine:
        results, rates = Results(mine), [record["case"]["learning_rate"] for record in mine]
        chosen = best(results, case, rates)
        models = {seed: result_path(runs, chosen, seed).with_name(MODEL) for seed in results.seeds(chosen)}
        if all(model.exists() for model in models.values()):
            return models
    raise FileNotFoundError(f"{runs} holds no model of {case.name}: train it with `python -m reproduction.loops`.")


def measure(name: str, generators: Sequence[Generator], judge: Judge, *, steps: int, loops: int, count: int) -> Point:
    """The distance of `count` samples of every seed's model."""
    classes = np.tile(np.arange(CLASSES, dtype=np.int32), count // CLASSES)
    samples = [
        each.sample(classes, loops=loops, steps=steps, key=jax.random.key(1), batch_size=len(classes))
        for each in generators
    ]
    flops = profile(generators[0].config, loops=loops, steps=steps).sample_flops
    return Point(name, steps, loops, flops, tuple(judge(pixels, classes)["distance"] for pixels in samples))


def front(points: Iterable[Point]) -> list[Point]:
    """Those that no other beats in both, from the cheapest on."""
    kept: list[Point] = []
    for point in sorted(points, key=lambda point: (point.flops, point.spread.mean)):
        if not kept or point.spread.mean < kept[-1].spread.mean:
            kept.append(point)
    return kept


def fronts_of_models(points: Sequence[Point]) -> list[Point]:
    """Those that no other of the same model beats in both."""
    models = dict.fromkeys(point.model for point in points)
    return [each for model in models for each in front(point for point in points if point.model == model)]


def table(points: Sequence[Point], on_front: Sequence[Point], on_own_front: Sequence[Point]) -> str:
    """Distances by steps and loops, those on the front in bold, those only on that of their model in italics, as
    Markdown.
    """
    steps = list(dict.fromkeys(point.steps for point in points))
    rows = list(dict.fromkeys((point.model, point.loops) for point in points))
    header = ["Model", "Loops", *(f"{each} steps" for each in steps)]
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    for model, loops in rows:
        mine = {point.steps: point for point in points if (point.model, point.loops) == (model, loops)}
        cells = []
        for point in (mine[each] for each in steps):
            mark = "**" if point in on_front else "*" if point in on_own_front else ""
            cells.append(f"{mark}{point.spread.text(2)}{mark}")
        lines.append(f"| {model} | {loops} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def plot(path: Path, points: Sequence[Point], on_front: Sequence[Point]) -> None:
    """Distance against compute, a curve for each model and loop count."""
    figure = Figure(figsize=(8.0, 4.4), layout="constrained")
    axes = figure.subplots()
    looped = [point.loops for point in points if point.model != points[0].model]
    for model, loops in dict.fromkeys((point.model, point.loops) for point in points):
        mine = [point for point in points if (point.model, point.loops) == (model, loops)]
        plain = model == points[0].model
        axes.errorbar(
            [point.flops / 1e9 for point in mine],
            [point.spread.mean for point in mine],
            [point.spread.deviation for point in mine],
            marker="s" if plain else "o",
            linestyle="--" if plain else "-",
            color="0.45" if plain else f"C{loops - min(looped)}",
            label=model if plain else f"elastic, L = {loops}",
            capsize=2,
        )
    best = {"s": 110, "facecolors": "none", "edgecolors": "0.2", "label": "on the front", "zorder": 3}
    axes.scatter([each.flops / 1e9 for each in on_front], [each.spread.mean for each in on_front], **best)
    for point in points:
        if point.loops == max(each.loops for each in points):
            place = (point.flops / 1e9, point.spread.mean)
            axes.annotate(f"{point.steps} steps", place, textcoords="offset points", xytext=(5, 6), fontsize=8)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.margins(0.08)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.minorticks_off()
    axes.set_xlabel("GFLOPs per sample")
    axes.set_ylabel("distance, lower is better")
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=("digits", "MNIST", "CIFAR-10"), default="digits")
    parser.add_argument("--mnist", help="the folder of t10k-images-idx3-ubyte.gz and its labels")
    parser.add_argument("--cifar10", help="CIFAR-10: its official files, or a folder or archive of its images by class")
    parser.add_argument("--family", choices=FAMILIES, default="dit")
    parser.add_argument("--optimizer", default="muon", help="of the study's runs")
    parser.add_argument("--models", nargs="+", metavar="NAME", default=MODELS, help="as the study's table names them")
    parser.add_argument("--sampling-steps", type=int, nargs="+", default=STEPS)
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--runs", type=Path, default=Path("runs/loops"))
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "reproduction")
    arguments = parser.parse_args()
    if arguments.samples < 100 or arguments.samples % CLASSES:
        parser.error(f"--samples {arguments.samples} must be at least 100 and a multiple of the {CLASSES} classes.")
    known = wanted_models(parser, arguments)
    models = {name: trained(arguments.runs, case) for name, case in known.items()}
    _, judge = load(arguments.data, {"MNIST": arguments.mnist, "CIFAR-10": arguments.cifar10}.get(arguments.data))
    points = []
    for name, paths in models.items():
        generators = [load_generator(path) for path in paths.values()]
        loops = range(1, known[name].max_loops + 1)
        for steps, count in tqdm([(steps, count) for count in loops for steps in arguments.sampling_steps], desc=name):
            points.append(measure(name, generators, judge, steps=steps, loops=count, count=arguments.samples))
    arguments.out.mkdir(parents=True, exist_ok=True)
    stem = arguments.out / f"budgets-{stem_of(arguments)}"
    on_front, on_own_front = front(points), fronts_of_models(points)
    with stem.with_suffix(".csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("model", "steps", "loops", "flops_per_sample", "seed", "distance", "on_front", "on_own_front"))
        for point in points:
            for seed, distance in zip(models[point.model], point.distances, strict=True):
                writer.writerow((*point[:4], seed, f"{distance:.6g}", point in on_front, point in on_own_front))
    seeds = ", ".join(map(str, next(iter(models.values()))))
    note = f"Mean ± standard deviation over models of seeds {seeds}; {arguments.samples:,} samples. "
    note += "Bold: no other point is better in both; italic: no other of the same model."
    text = table(points, on_front, on_own_front) + f"\n{note} {environment()}.\n"
    stem.with_suffix(".md").write_text(text)
    plot(stem.with_suffix(".png"), points, on_front)
    print(text)


if __name__ == "__main__":
    try:
        main()
    except (ValueError, FileNotFoundError) as error:
        raise SystemExit(f"error: {error}") from None
