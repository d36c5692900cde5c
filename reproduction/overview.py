"""What loops are worth wherever they were tried, in one table.

    python -m reproduction.overview

Reads the CSV files of `python -m reproduction.loops` and trains nothing. On each data set and family, a looped model of
the recommended recipe stands beside its two layers without loops, and beside eight unique layers, where they were
trained: each at the rate of its lowest mean, of the rates that were tried on the most seeds. Writes
`loops-overview.md`.
"""

import argparse
import csv
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ._cases import Case
from ._options import ROOT
from ._results import Spread
from .loops import UNIQUE, advantage, all_models, exponent

OPTIMIZER = "muon"
REINJECTED, LIGHT_STUDENT = "re-injected × 1/2", "the paper's, student × 1/4"
_FAMILIES = {"dit": "diffusion", "maskgit": "masked"}
_LABELS = {REINJECTED: "re-injected", LIGHT_STUDENT: "light student"}


class Bed(NamedTuple):
    """Where loops were tried: data, family and length of the training, and the looped model to show, by its name."""

    data: str
    family: str
    steps: int
    model: str

    @property
    def file(self) -> str:
        masked = "-masked" if self.family == "maskgit" else ""
        return f"loops-{self.data.lower()}{masked}-{OPTIMIZER}-{self.steps}.csv"

    @property
    def case(self) -> Case:
        return all_models(self.data, OPTIMIZER, self.family)[self.model]


BEDS = (
    Bed("MNIST", "dit", 5500, REINJECTED),
    Bed("CIFAR-10", "dit", 1500, REINJECTED),
    Bed("digits", "dit", 1500, REINJECTED),
    Bed("digits", "dit", 4000, LIGHT_STUDENT),
    Bed("MNIST", "maskgit", 5500, LIGHT_STUDENT),
    Bed("MNIST", "maskgit", 3000, LIGHT_STUDENT),
    Bed("CIFAR-10", "maskgit", 1500, LIGHT_STUDENT),
)
"""The tables of the page but that of growing loops: re-injection in diffusion, where it was trained, else the light
student."""


def read_losses(path: Path) -> dict[str, np.ndarray]:
    """The held-out losses of every model of a CSV file at its best rate, shape (seeds, exits)."""
    found: dict[str, dict[str, dict[str, dict[int, float]]]] = {}
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            seeds = found.setdefault(row["model"], {}).setdefault(row["learning_rate"], {})
            seeds.setdefault(row["seed"], {})[int(row["exit"])] = float(row["heldout_loss"])
    losses = {}
    for model, rates in found.items():
        tried = [
            np.array([list(dict(sorted(exits.items())).values()) for exits in each.values()]) for each in rates.values()
        ]
        most = max(map(len, tried))
        losses[model] = min((each for each in tried if len(each) == most), key=lambda each: last_exit(each).mean())
    return losses


def last_exit(losses: np.ndarray) -> np.ndarray:
    """At L_max; the study measures 2·L_max exits."""
    return losses[:, losses.shape[1] // 2 - 1]


def gain(losses: np.ndarray, others: np.ndarray) -> str:
    """By how much losses are below others, short enough for a cell."""
    return advantage(losses, others).replace("standard errors", "SE")


def row(bed: Bed, losses: dict[str, np.ndarray]) -> list[str]:
    """The cells of one bed."""
    unique = {count: last_exit(losses[name]) for count in UNIQUE if (name := f"{count} unique layers") in losses}
    looped, layers = losses[bed.model], bed.case.num_layers
    final, deepest = last_exit(looped), max(unique)
    depth = share = worth = "–"
    if deepest > layers:
        depth = gain(unique[deepest], unique[layers])
        gained, all_of_it = (unique[layers].mean() - each.mean() for each in (final, unique[deepest]))
        share = f"{gained / all_of_it:.0%}"
        means = {count: float(each.mean()) for count, each in unique.items()}
        worth = Spread.of([exponent(bed.case, float(loss), means) for loss in final]).text(2)
    change = [f"{each.mean() / final.mean() - 1.0:+.1%}" for each in (looped[:, 0], looped[:, -1])]
    about = [bed.data, _FAMILIES[bed.family], f"{bed.steps:,}", str(len(final)), _LABELS[bed.model]]
    return [*about, gain(final, unique[layers]), depth, share, worth, *change]


def table(folder: Path) -> str:
    """All beds, as Markdown."""
    header = ["Data", "Family", "Steps", "Seeds", "Looped model", "Loops gain", "Eight unique layers gain"]
    header += ["Loops' share of that", "φ", "Loss at one loop", "Loss at 2·L_max"]
    rows = [header, ["---"] * len(header), *(row(bed, read_losses(folder / bed.file)) for bed in BEDS)]
    return "".join("| " + " | ".join(cells) + " |\n" for cells in rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=ROOT / "docs" / "reproduction", help="of the CSV files")
    folder = parser.parse_args().folder
    text = table(folder)
    (folder / "loops-overview.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
