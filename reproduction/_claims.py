"""What the paper says of looped models, or leaves open, and the figures of ours that bear on it, seed by seed."""

import dataclasses
from collections.abc import Callable

import numpy as np

from ._cases import Case, curriculum_cases, depth_cases, exit_cases, single_case
from ._results import Results, Spread

PASSES = 0.10
"""An exit is as good as another if its held-out loss is at most so much larger."""


@dataclasses.dataclass(frozen=True)
class Claim:
    """A sentence, where the paper says it, and how to see it in the results.

    `measure` gives one figure per seed, or `None` where the runs for it are absent; `holds` says what of it agrees.
    """

    text: str
    paper: str
    figure: str
    measure: Callable[[Results, str, str], np.ndarray | None]
    holds: Callable[[np.ndarray], np.ndarray]

    def verdict(self, results: Results, data: str, family: str) -> str:
        """Whether all seeds, none or some agree, and the figure."""
        values = self.measure(results, data, family)
        if values is None:
            return "–"
        agreeing = self.holds(values)
        word = "yes" if agreeing.all() else "no" if not agreeing.any() else f"{agreeing.sum()} of {len(agreeing)} seeds"
        if np.isinf(values).any() and not np.isinf(values).all():
            return f"**{word}**: {values.min():.3f} to ∞"
        return f"**{word}**: {Spread.of(values).text(3)}"


def _with_runs(measure: Callable[..., np.ndarray], *needs: Callable[[str, str], Case]):
    """A measure of the cases that `needs` name, where all were run."""

    def measured(results: Results, data: str, family: str) -> np.ndarray | None:
        cases = [need(data, family) for need in needs]
        return measure(results, *cases) if all(case in results for case in cases) else None

    return measured


def _objective(index: int) -> Callable[[str, str], Case]:
    return lambda data, family: exit_cases(data, family)[index]


_ilsd, _vanilla, _deep_supervision, _random_depth = map(_objective, range(4))


def _size(place: int) -> Callable[[str, str], Case]:
    return lambda data, family: depth_cases(data, family)[place]


_unique, _two_loops, _one_layer = _size(0), _size(1), _size(-1)


def _schedule(index: int) -> Callable[[str, str], Case]:
    return lambda data, family: curriculum_cases(data, family)[index]


def _trained(results: Results, case: Case) -> np.ndarray:
    """Losses of exits 1 to L_max, shape (seeds, L_max)."""
    return results.losses(case)[:, : case.max_loops]


def _past(results: Results, case: Case) -> np.ndarray:
    return results.losses(case)[:, case.max_loops :] / results.last_exit(case)[:, None]


def _ratio_at_last_exit(results: Results, case: Case, other: Case) -> np.ndarray:
    return results.last_exit(case) / results.last_exit(other)


def _ratio_of_means(results: Results, case: Case, other: Case) -> np.ndarray:
    return _trained(results, case).mean(1) / _trained(results, other).mean(1)


def steps_to_reach(results: Results, case: Case, target: np.ndarray) -> np.ndarray:
    """The first step at which the last exit is as good as `target`, one for each seed, between milestones by straight
    lines; infinite if never.
    """
    steps, curve = results.curve(case)
    reached = []
    for losses, goal in zip(curve[:, :, case.max_loops - 1], target, strict=True):
        below = np.flatnonzero(losses <= goal)
        if not len(below):
            reached.append(np.inf)
        elif below[0] == 0:
            reached.append(float(steps[0]))
        else:
            after = below[0]
            share = (losses[after - 1] - goal) / (losses[after - 1] - losses[after])
            reached.append(float(steps[after - 1] + share * (steps[after] - steps[after - 1])))
    return np.array(reached)


def _share_of_steps(results: Results, case: Case, unique: Case) -> np.ndarray:
    return steps_to_reach(results, case, results.last_exit(unique)) / results.curve(unique)[0][-1]


