from typing import Literal

import numpy as np
from jaxtyping import Float, UInt8

from ._batches import Clips
from ._digits import DIGIT_CLASSES, DIGIT_LEVELS, load_digits
from ._source import AbstractSource, Visit

_EXTENT = 2 / 3
"""Side of a digit, as a fraction of the frame's."""
_SMALLEST = 12
_SPEEDS = (0.02, 0.06)
"""Slowest and fastest, as fractions of the side per frame."""


class MovingDigits(AbstractSource):
    """Renders clips of a real handwritten digit that moves in a straight line and bounces off the walls, white on black
    in RGB. The label is the digit. The digits come from [`load_digits`][elt_zoo.data.load_digits], so there is nothing
    to download.

    The 8 × 8 grey levels are interpolated, so that a digit can be drawn at any position between pixels.

    ??? cite "Reference"
        The idea is Moving MNIST's: Srivastava, Mansimov, Salakhutdinov, *Unsupervised Learning of Video Representations
        using LSTMs*, 2015 (arXiv 1502.04681).
    """

    def __init__(
        self,
        split: Literal["train", "heldout"],
        *,
        frames: int = 16,
        size: int = 128,
        length: int | None = None,
        augment: bool = True,
    ):
        """**Arguments:**

        - `split`: "train" or "heldout" digits.
        - `frames`: frames of a clip.
        - `size`: height and width of a frame, at least 12 pixels, so that digits keep their 8 × 8.
        - `length`: clips per epoch, by default one for each digit. More clips show the same digits on other paths.
        - `augment`: whether digits take another path in every epoch.

        **Raises:** `ValueError` for another split, or if a number is too small.
        """
        digits = load_digits(split)
        length = len(digits.labels) if length is None else length
        if frames < 1 or size < _SMALLEST or length < 1:
            raise ValueError(
                f"`MovingDigits(frames={frames}, size={size}, length={length})` needs at least 1 frame, a size of "
                f"{_SMALLEST} and 1 clip."
            )
        self.class_names = DIGIT_CLASSES
        self.frames = frames
        self.size = size
        self._length = length
        self._augment = augment
        self._images = digits.images[..., 0].astype(np.float32) / np.float32(DIGIT_LEVELS - 1)
        self._labels = digits.labels

    def __len__(self) -> int:
        return self._length

    def label(self, index: int) -> int:
        """Returns the digit of a clip, without rendering it."""
        return int(self._labels[index % len(self._labels)])

    def name(self, index: int) -> str:
        """Returns "moving digit" and its number."""
        return f"moving digit {index}"

    def read(self, visit: Visit) -> Clips:
        """Returns one clip. The visit decides the path, or its index alone without `augment`."""
        row = visit.index % len(self._labels)
        rng = (visit if self._augment else Visit(visit.index)).rng()
        frames = draw_moving(self._images[row], _path(rng, self.frames), self.size)
        return Clips(np.repeat(frames[..., None], 3, axis=-1), self._labels[row])


def _path(rng: np.random.Generator, frames: int) -> Float[np.ndarray, "{frames} 2"]:
    """Top left corners of a digit by frame, as fractions of the side. Start, speed and direction are random."""
    room = 1.0 - _EXTENT
    begin = room * rng.random(2)
    speed, angle = rng.uniform(*_SPEEDS), 2 * np.pi * rng.random()
    velocity = speed * np.array([np.sin(angle), np.cos(angle)])
    straight = begin + np.arange(frames)[:, None] * velocity
    return room - np.abs(straight % (2 * room) - room)  # reflected at both walls


def draw_moving(
    image: Float[np.ndarray, "rows columns"], corners: Float[np.ndarray, "frames 2"], size: int
) -> UInt8[np.ndarray, "frames {size} {size}"]:
    """Draws a picture in [0, 1] with its top left corner at each of these positions, as fractions of the side.

    Interpolation is separable, so that a frame is Aᵀ · image · B with a small matrix for each axis.
    """
    down, across = (_weights(corners[:, axis], image.shape[axis], size) for axis in range(2))
    rows = np.ascontiguousarray((image.T @ down).swapaxes(1, 2))  # BLAS is seven times slower on the transposed view
    frames = np.clip(rows @ across, 0.0, 1.0)
    return np.rint(frames * np.float32(255)).astype(np.uint8)


def _weights(corners: Float[np.ndarray, " frames"], cells: int, size: int) -> Float[np.ndarray, "frames cells {size}"]:
    """How much every cell of a picture adds to every pixel, along one axis."""
    cell = _EXTENT * size / cells
    centres = corners[:, None] * size + cell * (np.arange(cells) + 0.5)
    distance = np.abs(np.arange(size) + 0.5 - centres[..., None]) / max(cell, 1.0)
    # Catmull and Rom's cubic: it passes through the samples and keeps strokes crisp.
    near = 1.0 + distance**2 * (1.5 * distance - 2.5)
    far = 2.0 + distance * (-4.0 + distance * (2.5 - 0.5 * distance))
    weights = np.where(distance < 1.0, near, np.where(distance < 2.0, far, 0.0))
    return (weights * min(1.0, cell)).astype(np.float32)
