"""Quality on digits at every loop count, over seeds: runs the main job for each and gathers what it measured.

    python benchmarks/digits_quality.py --runs runs/quality    # about four minutes a run on one CPU core, six in all

Runs that are in the folder already are only read. Writes `digits.csv` (every figure) and `digits.md` (ranges over
seeds).
"""

import argparse
import csv
import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
SAMPLE_SEEDS = 5
NAMES = {"dit": "DiT, 2N×4L, 8 × 8 pixels", "maskgit": "MaskGIT, 1N×4L, 16 tokens"}


def summary_of(runs: Path, family: str, seed: int) -> dict:
    folder = runs / f"{family}-{seed}"
    if not (folder / "summary.json").exists():
        arguments = ["--family", family, "--seed", str(seed), "--sample-seeds", str(SAMPLE_SEEDS), "--out", str(folder)]
        subprocess.run([sys.executable, "-m", "elt_zoo", "train", *arguments], check=True)
    return json.loads((folder / "summary.json").read_text())


def noise(rows: list[dict], column: str, digits: int) -> str:
    """The standard deviation over sampling seeds, averaged over the runs, where it was measured."""
    deviations = [row[f"{column}_std"] for row in rows if f"{column}_std" in row]
    return f" (± {sum(deviations) / len(deviations):.{digits}f})" if deviations else ""


def span(values: list[float], digits: int) -> str:
    low, high = f"{min(values):.{digits}f}", f"{max(values):.{digits}f}"
    return low if low == high else f"{low}–{high}"


def table(family: str, rows: list[dict], floor: dict) -> list[str]:
    lines = [
        f"**{NAMES[family]}**",
        "",
        "| Objective | L | held-out loss | digits Fréchet distance | accuracy | nearest distance | MFLOPs per sample |",
        "|---|---|---|---|---|---|---|",
    ]
    for objective in ("ilsd", "vanilla"):
        for loops in sorted({row["loops"] for row in rows}):
            mine = [row for row in rows if (row["objective"], row["loops"]) == (objective, loops)]
            cells = (
                span([row[column] for row in mine], digits) + noise(mine, column, digits)
                for column, digits in (
                    ("heldout_loss", 3),
                    ("digits_frechet_distance", 2),
                    ("accuracy", 3),
                    ("nearest_train_distance", 1),
                    ("megaflops_per_sample", 0),
                )
            )
            lines.append(f"| {objective} | {loops} | {' | '.join(cells)} |")
    lines.append(
        f"| real held-out digits | | | {floor['heldout']:.2f} | {floor['heldout_accuracy']:.3f} | "
        f"{floor['heldout_nearest_distance']:.1f} | |"
    )
    return [*lines, ""]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/quality"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    arguments = parser.parse_args()
    rows, lines, versions = [], [], {}
    for family in NAMES:
        summaries = {seed: summary_of(arguments.runs, family, seed) for seed in arguments.seeds}
        mine = [row | {"seed": seed} for seed, summary in summaries.items() for row in summary["results"]]
        rows += [{"family": family, **row} for row in mine]
        lines += table(family, mine, summaries[arguments.seeds[0]]["evaluator"]["real_digits"])
        versions = summaries[arguments.seeds[0]]["versions"]
    seeds = ", ".join(map(str, arguments.seeds))
    lines.append(
        f"Ranges over training seeds {seeds}; each is the mean of {SAMPLE_SEEDS} sets of 1,000 samples, whose standard "
        "deviation is in brackets. Real held-out digits: the mean of random sets of 350, 35 of each class; their "
        f"distance is larger for the size of the sets alone. jax {versions['jax']}, equinox {versions['equinox']}, "
        f"Python {versions['python']}, {versions['device']}."
    )
    arguments.out.mkdir(parents=True, exist_ok=True)
    with (arguments.out / "digits.csv").open("w", newline="") as handle:
        writer = csv.DictWriter(handle, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    (arguments.out / "digits.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
