import os
from collections.abc import Mapping

from ._figure import new_figure, save_figure

Curve = Mapping[int, float]
"""A loss by training step."""


def plot_losses(path: str | os.PathLike, *, training: Mapping[str, Curve], heldout: Mapping[str, Curve]) -> None:
    """The losses of a training, and beside them those on held-out data where there are any.

    **Arguments:** `path`: of a PNG; `training`: curves by their names, each point the loss of one batch; `heldout`:
    curves of the averaged model; may be empty.
    """
    panels = {"training loss, one batch each": training} | ({"held-out loss": heldout} if heldout else {})
    figure = new_figure(5.6 * len(panels), 3.8)
    for axes, (label, curves) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        for name, curve in curves.items():
            axes.plot(list(curve), list(curve.values()), marker="." if len(curve) < 20 else "", label=name)
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.yaxis.set_minor_formatter(lambda value, _: f"{value:g}")
        axes.tick_params(axis="y", which="minor", labelsize=7)
        axes.set_xlabel("training step")
        axes.set_ylabel(label)
        axes.legend(fontsize=8)
    figure.tight_layout()
    save_figure(figure, path)
