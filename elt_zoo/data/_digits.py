from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float, Int, UInt8

from ._batches import Images
from ._convert import from_pixels
from ._source import AbstractSource, Visit

DIGIT_LEVELS = 17
"""Grey levels of the digits, 0 to 16."""
DIGIT_CLASSES = tuple("0123456789")
_FILE = Path(__file__).parent / "assets" / "digits.npz"


class Digits(NamedTuple):
    """Images of handwritten digits with grey levels 0 to 16, and labels 0 to 9."""

    images: UInt8[np.ndarray, "examples 8 8 1"]
    labels: Int[np.ndarray, " examples"]


def load_digits(split: Literal["train", "heldout"]) -> Digits:
    """Loads the 1,797 real handwritten digits of 8 × 8 pixels that come with the library: the test part of UCI's
    *Optical Recognition of Handwritten Digits* (E. Alpaydin and C. Kaynak, 1998,
    [10.24432/C50P49](https://doi.org/10.24432/C50P49), CC BY 4.0), as in scikit-learn. There is nothing to download.

    The split is fixed: 1,437 digits for training and 360 held out, a fifth of each class.

    **Arguments:** `split`: "train" or "heldout".

    **Returns:** images and labels of that part.

    **Raises:** `ValueError` for another name.
    """
    if split not in ("train", "heldout"):
        raise ValueError(f"`load_digits({split!r})`: the parts are 'train' and 'heldout'.")
    # A file of our own, since scikit-learn takes a second to import.
    with np.load(_FILE) as arrays:
        return Digits(arrays[f"{split}_images"], arrays[f"{split}_labels"])


def digits_to_pixels(levels: UInt8[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
    """Converts grey levels 0 to 16 to float32 pixels in [−1, 1]."""
    return (levels / np.float32(8.0) - np.float32(1.0)).astype(np.float32)


def pixels_to_digits(pixels: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
    """Clips pixels to [−1, 1] and converts them to grey levels in [0, 16], in float64 and not rounded."""
    return (np.clip(np.asarray(pixels, np.float64), -1.0, 1.0) + 1.0) * 8.0


class DigitImages(AbstractSource):
    """The digits of [`load_digits`][elt_zoo.data.load_digits] as a source of [`Images`][elt_zoo.data.Images]: 8 × 8
    grey pixels, classes "0" to "9".
    """

    in_memory = True

    def __init__(self, split: Literal["train", "heldout"]):
        """**Arguments:** `split`: "train" or "heldout". **Raises:** `ValueError` for another name."""
        digits = load_digits(split)
        self.class_names = DIGIT_CLASSES
        self._images = from_pixels(digits_to_pixels(digits.images))
        self._labels = digits.labels

    def __len__(self) -> int:
        return len(self._labels)

    def label(self, index: int) -> int:
        """Returns the digit that an image shows, without its pixels."""
        return int(self._labels[index])

    def name(self, index: int) -> str:
        """Returns "digit" and its number."""
        return f"digit {index}"

    def read(self, visit: Visit) -> Images:
        """Returns one image and its class."""
        return Images(self._images[visit.index], np.asarray(self._labels[visit.index]))
