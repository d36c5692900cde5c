from typing import Literal

import numpy as np
from jaxtyping import Float, UInt8

from ._batches import Clips
from ._digits import DIGIT_CLASSES, DIGIT_LEVELS, load_digits
from ._source import AbstractSource, Visit

_EXTENT = 0.55
"""Side of a digit among that of the frame."""
_SMALLEST = 16
_SPEEDS = (0.02, 0.06)
"""Slowest and fastest, in sides of the frame per frame."""


class MovingDigits(AbstractSource):
    """Clips of a real handwritten digit that moves straight on and bounces off the walls, white on black as RGB. Its
    class is the label. Nothing to download: the digits are those of [`load_digits`][elt_zoo.data.load_digits].

    The 8 × 8 grey levels are taken as samples of a smooth picture, which is drawn at every place between pixels.

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

        - `split`: which digits.
        - `frames`, `size`: of a clip. A side of 16 is the least on which a digit can be told.
        - `length`: clips of an epoch, by default one for each digit. More of them show digits several times, moving in
          other ways.
        - `augment`: whether the digits move in another way each epoch.

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
        """The digit of a clip, without rendering it."""
        return int(self._labels[index % len(self._labels)])

    def name(self, index: int) -> str:
        """Its number."""
        return f"moving digit {index}"

    def read(self, visit: Visit) -> Clips:
        """One clip; how the digit moves is decided by the visit alone, or by its index if not augmenting."""
        row = visit.index % len(self._labels)
        rng = (visit if self._augment else Visit(visit.index)).rng()
        frames = draw_moving(self._images[row], _path(rng, self.frames), self.size)
        return Clips(np.repeat(frames[..., None], 3, axis=-1), self._labels[row])


def _path(rng: np.random.Generator, frames: int) -> Float[np.ndarray, "{frames} 2"]:
    """Corners of a digit by frame, in sides of the frame: begun anywhere, at any speed and in any direction."""
    room = 1.0 - _EXTENT
    begin = room * rng.random(2)
    speed, angle = rng.uniform(*_SPEEDS), 2 * np.pi * rng.random()
    velocity = speed * np.array([np.sin(angle), np.cos(angle)])
    straight = begin + np.arange(frames)[:, None] * velocity
    return room - np.abs(straight % (2 * room) - room)  # reflected at both walls


def draw_moving(
    image: Float[np.ndarray, "rows columns"], corners: Float[np.ndarray, "frames 2"], size: int
) -> UInt8[np.ndarray, "frames {size} {size}"]:
    """A picture in [0, 1] drawn with its top left corner at each of these places, in sides of the frame.

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
