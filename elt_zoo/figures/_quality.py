import os
from collections.abc import Mapping, Sequence
from typing import Any

from ._figure import new_figure, save_figure

_PANELS = {
    "heldout_loss": "held-out loss",
    "digits_frechet_distance": "digits Fréchet distance",
    "accuracy": "accuracy of the intended class",
}


def plot_quality(
    path: str | os.PathLike, rows: Sequence[Mapping[str, Any]], *, max_loops: int, floors: Mapping[str, float]
) -> None:
    """Held-out loss of every objective against loops and compute, and what else the rows measure; `floors` are what
    real data score.
    """
    panels = {column: label for column, label in _PANELS.items() if column in rows[0]}
    figure = new_figure(4.4 * len(panels), 3.8)
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    # Compute is affine in the loops, so two points tell all.
    (first, low), (last, high) = ((row["loops"], row["megaflops_per_sample"]) for row in (rows[0], rows[-1]))
    slope = (high - low) / (last - first)
    for axis, (column, label) in zip(axes, panels.items(), strict=True):
        for name in dict.fromkeys(row["objective"] for row in rows):
            mine = [row for row in rows if row["objective"] == name]
            axis.plot([row["loops"] for row in mine], [row[column] for row in mine], marker="o", label=name)
        axis.axvline(max_loops, color="0.7", linestyle=":", label="L_max in training")
        axis.set_xlabel("loops per sampling step")
        axis.set_ylabel(label)
        top = axis.secondary_xaxis(
            "top", functions=(lambda loops: low + slope * (loops - first), lambda flops: first + (flops - low) / slope)
        )
        top.set_xlabel("MFLOPs per sample")
        if column in floors:
            axis.set_yscale("log")
            axis.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
            axis.axhline(floors[column], color="0.5", linestyle="--", label="real held-out data")
        axis.legend()
    figure.tight_layout()
    save_figure(figure, path)
