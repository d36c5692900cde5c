import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..data import write_video
from ._figure import new_figure, pixels_of, save_figure
from ._pictures import tile

_CLIPS_SHOWN = 2
_GIF_RATE = 8.0


def save_grid(path: str | os.PathLike, samples: Mapping[str, np.ndarray], labels: Sequence[Any], *, title: str) -> None:
    """One named row of images or of clips for each entry, as [`save_sample_grid`][elt_zoo.figures.save_sample_grid] or
    [`save_clip_grid`][elt_zoo.figures.save_clip_grid] draws them.
    """
    clips = next(iter(samples.values())).ndim == 5
    (save_clip_grid if clips else save_sample_grid)(path, samples, labels, title=title)


def save_sample_grid(
    path: str | os.PathLike, samples: Mapping[str, np.ndarray], labels: Sequence[Any], *, title: str
) -> None:
    """One named row of images for each entry, under their labels.

    **Arguments:** `path`: of a PNG; `samples`: by the name of their row, pixels in [−1, 1] of one size with one or
    three channels; `labels`: of the columns; `title`: above all.
    """
    save_figure(_grid(samples, labels, title=title), path, bbox_inches="tight")


def save_clip_grid(
    path: str | os.PathLike, samples: Mapping[str, np.ndarray], labels: Sequence[Any], *, title: str
) -> None:
    """Clips as pictures: at `path` the first clips of every row frame by frame, and beside it a GIF in which all move.

    **Arguments:** as [`save_sample_grid`][elt_zoo.figures.save_sample_grid], with a frame axis after the first.
    """
    path = Path(path)
    frames = {
        f"{name}: {label}": clip
        for name, clips in samples.items()
        for label, clip in list(zip(labels, clips, strict=False))[:_CLIPS_SHOWN]
    }
    count = next(iter(frames.values())).shape[0]
    save_sample_grid(path, frames, range(1, count + 1), title=title)
    moments = [{name: clips[:, frame] for name, clips in samples.items()} for frame in range(count)]
    figure = _grid(moments[0], labels, title=title)
    (picture,) = figure.axes[0].images
    film = []
    for moment in moments:
        picture.set_data(_tiled(moment))
        film.append(pixels_of(figure))
    write_video(path.with_suffix(".gif"), np.stack(film), rate=_GIF_RATE)


def _grid(samples: Mapping[str, np.ndarray], labels: Sequence[Any], *, title: str) -> Any:
    """The figure of a grid, with one picture of all samples: an axis for each would take most of the time of a short
    command.
    """
    columns = max(len(images) for images in samples.values())
    height, width = next(iter(samples.values())).shape[1:3]
    figure = new_figure(0.6 * columns + 1.0, 0.6 * len(samples) * height / width + 0.5)
    axis = figure.subplots()
    axis.imshow(_tiled(samples), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    axis.axis("off")
    for row, name in enumerate(samples):
        axis.text(-0.2 * width, (row + 0.5) * (height + 2), name, ha="right", va="center")
    for column, label in zip(range(columns), labels, strict=False):
        size = 9 if len(str(label)) < 4 else 5
        axis.text((column + 0.5) * (width + 2), -0.1 * height, str(label), ha="center", va="bottom", fontsize=size)
    axis.set_title(title, pad=20.0)
    return figure


def _tiled(samples: Mapping[str, np.ndarray]) -> np.ndarray:
    """Rows of images as one, short rows filled up with white."""
    columns, none = max(len(images) for images in samples.values()), (0, 0)
    rows = [
        np.pad(images, ((0, columns - len(images)), none, none, none), constant_values=1.0)
        for images in samples.values()
    ]
    return tile(np.stack(rows)).squeeze()
