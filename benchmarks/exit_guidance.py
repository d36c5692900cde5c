"""What guidance by an early exit does to digits, beside classifier-free guidance, over training and sampling seeds.

    python benchmarks/digits_quality.py --runs runs/quality          # trains the models
    python benchmarks/exit_guidance.py --runs runs/quality           # about a minute a model on two CPU cores

Models with deep supervision are trained when they are not in the folder yet. With `--objectives` only those models are
sampled, and the rows of the others are kept.

Writes `exit-guidance.csv` (every set of samples) and `exit-guidance.md` (means, and what a seed changes).
"""

import argparse
import csv
import itertools
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
from timing import write_csv

from elt_zoo import Generator, load
from elt_zoo.generator import ExitGuidance
from elt_zoo.metrics import DigitsEvaluator
from elt_zoo.profile import environment

ROOT = Path(__file__).parents[1]
FAMILIES, OBJECTIVES = ("dit", "maskgit"), ("ilsd", "deep_supervision", "vanilla")
CLASS_SCALES, EXIT_SCALES = (1.0, 1.5), (1.0, 1.25, 1.5, 2.0)
LABELS = np.tile(np.arange(10, dtype=np.int32), 100)


def trained(runs: Path, family: str, seed: int, objective: str) -> Generator:
    """The model of a run. Its vanilla baseline lies beside that with ILSD."""
    if objective != "deep_supervision":
        return load(runs / f"{family}-{seed}" / ("model" if objective == "ilsd" else "model-vanilla"))
    folder = runs / f"{family}-{seed}-{objective}"
    if not (folder / "summary.json").exists():
        arguments = ["--family", family, "--objective", objective, "--no-compare", "--seed", str(seed)]
        subprocess.run([sys.executable, "-m", "elt_zoo", "train", *arguments, "--out", str(folder)], check=True)
    return load(folder / "model")


def measured(generator: Generator, evaluate: DigitsEvaluator, class_scale: float, exit_scale: float, seed: int) -> dict:
    """The quality of 1,000 samples at L_max, guided by the exit after one loop."""
    pixels = generator.sample(
        LABELS,
        guidance=class_scale,
        exit_guidance=None if exit_scale == 1.0 else ExitGuidance(exit_scale, exit=1),
        batch_size=500,
        key=jax.random.key(seed),
    )
    quality = evaluate(pixels, LABELS)
    return {"distance": quality.frechet_distance, "accuracy": quality.accuracy}


def known(path: Path) -> list[dict]:
    """The rows of an earlier run."""
    numbers = {"training_seed": int, "sample_seed": int, "class_scale": float, "exit_scale": float}
    numbers |= {"distance": float, "accuracy": float}
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return [
        {name: numbers.get(name, str)(value) for name, value in row.items() if name != "environment"} for row in rows
    ]


def table(rows: list[dict]) -> list[str]:
    lines = [
        "| Model | Guidance by class | none by exit | "
        + " | ".join(f"by exit, s = {scale:g}" for scale in EXIT_SCALES[1:])
        + " |",
        "|---" * (len(EXIT_SCALES) + 2) + "|",
    ]
    for family, objective, class_scale in itertools.product(FAMILIES, OBJECTIVES, CLASS_SCALES):
        cells = []
        for exit_scale in EXIT_SCALES:
            given = {"family": family, "objective": objective, "class_scale": class_scale, "exit_scale": exit_scale}
            mine = [row for row in rows if given.items() <= row.items()]
            trained = sorted({row["training_seed"] for row in mine})
            means = [np.mean([row["distance"] for row in mine if row["training_seed"] == seed]) for seed in trained]
            accuracy = np.mean([row["accuracy"] for row in mine])
            cells.append(f"{np.mean(means):.2f} ± {np.std(means, ddof=1):.2f} ({accuracy:.3f})")
        name = {"dit": "diffusion", "maskgit": "masked"}[family]
        guided = "none" if class_scale == 1.0 else f"s = {class_scale:g}"
        lines.append(f"| {name}, {objective.replace('_', ' ')} | {guided} | {' | '.join(cells)} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/quality"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="training seeds, at least two")
    parser.add_argument("--objectives", nargs="+", choices=OBJECTIVES, default=list(OBJECTIVES))
    parser.add_argument("--sample-seeds", type=int, default=1)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    arguments = parser.parse_args()
    if len(arguments.seeds) < 2 or arguments.sample_seeds < 1:
        parser.error("--seeds needs two training seeds or more, and --sample-seeds at least 1.")
    evaluate, rows = DigitsEvaluator(), []
    if set(arguments.objectives) != set(OBJECTIVES):
        rows = [
            row for row in known(arguments.out / "exit-guidance.csv") if row["objective"] not in arguments.objectives
        ]
    for family, seed, objective in itertools.product(FAMILIES, arguments.seeds, arguments.objectives):
        generator = trained(arguments.runs, family, int(seed), objective)
        settings = itertools.product(CLASS_SCALES, EXIT_SCALES, range(arguments.sample_seeds))
        for class_scale, exit_scale, sample_seed in settings:
            about = {"family": family, "objective": objective, "training_seed": seed, "sample_seed": sample_seed}
            about |= {"class_scale": class_scale, "exit_scale": exit_scale}
            rows.append(about | measured(generator, evaluate, class_scale, exit_scale, sample_seed))
        print(rows[-1], flush=True)
    seeds = ", ".join(map(str, arguments.seeds))
    note = (
        f"Digits Fréchet distance at L_max, lower is better (in brackets the accuracy), of 1,000 samples: the mean "
        f"over training seeds {seeds} and {arguments.sample_seeds} sampling seed(s), ± the standard deviation over "
        f"training seeds. The early exit is that after one loop. {environment()}."
    )
    lines = [*table(rows), "", note]
    arguments.out.mkdir(parents=True, exist_ok=True)
    write_csv(arguments.out / "exit-guidance.csv", rows)
    (arguments.out / "exit-guidance.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
