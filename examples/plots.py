"""Plots of what `evaluate.py` measures."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import LogLocator

_SCALES = ((1e15, "PFLOPs"), (1e12, "TFLOPs"), (1e9, "GFLOPs"), (1e6, "MFLOPs"))
_MARKERS = "osD^vPX*"


def plot_pareto(
    path: Path,
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
    figure, axes = plt.subplots(figsize=(9.0, 4.6))
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
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:.3g}")
    axes.minorticks_off()
    axes.set_title(title, fontsize=10)
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _points(rows: Sequence[dict[str, Any]], metric: str, scale: float) -> tuple[list[float], list[float]]:
    return [row["flops_per_sample"] / scale for row in rows], [row[metric] for row in rows]


def plot_exits(path: Path, rows: Sequence[dict[str, Any]], *, max_loops: int) -> None:
    """Held-out loss by exit, and how many answers each loop mends and spoils."""
    exits = [row["exit"] for row in rows]
    masked = "flips" in rows[0]
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.0, 3.8))
    left.plot(exits, [row["heldout_loss"] for row in rows], marker="o", label="held-out loss")
    left.set_ylabel("held-out loss")
    curves = {
        "self_correction": "wrong → right (self-correction)" if masked else "error falls (self-correction)",
        "overthinking": "right → wrong (overthinking)" if masked else "error rises (overthinking)",
    }
    if masked:
        curves = {"flips": "answer changes (flips)", **curves}
    for name, label in curves.items():
        right.plot(exits[1:], [row[name] for row in rows[1:]], marker="o", label=label)
    right.set_ylabel("share of masked tokens" if masked else "share of examples")
    right.set_ylim(bottom=0.0)
    for axes in (left, right):
        axes.axvline(max_loops, color="0.7", linestyle=":", label="L_max in training")
        axes.set_xlabel("exit (loops)")
        axes.set_xticks(exits)
        axes.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def plot_update_norms(path: Path, norms: np.ndarray, *, max_loops: int) -> None:
    """How far every loop moves the state at every sampling step, a curve for each loop: `norms` of shape (steps,
    loops). On a log scale, because the first loop moves it many times as far as the last.
    """
    steps, loops = norms.shape
    figure, axes = plt.subplots(figsize=(7.0, 4.2))
    colours = plt.get_cmap("viridis")(np.linspace(0.0, 0.9, loops))
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
    figure.savefig(path, dpi=120)
    plt.close(figure)