CLAIMS = (
    Claim(
        "Trained at L_max alone, a looped model fails at one loop",
        "Figures 1, 7, 8",
        "loss of vanilla looping at L = 1 over that at L_max, above 1.1",
        _with_runs(lambda results, case: _trained(results, case)[:, 0] / results.last_exit(case), _vanilla),
        lambda values: values > 1.0 + PASSES,
    ),
    Claim(
        "With ILSD every exit is good",
        "Figures 1, 7, 8",
        "loss of ILSD at its worst exit over that at L_max, at most 1.1",
        _with_runs(lambda results, case: _trained(results, case).max(1) / results.last_exit(case), _ilsd),
        lambda values: values <= 1.0 + PASSES,
    ),
    Claim(
        "ILSD costs nothing at L_max",
        "not stated",
        "loss at L_max of ILSD over that of vanilla looping, at most 1",
        _with_runs(_ratio_at_last_exit, _ilsd, _vanilla),
        lambda values: values <= 1.0,
    ),
    Claim(
        "ILSD beats supervising every exit",
        "not compared",
        "mean loss over exits 1 to L_max, of ILSD over that of deep supervision, below 1",
        _with_runs(_ratio_of_means, _ilsd, _deep_supervision),
        lambda values: values < 1.0,
    ),
    Claim(
        "ILSD beats a random depth in each step",
        "not compared",
        "mean loss over exits 1 to L_max, of ILSD over that of random depth, below 1",
        _with_runs(_ratio_of_means, _ilsd, _random_depth),
        lambda values: values < 1.0,
    ),
    Claim(
        "Half the layers, looped twice, are as good as unique ones",
        "FID 2.83 against 3.43 (16N×2L)",
        "loss at the last exit over that of the unique-depth model, at most 1",
        _with_runs(_ratio_at_last_exit, _two_loops, _unique),
        lambda values: values <= 1.0,
    ),
    Claim(
        "So are a quarter of the layers, looped four times",
        "FID 3.16 against 3.43 (8N×4L)",
        "loss at the last exit over that of the unique-depth model, at most 1",
        _with_runs(_ratio_at_last_exit, _ilsd, _unique),
        lambda values: values <= 1.0,
    ),
    Claim(
        "Looping improves on the same layers without loops",
        "FID 2.83 against 3.87 (16N×2L)",
        "loss at the last exit over that of the layers without loops, below 1",
        _with_runs(_ratio_at_last_exit, _ilsd, single_case),
        lambda values: values < 1.0,
    ),
    Claim(
        "A single layer is too few, whatever L",
        "FID 10.30 against 3.43 (1N×32L)",
        "loss of 1N at the last exit over that of the unique-depth model, above 1.1",
        _with_runs(_ratio_at_last_exit, _one_layer, _unique),
        lambda values: values > 1.0 + PASSES,
    ),
    Claim(
        "How fast λ falls matters little",
        "stated for gradual schedules",
        "mean loss over exits with λ falling over the first half, over the same with the whole run, within 1%",
        _with_runs(_ratio_of_means, _schedule(1), _schedule(0)),
        lambda values: np.abs(values - 1.0) <= 0.01,
    ),
    Claim(
        "Distilling is better than ground truth alone",
        "an ablation, Figure 13",
        "mean loss over exits with λ from 1 to 0, over the same with λ = 1, below 1",
        _with_runs(_ratio_of_means, _schedule(0), _schedule(2)),
        lambda values: values < 1.0,
    ),
    Claim(
        "Distilling alone is not enough",
        "an ablation, Figure 13",
        "mean loss over exits with λ = 0, over the same with λ from 1 to 0, above 1",
        _with_runs(_ratio_of_means, _schedule(4), _schedule(0)),
        lambda values: values > 1.0,
    ),
    Claim(
        "A few loops more than trained for help",
        "UCF-101, best FVD at L = 6 of 4",
        "loss of ILSD at its best exit past L_max over that at L_max, below 1",
        _with_runs(lambda results, case: _past(results, case).min(1), _ilsd),
        lambda values: values < 1.0,
    ),
    Claim(
        "Far more loops hurt",
        "UCF-101",
        "loss of ILSD at 2·L_max over that at L_max, above 1",
        _with_runs(lambda results, case: _past(results, case)[:, -1], _ilsd),
        lambda values: values > 1.0,
    ),
    Claim(
        "Looped models converge faster",
        "Figure 6: 2 times (16N×2L)",
        "share of the steps after which half the layers, looped twice, reach the unique-depth model's last loss (∞: "
        "not within them)",
        _with_runs(_share_of_steps, _two_loops, _unique),
        lambda values: values < 1.0,
    ),
)
