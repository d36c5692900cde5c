"""What the runs of the reproduction left: read, gathered over seeds, and written as CSV."""

import csv
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ._cases import Case

_ABOUT = ("data", "family", "num_layers", "max_loops", "objective", "curriculum")
"""What tells the cases of the paper's comparisons apart."""


class Results:
    """The figures of every case, seeds side by side."""

    def __init__(self, runs: Iterable[dict[str, Any]]):
        """**Arguments:** `runs`: what the reproduction saved for each case and seed."""
        self._runs: dict[Case, dict[int, dict[str, Any]]] = {}
        for run in runs:
            self._runs.setdefault(Case(**run["case"]), {})[run["seed"]] = run["figures"]

    def __contains__(self, case: Case) -> bool:
        return case in self._runs

    def seeds(self, case: Case) -> list[int]:
        return sorted(self._runs[case])

    def figures(self, case: Case) -> list[dict[str, Any]]:
        return [self._runs[case][seed] for seed in self.seeds(case)]

    def curve(self, case: Case) -> tuple[np.ndarray, np.ndarray]:
        """Steps, and the held-out loss, shape (seeds, steps, exits)."""
        curves = [each["curve"] for each in self.figures(case)]
        return np.array([int(step) for step in curves[0]]), np.array([list(curve.values()) for curve in curves])

    def losses(self, case: Case) -> np.ndarray:
        """The held-out loss of every exit at the end, shape (seeds, exits)."""
        return np.array([list(each["curve"].values())[-1] for each in self.figures(case)])

    def last_exit(self, case: Case) -> np.ndarray:
        """The same at L_max."""
        return self.losses(case)[:, case.max_loops - 1]

    def quality(self, case: Case, loops: int, figure: str) -> np.ndarray | None:
        """Of samples at a loop count; `None` where it was not measured on every seed."""
        qualities = [each["quality"] for each in self.figures(case)]
        if not all(str(loops) in quality for quality in qualities):
            return None
        return np.array([quality[str(loops)][figure] for quality in qualities])

    def groups(self) -> list[tuple[str, str]]:
        """Data sets and families, in the order of the runs."""
        return list(dict.fromkeys((case.data, case.family) for case in self._runs))

    def save(self, folder: Path) -> None:
        """Writes `exits.csv`, every exit at the end, and `curves.csv`, the first and the last exit on the way."""
        exits, curves = [], []
        for case in self._runs:
            for seed, figures in zip(self.seeds(case), self.figures(case), strict=True):
                about = {name: getattr(case, name) for name in _ABOUT} | {"seed": seed}
                steps = list(figures["curve"])
                for index, loss in enumerate(figures["curve"][steps[-1]]):
                    quality = figures["quality"].get(str(index + 1), {"accuracy": None, "distance": None})
                    costs = {name: figures[name] for name in ("parameters", "trunk_parameters", "sample_flops")}
                    exits.append(about | {"exit": index + 1, "heldout_loss": loss} | quality | costs)
                for step in steps:
                    losses = figures["curve"][step]
                    curves.append(
                        about | {"step": step, "first_exit": losses[0], "last_exit": losses[case.max_loops - 1]}
                    )
        for name, rows in (("exits.csv", exits), ("curves.csv", curves)):
            with (folder / name).open("w", newline="") as file:
                writer = csv.DictWriter(file, rows[0])
                writer.writeheader()
                writer.writerows(
                    {name: f"{value:.6g}" if isinstance(value, float) else value for name, value in row.items()}
                    for row in rows
                )


class Spread(NamedTuple):
    """The mean over seeds, infinite if a seed's is, and the standard deviation of a sample, 0 where there is none."""

    mean: float
    deviation: float
    seeds: int

    @classmethod
    def of(cls, values: Sequence[float] | np.ndarray) -> "Spread":
        array = np.asarray(values, np.float64)
        if np.isinf(array).any():
            return cls(np.inf, 0.0, len(array))
        return cls(float(array.mean()), float(array.std(ddof=1)) if len(array) > 1 else 0.0, len(array))

    def text(self, digits: int) -> str:
        if np.isinf(self.mean):
            return "∞"
        return f"{self.mean:.{digits}f}" + (f" ± {self.deviation:.{digits}f}" if self.seeds > 1 else "")


def read_results(paths: Iterable[Path], earlier: Iterable[dict[str, Any]] = ()) -> Results:
    """The runs of some files. Of `earlier` runs, those that are in no file."""
    return Results([*earlier, *(json.loads(path.read_text()) for path in paths)])
