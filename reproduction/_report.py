"""The tables and plots of the reproduction."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from einops import rearrange
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ._cases import Case, curriculum_cases, depth_cases, exit_cases, single_case
from ._claims import CLAIMS, steps_to_reach
from ._data import CLASSES
from ._results import Results, Spread

_LABELS = {
    "ilsd": "ILSD",
    "vanilla": "vanilla",
    "deep_supervision": "deep supervision",
    "random_depth": "random depth",
}
_FAMILIES = {"dit": "diffusion", "maskgit": "masked"}
_GREY = plt.get_cmap("gray").with_extremes(bad="C0")
_SCHEDULES = {"linear": "1 to 0, linear", "linear over the first half": "1 to 0, linear over the first half"}
_UNITS = {"dit": "held-out loss", "maskgit": "held-out loss (nats per token)"}


def save_report(folder: Path, results: Results, floors: dict[str, dict[str, float]], note: str) -> None:
    """Writes every table as Markdown, each with the note on where it was measured, and every plot."""
    tables = {
        "claims": claims_table(results),
        "exits": "\n\n".join(_titled(results, group, exits_table) for group in results.groups()),
        "quality": "\n\n".join(_titled(results, group, quality_table) for group in results.groups()) + _floors(floors),
        "depth": "\n\n".join(_titled(results, group, depth_table) for group in results.groups()),
        "curriculum": "\n\n".join(_titled(results, group, curriculum_table) for group in _with_curricula(results)),
        "convergence": "\n\n".join(_titled(results, group, convergence_table) for group in results.groups()),
    }
    for name, text in tables.items():
        (folder / f"{name}.md").write_text(f"{text}\n\n{note}\n")
    _plot(folder / "exits.png", results, results.groups(), plot_exits)
    _plot(folder / "depth.png", results, _with_curricula(results), plot_depth)
    _plot(folder / "convergence.png", results, results.groups(), plot_convergence)


def _with_curricula(results: Results) -> list[tuple[str, str]]:
    """Data sets and families on which every size and schedule was trained."""
    return [group for group in results.groups() if all(case in results for case in curriculum_cases(*group))]


def _title(group: tuple[str, str]) -> str:
    data, family = group
    return f"{data}, {_FAMILIES[family]}"


def _titled(results: Results, group: tuple[str, str], table: Callable[[Results, str, str], str]) -> str:
    return f"**{_title(group)}**\n\n{table(results, *group)}"


def _table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    lines = [list(header), *map(list, rows)]
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _floors(floors: dict[str, dict[str, float]]) -> str:
    lines = [
        f"Real held-out images of {data}, 35 of each class: distance {floor['distance']:.2f}, accuracy "
        f"{floor['accuracy']:.3f}."
        for data, floor in floors.items()
    ]
    return "\n\n" + " ".join(lines)


def _known(results: Results, cases: Sequence[Case]) -> list[Case]:
    return [case for case in cases if case in results]


def claims_table(results: Results) -> str:
    groups = results.groups()
    header = ["Statement, and the figure", "In the paper", *map(_title, groups)]
    rows = [
        [
            f"{claim.text}<br><small>{claim.figure}</small>",
            claim.paper,
            *(claim.verdict(results, *group) for group in groups),
        ]
        for claim in CLAIMS
    ]
    return _table(header, rows)


def _exits(case: Case) -> list[int]:
    """The exits in the tables: one by one to L_max, then half as many again and twice as many."""
    loops = case.max_loops
    return [*range(1, loops + 1), loops + max(loops // 2, 1), 2 * loops]


def exits_table(results: Results, data: str, family: str) -> str:
    cases = _known(results, exit_cases(data, family))
    columns = _exits(cases[0])
    rows = []
    for case in cases:
        losses = results.losses(case)
        rows.append([_LABELS[case.objective], *(Spread.of(losses[:, each - 1]).text(3) for each in columns)])
    return _table(["Held-out loss", *(f"L = {each}" for each in columns)], rows)


def quality_table(results: Results, data: str, family: str) -> str:
    cases = _known(results, exit_cases(data, family))
    columns = [each for each in _exits(cases[0]) if results.quality(cases[0], each, "distance") is not None]
    rows = [[_LABELS[case.objective], *(_quality(results, case, each) for each in columns)] for case in cases]
    return _table(["Distance (accuracy)", *(f"L = {each}" for each in columns)], rows)


def _quality(results: Results, case: Case, loops: int) -> str:
    distance, accuracy = (results.quality(case, loops, figure) for figure in ("distance", "accuracy"))
    if distance is None or accuracy is None:
        return "–"
    return f"{Spread.of(distance).text(2)} ({accuracy.mean():.3f})"


def depth_table(results: Results, data: str, family: str) -> str:
    cases = _known(results, [*depth_cases(data, family), single_case(data, family)])
    rows = []
    for case in cases:
        figures = results.figures(case)[0]
        rows.append(
            [
                case.size,
                f"{figures['trunk_parameters'] / 1e3:,.0f}k",
                f"{figures['parameters'] / 1e3:,.0f}k",
                f"{figures['sample_flops'] / 1e6:,.0f}",
                Spread.of(results.last_exit(case)).text(3),
                Spread.of(results.losses(case)[:, 0]).text(3),
                _quality(results, case, case.max_loops),
            ]
        )
    header = ["N×L", "Trunk", "All parameters", "MFLOPs per sample", "Loss at L_max", "Loss at L = 1"]
    return _table([*header, "Distance (accuracy) at L_max"], rows)


def curriculum_table(results: Results, data: str, family: str) -> str:
    cases = _known(results, curriculum_cases(data, family))
    columns = range(1, cases[0].max_loops + 1)
    rows = []
    for case in cases:
        losses = results.losses(case)
        rows.append(
            [
                _SCHEDULES.get(case.curriculum, case.curriculum),
                *(Spread.of(losses[:, each - 1]).text(3) for each in columns),
                Spread.of(losses[:, : case.max_loops].mean(1)).text(3),
                _quality(results, case, case.max_loops),
            ]
        )
    return _table(["λ", *(f"Loss at L = {each}" for each in columns), "Mean", "Distance (accuracy) at L_max"], rows)


def convergence_table(results: Results, data: str, family: str) -> str:
    cases = _known(results, depth_cases(data, family))
    target = results.last_exit(cases[0])
    steps, _ = results.curve(cases[0])
    shown = [steps[round(len(steps) * share) - 1] for share in (0.25, 0.5, 0.75, 1.0)]
    rows = []
    for case in cases:
        _, curve = results.curve(case)
        last = curve[:, :, case.max_loops - 1]
        reached = steps_to_reach(results, case, target)
        rows.append(
            [
                case.size,
                *(Spread.of(last[:, np.flatnonzero(steps == step)[0]]).text(3) for step in shown),
                "never"
                if np.isinf(reached).all()
                else " / ".join("never" if np.isinf(r) else f"{r:.0f}" for r in reached),
            ]
        )
    header = ["N×L", *(f"Loss after {step} steps" for step in shown)]
    return _table([*header, f"Steps to the last loss of {cases[0].size}, by seed"], rows)


def _panels(count: int, *, height: float) -> tuple[Figure, list[Axes]]:
    """As many panels, two in a row."""
    columns = min(count, 2)
    rows = -(-count // columns)
    figure, panels = plt.subplots(rows, columns, figsize=(4.6 * columns, height * rows), squeeze=False)
    for unused in panels.flat[count:]:
        unused.remove()
    return figure, list(panels.flat[:count])


def _plot(
    path: Path,
    results: Results,
    groups: list[tuple[str, str]],
    draw: Callable[[Axes, Results, str, str], None],
) -> None:
    """One panel for each data set and family."""
    if not groups:
        return
    figure, panels = _panels(len(groups), height=3.9)
    for axes, group in zip(panels, groups, strict=True):
        draw(axes, results, *group)
        axes.set_title(_title(group), fontsize=10)
        axes.set_ylabel(_UNITS[group[1]])
        axes.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def plot_exits(axes: Axes, results: Results, data: str, family: str) -> None:
    """Held-out loss against loops for every objective, past L_max too; bands are one standard deviation of the
    seeds.
    """
    for case in _known(results, exit_cases(data, family)):
        losses = results.losses(case)
        _band(axes, np.arange(1, losses.shape[1] + 1), losses, _LABELS[case.objective])
    loops = exit_cases(data, family)[0].max_loops
    axes.axvline(loops, color="0.7", linestyle=":", label="L_max in training")
    axes.set_yscale("log")
    _plain_numbers(axes)
    axes.set_xlabel("loops L")


def plot_depth(axes: Axes, results: Results, data: str, family: str) -> None:
    """Held-out loss against parameters of the trunk: models of one effective depth, and the looped one's layers
    without looping.
    """
    cases = _known(results, depth_cases(data, family))
    points = [
        (results.figures(case)[0]["trunk_parameters"] / 1e3, Spread.of(results.last_exit(case))) for case in cases
    ]
    axes.errorbar(
        [x for x, _ in points],
        [spread.mean for _, spread in points],
        [spread.deviation for _, spread in points],
        marker="o",
        capsize=3,
        label="equal compute",
    )
    single = single_case(data, family)
    x, spread = results.figures(single)[0]["trunk_parameters"] / 1e3, Spread.of(results.last_exit(single))
    axes.errorbar([x], [spread.mean], [spread.deviation], marker="s", capsize=3, color="C3", label="not looped")
    for case, (place, loss) in zip([*cases, single], [*points, (x, spread)], strict=True):
        axes.annotate(case.size, (place, loss.mean), textcoords="offset points", xytext=(6, 6), fontsize=8)
    axes.set_xscale("log")
    axes.set_xticks([place for place, _ in points], labels=[f"{place:.0f}" for place, _ in points])
    axes.minorticks_off()
    axes.margins(0.2)
    axes.set_xlabel("thousand parameters in the trunk")


def plot_convergence(axes: Axes, results: Results, data: str, family: str) -> None:
    """Held-out loss at the last exit while the models train."""
    for case in _known(results, depth_cases(data, family)):
        steps, curve = results.curve(case)
        # The first tenth is off the scale of everything after it.
        shown = steps >= 0.1 * steps[-1]
        _band(axes, steps[shown], curve[:, shown, case.max_loops - 1], case.size)
    axes.set_yscale("log")
    _plain_numbers(axes)
    axes.set_xlabel("training steps")


def plot_samples(path: Path, pictures: Mapping[Case, Path]) -> None:
    """What the models drew, one of each class: a panel for each data set and family, a row for each objective and
    loop count up to L_max.
    """
    groups = list(dict.fromkeys((case.data, case.family) for case in pictures))
    figure, panels = _panels(len(groups), height=3.0)
    for axes, group in zip(panels, groups, strict=True):
        rows = {}
        for case in (each for each in pictures if (each.data, each.family) == group):
            with np.load(pictures[case]) as file:
                drawn = zip(file["loops"], file["images"], strict=True)
                rows |= {
                    f"{_LABELS[case.objective]}, L = {count}": images
                    for count, images in drawn
                    if count <= case.max_loops
                }
        height, width = next(iter(rows.values())).shape[1:3]
        # A line between images, in a colour that none has.
        height, width = height + 1, width + 1
        grid = np.pad(
            np.stack([images[:CLASSES] for images in rows.values()]),
            ((0, 0), (0, 0), (0, 1), (0, 1), (0, 0)),
            constant_values=np.nan,
        )
        axes.imshow(rearrange(grid, "row column h w 1 -> (row h) (column w)"), cmap=_GREY, vmin=-1.0, vmax=1.0)
        axes.set_yticks((np.arange(len(rows)) + 0.5) * height - 0.5, labels=list(rows), fontsize=7)
        axes.set_xticks((np.arange(CLASSES) + 0.5) * width - 0.5, labels=map(str, range(CLASSES)), fontsize=7)
        axes.tick_params(length=0)
        axes.set_title(_title(group), fontsize=10)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _band(axes: Axes, x: np.ndarray, values: np.ndarray, label: str) -> None:
    spreads = [Spread.of(each) for each in values.T]
    mean, deviation = (np.array([getattr(spread, part) for spread in spreads]) for part in ("mean", "deviation"))
    (line,) = axes.plot(x, mean, marker="o", markersize=3, label=label)
    axes.fill_between(x, mean - deviation, mean + deviation, color=line.get_color(), alpha=0.2)


def _plain_numbers(axes: Axes) -> None:
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.3g}")
    axes.yaxis.set_minor_formatter(lambda value, _: f"{value:.3g}")
    axes.tick_params(axis="y", which="both", labelsize=8)
