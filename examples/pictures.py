"""Figures that the examples share."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import FormatStrFormatter

from elt_zoo.data import from_pixels, write_video

_PANELS = {
    "heldout_loss": "held-out loss",
    "digits_frechet_distance": "digits Fréchet distance",
    "accuracy": "accuracy of the intended class",
}
_CLIPS_SHOWN = 2
_GIF_RATE = 8.0


def save_sample_grid(path: Path, samples: Mapping[str, np.ndarray], labels: Sequence[Any], *, title: str) -> None:
    """One named row of images (pixels in [−1, 1], channels last, one or three) for each entry, under the labels asked
    for.
    """
    columns = max(len(images) for images in samples.values())
    figure, axes = plt.subplots(
        len(samples), columns, figsize=(0.6 * columns + 1.0, 0.6 * len(samples) + 0.5), squeeze=False
    )
    for row, (name, images) in zip(axes, samples.items(), strict=True):
        for axis in row:
            axis.axis("off")
        for axis, image in zip(row, images, strict=False):
            axis.imshow((np.clip(image.squeeze(), -1.0, 1.0) + 1.0) / 2.0, cmap="gray", vmin=0.0, vmax=1.0)
        row[0].text(-0.35, 0.5, name, transform=row[0].transAxes, ha="right", va="center")
    for axis, label in zip(axes[0], labels, strict=False):
        axis.set_title(str(label), fontsize=9 if len(str(label)) < 4 else 5)
    height = figure.get_figheight()
    figure.subplots_adjust(top=1.0 - 0.4 / height)
    figure.suptitle(title, y=1.0 + 0.15 / height)
    figure.savefig(path, dpi=120, bbox_inches="tight")
    plt.close(figure)


def save_clip_grid(path: Path, samples: Mapping[str, np.ndarray], labels: Sequence[Any], *, title: str) -> None:
    """Clips (pixels in [−1, 1]; frames, height, width, channels) as pictures: at `path` every row's first clips frame
    by frame, and beside it a GIF in which all of them move.
    """
    frames = {
        f"{name}: {label}": clip
        for name, clips in samples.items()
        for label, clip in list(zip(labels, clips, strict=False))[:_CLIPS_SHOWN]
    }
    count = next(iter(frames.values())).shape[0]
    save_sample_grid(path, frames, range(1, count + 1), title=title)
    # One row of clips for each entry, a grey line between them.
    rows = [np.pad(clips, ((0, 0), (0, 0), (1, 1), (1, 1), (0, 0))) for clips in samples.values()]
    film = np.concatenate([np.concatenate(list(clips), axis=2) for clips in rows], axis=1)
    write_video(path.with_suffix(".gif"), from_pixels(film), rate=_GIF_RATE)


def plot_quality(path: Path, rows: list[dict[str, Any]], *, max_loops: int, floors: Mapping[str, float]) -> None:
    """Held-out loss of every objective against loops and compute, and what else the rows measure; `floors` are what
    real data score.
    """
    panels = {column: label for column, label in _PANELS.items() if column in rows[0]}
    figure, row_of_axes = plt.subplots(1, len(panels), figsize=(4.4 * len(panels), 3.8), squeeze=False)
    axes = row_of_axes[0]
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
            axis.yaxis.set_major_formatter(FormatStrFormatter("%g"))
            axis.axhline(floors[column], color="0.5", linestyle="--", label="real held-out data")
        axis.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def save_reconstructions(path: Path, originals: np.ndarray, reconstructions: np.ndarray, *, scale: int = 3) -> None:
    """Originals above their reconstructions: images side by side, or each clip on rows of its own with its frames side
    by side. Pixels in [−1, 1], channels last.
    """
    if originals.ndim == 4:
        originals, reconstructions = originals[None], reconstructions[None]
    pairs = np.stack([originals, reconstructions], axis=1)  # clips, 2, frames, height, width, channels
    pairs = np.pad(pairs, [(0, 0), (0, 0), (0, 0), (1, 1), (1, 1), (0, 0)], constant_values=0.0)
    clips, _, frames, height, width, channels = pairs.shape
    grid = pairs.transpose(0, 1, 3, 2, 4, 5).reshape(clips * 2 * height, frames * width, channels)
    grid = np.kron((np.clip(grid, -1.0, 1.0) + 1.0) / 2.0, np.ones((scale, scale, 1)))
    plt.imsave(path, grid)
