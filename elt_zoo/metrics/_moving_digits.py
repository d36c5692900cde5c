import dataclasses
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Int, UInt8

from ..data import MovingDigits, Visit

_CELLS = 12
_WINDOW = 0.85
"""Side of the window around a digit, as a fraction of the frame's."""
_PAPER = 0.25
"""Grey, from 0 to 1, up to which a pixel does not count as ink: faint ghosts must not move the window."""


@dataclasses.dataclass(frozen=True)
class MovingDigitsQuality:
    """The quality of a set of generated clips of moving digits.

    **Fields:**

    - `accuracy`: share of clips that show the intended digit, judged by the class of most of their frames.
    - `frame_accuracy`: share of single frames that do. Far below `accuracy`, the digit changes its shape on the way.
    - `speed`: mean way of a digit from one frame to the next, as a fraction of the frame's side.
    - `samples`: number of clips.
    """

    accuracy: float
    frame_accuracy: float
    speed: float
    samples: int


class MovingDigitsEvaluator:
    """Says whether clips show the digit that they should, by a classifier of frames that sees where the digit is.

    Of each frame it takes a window around the centre of mass of the ink, so that the place of a digit does not matter.
    A support vector classifier, fitted to such windows of real moving digits, says its class. The class of a clip is
    that of most of its frames. The fit takes seconds and is deterministic.
    """

    def __init__(self, split: Literal["train", "heldout"] = "train", *, size: int = 12):
        """**Arguments:** `split`: the digits to fit to, of [`load_digits`][elt_zoo.data.load_digits]; `size`: height
        and width of the clips' frames, at least 12.

        **Raises:** `ValueError` for another split or a smaller size.
        """
        from sklearn.svm import SVC

        self.split: Literal["train", "heldout"] = split
        self.size = size
        # Two frames of every training digit are enough; of the fewer held-out digits more.
        source = MovingDigits(split, frames=2, size=size, length=1437)
        batch = source.read_batch([Visit(index) for index in range(len(source))])
        windows, _ = _look(_grey(batch.clips).reshape(-1, size, size))
        self._classifier: Any = SVC(C=10.0, gamma="scale").fit(windows, np.repeat(batch.labels, 2))

    def __call__(
        self,
        clips: UInt8[np.ndarray, "clips frames height width channels"]
        | Float[np.ndarray, "clips frames height width channels"],
        labels: Int[np.ndarray, " clips"],
    ) -> MovingDigitsQuality:
        """**Arguments:** `clips`: bytes, or pixels in [−1, 1], clipped to that range; `labels`: the intended digits.

        **Raises:** `ValueError` for other shapes or labels, no clips, or pixels that are not finite.
        """
        clips, labels = np.asarray(clips), np.asarray(labels)
        if clips.ndim != 5 or clips.shape[2:4] != (self.size,) * 2 or labels.shape != clips.shape[:1] or not clips.size:
            raise ValueError(
                f"`MovingDigitsEvaluator(size={self.size})` got clips of shape {clips.shape} and labels of shape "
                f"{labels.shape}; it needs (clips, frames, {self.size}, {self.size}, channels) and one label each."
            )
        if not ((labels >= 0) & (labels <= 9)).all():
            raise ValueError(f"`MovingDigitsEvaluator` got labels {labels.min()} to {labels.max()}; digits are 0 to 9.")
        if not np.isfinite(clips).all():
            raise ValueError("Some pixels are not finite: the model or the sampler diverged.")
        windows, centres = _look(_grey(clips).reshape(-1, self.size, self.size))
        scores = self._classifier.decision_function(windows).reshape(*clips.shape[:2], -1)
        votes = (scores == scores.max(axis=2, keepdims=True)).sum(axis=1)
        clip_classes = (votes + 1e-3 * scores.mean(axis=1)).argmax(axis=1)  # scores, below 10, decide where votes tie
        ways = np.linalg.norm(np.diff(centres.reshape(*clips.shape[:2], 2), axis=1), axis=-1)
        return MovingDigitsQuality(
            accuracy=float(np.mean(clip_classes == labels)),
            frame_accuracy=float(np.mean(scores.argmax(axis=2) == labels[:, None])),
            speed=float(ways.mean() / self.size) if ways.size else 0.0,
            samples=len(clips),
        )

    def floor(self, *, frames: int = 8) -> MovingDigitsQuality:
        """The scores of real clips of digits that the classifier was not fitted to, one clip of each.

        **Arguments:** `frames`: of a clip.
        """
        other = "heldout" if self.split == "train" else "train"
        source = MovingDigits(other, frames=frames, size=self.size, augment=False)
        batch = source.read_batch([Visit(index) for index in range(len(source))])
        return self(batch.clips, batch.labels)


def _grey(clips: np.ndarray) -> Float[np.ndarray, "clips frames height width"]:
    """Brightness from 0 to 1."""
    light = clips / 255.0 if clips.dtype == np.uint8 else (np.clip(clips.astype(np.float64), -1.0, 1.0) + 1.0) / 2.0
    return light.mean(axis=-1)


def _look(
    frames: Float[np.ndarray, "frames size size"],
) -> tuple[Float[np.ndarray, "frames cells"], Float[np.ndarray, "frames 2"]]:
    """The window around each frame's digit, flat, and the digit's centre of mass in pixels, row and column."""
    size = frames.shape[1]
    ink = np.maximum(frames - _PAPER, 0.0) + 1e-6  # an empty frame has its centre in the middle
    places = np.arange(size)
    centres = np.stack([ink.sum(axis=axis) @ places for axis in (2, 1)], axis=1) / ink.sum(axis=(1, 2))[:, None]
    offsets = _WINDOW * size * ((np.arange(_CELLS) + 0.5) / _CELLS - 0.5)
    # Linear interpolation along each axis; outside the frame there is paper.
    rows, columns = np.maximum(0.0, 1.0 - np.abs(centres.T[:, :, None, None] + offsets[:, None] - places))
    return (rows @ frames @ columns.swapaxes(1, 2)).reshape(len(frames), -1), centres
