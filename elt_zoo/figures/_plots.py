import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..diagnostics import AbstractExits
from ._figure import new_figure, save_figure

_SCALES = ((1e15, "PFLOPs"), (1e12, "TFLOPs"), (1e9, "GFLOPs"), (1e6, "MFLOPs"))
_MARKERS = "osD^vPX*"


def plot_pareto(
    path: str | os.PathLike,
    rows: Sequence[dict[str, Any]],
    *,
    metric: str,
    floors: Mapping[str, float],
    title: str,
) -> None:
    """Quality against compute, every point with its loops, constant ones joined for each number of steps and scale of
    guidance; the points of the Pareto front are ringed and joined by steps. `floors` are what real data score, by name.
    """
    scale, unit = next(((scale, unit) for scale, unit in _SCALES if rows[0]["flops_per_sample"] >= scale), _SCALES[-1])
    figure = new_figure(9.0, 4.6)
    axes = figure.subplots()
    curves = dict.fromkeys((row["steps"], row["guidance"]) for row in rows)
    for index, (steps, guidance) in enumerate(curves):
        mine = [row for row in rows if (row["steps"], row["guidance"]) == (steps, guidance)]
        mine.sort(key=lambda row: row["flops_per_sample"])
        label = f"{steps} steps" + ("" if guidance == 1.0 else f", guidance {guidance:g}")
        marker, colour = _MARKERS[index % len(_MARKERS)], f"C{index}"
        axes.plot(*_points(mine, metric, scale), marker, color=colour, label=label)
        constant = [row for row in mine if row["loops"].isdecimal()]
        axes.plot(*_points(constant, metric, scale), linestyle=":", color=colour)
    front = sorted((row for row in rows if row["pareto"]), key=lambda row: row["flops_per_sample"])
    x, y = _points(front, metric, scale)
    axes.step(x, y, where="post", color="0.2", linewidth=1.0, zorder=1)
    axes.scatter(x, y, s=130, facecolors="none", edgecolors="0.2", label="Pareto front")
    for row in rows:
        place = (row["flops_per_sample"] / scale, row[metric])
        axes.annotate(f"L={row['loops']}", place, textcoords="offset points", xytext=(6, 7), fontsize=8)
    for name, floor in floors.items():
        axes.axhline(floor, color="0.5", linestyle="--", linewidth=1.0, label=name)
    axes.set_xscale("log")
    axes.set_xlabel(f"{unit} per sample (2 per multiply-accumulate, matrix products only)")
    axes.set_ylabel(f"{metric}, lower is better")
    axes.margins(0.12)
    from matplotlib import ticker  # late, as it is slow to import

    axes.xaxis.set_major_locator(ticker.LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:.3g}")
    axes.minorticks_off()
    axes.set_title(title, fontsize=10)
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.tight_layout()
    save_figure(figure, path)


def _points(rows: Sequence[dict[str, Any]], metric: str, scale: float) -> tuple[list[float], list[float]]:
    return [row["flops_per_sample"] / scale for row in rows], [row[metric] for row in rows]


def plot_exits(path: str | os.PathLike, losses: Sequence[float], exits: AbstractExits, *, max_loops: int) -> None:
    """Held-out loss by exit, and how many answers each loop mends and spoils.

    **Arguments:** `path`: of a PNG; `losses`: of exits 1, 2, …; `exits`: compared on the same examples; `max_loops`:
    L_max.
    """
    numbers = list(range(1, len(losses) + 1))
    figure = new_figure(9.0, 3.8)
    left, right = figure.subplots(1, 2)
    left.plot(numbers, losses, marker="o", label="held-out loss")
    left.set_ylabel("held-out loss")
    for column in exits.columns():
        if column.curve is not None:
            values = np.asarray(column.values)
            right.plot(numbers[-len(values) :], values, marker="o", label=column.curve)
    right.set_ylabel(f"share of {exits.share_of}")
    right.set_ylim(bottom=0.0)
    for axes in (left, right):
        axes.axvline(max_loops, color="0.7", linestyle=":", label="L_max in training")
        axes.set_xlabel("exit (loops)")
        axes.set_xticks(numbers)
        axes.legend(fontsize=8)
    figure.tight_layout()
    save_figure(figure, path)


def plot_plans(path: str | os.PathLike, plans: Sequence[Mapping[str, Any]], *, title: str) -> None:
    """Predicted quality against predicted time, a colour for each number of steps; bars are standard errors.

    **Arguments:** `path`: of a PNG; `plans`: the fields of each [`Plan`][elt_zoo.anytime.Plan], from the fastest to the
    best.
    """
    figure = new_figure(6.4, 4.2)
    axes = figure.subplots()
    axes.plot([plan["milliseconds"] for plan in plans], [plan["quality"] for plan in plans], color="0.7", zorder=1)
    for index, steps in enumerate(dict.fromkeys(plan["steps"] for plan in plans)):
        mine = [plan for plan in plans if plan["steps"] == steps]
        place = [plan["milliseconds"] for plan in mine], [plan["quality"] for plan in mine]
        errors = [plan["error"] or 0.0 for plan in mine]
        axes.errorbar(
            *place, yerr=errors, fmt=_MARKERS[index % len(_MARKERS)], color=f"C{index}", label=f"{steps} steps"
        )
    axes.set_xlabel("predicted time of a call (ms)")
    axes.set_ylabel(f"{plans[0]['measure']}, lower is better")
    axes.set_title(title, fontsize=10)
    axes.legend(fontsize=8)
    figure.tight_layout()
    save_figure(figure, path)


def plot_update_norms(path: str | os.PathLike, norms: np.ndarray, *, max_loops: int) -> None:
    """How far every loop moves the state at every sampling step, a curve for each loop: `norms` of shape (steps,
    loops). On a log scale, because the first loop moves it many times as far as the last.
    """
    steps, loops = norms.shape
    from matplotlib import colormaps

    figure = new_figure(7.0, 4.2)
    axes = figure.subplots()
    colours = colormaps["viridis"](np.linspace(0.0, 0.9, loops))
    for loop in range(loops):
        past = loop >= max_loops
        label = f"loop {loop + 1}" + (", past L_max" if past else "")
        style = "--" if past else "-"
        axes.plot(np.arange(1, steps + 1), norms[:, loop], style, color=colours[loop], marker=".", label=label)
    axes.set_yscale("log")
    axes.set_xlabel("sampling step, from noise to sample")
    axes.set_ylabel(r"$\Vert x_l - x_{l-1} \Vert \, / \, \Vert x_{l-1} \Vert$")
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.tight_layout()
    save_figure(figure, path)
