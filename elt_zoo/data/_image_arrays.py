import copy

import numpy as np
from jaxtyping import Int, UInt8

from ._batches import Images
from ._source import AbstractSource, Visit


class ImageArrays(AbstractSource):
    """Images of one size in memory, as bytes, as a source of [`Images`][elt_zoo.data.Images].

    [`cifar10`][elt_zoo.data.cifar10] and [`mnist`][elt_zoo.data.mnist] make one.
    """

    batched = True

    def __init__(
        self,
        images: UInt8[np.ndarray, "examples height width channels"],
        labels: Int[np.ndarray, " examples"],
        class_names: tuple[str, ...],
        *,
        flip: bool = False,
        title: str = "image",
    ):
        """**Arguments:**

        - `images`, `labels`: as many of each; labels are 0 to `len(class_names)` − 1.
        - `class_names`: names of the classes, by label.
        - `flip`: mirror half of the images, others in every epoch.
        - `title`: what messages call an image, before its number.

        **Raises:** `ValueError` if there are no images, not one label per image, or a label out of range.
        """
        if len(images) == 0 or len(images) != len(labels):
            raise ValueError(f"`ImageArrays` got {len(images)} images and {len(labels)} labels; it needs one each.")
        if labels.min() < 0 or labels.max() >= len(class_names):
            raise ValueError(
                f"`ImageArrays` got labels from {labels.min()} to {labels.max()} and {len(class_names)} classes: "
                f"labels are 0 to {len(class_names) - 1}."
            )
        self.class_names = class_names
        self._images = images
        self._labels = labels.astype(np.int32)
        self._flip = flip
        self._title = title

    @property
    def in_memory(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether no thread has to read ahead: flips are drawn for each image, which takes a while."""
        return not self._flip

    @property
    def shape(self) -> tuple[int, int, int]:
        """Height, width and channels of an image."""
        return self._images.shape[1:]

    def __len__(self) -> int:
        return len(self._labels)

    def with_flip(self, flip: bool) -> "ImageArrays":
        """Returns the same images, mirrored or not."""
        other = copy.copy(self)
        other._flip = flip
        return other

    def label(self, index: int) -> int:
        """Returns the label of one image, without its pixels."""
        return int(self._labels[index])

    def read(self, visit: Visit) -> Images:
        """Returns one image and its label."""
        image = self._images[visit.index]
        return Images(image[:, ::-1] if self._mirrored(visit) else image, np.asarray(self._labels[visit.index]))

    def read_batch(self, visits: list[Visit]) -> Images:
        """Returns several images, stacked."""
        rows = np.asarray([visit.index for visit in visits])
        images = self._images[rows]
        mirrored = np.asarray([self._mirrored(visit) for visit in visits], bool)
        images[mirrored] = images[mirrored][:, :, ::-1]
        return Images(images, self._labels[rows])

    def name(self, index: int) -> str:
        """Returns the title and the number of an image."""
        return f"{self._title} {index}"

    def _mirrored(self, visit: Visit) -> bool:
        return self._flip and visit.rng().random() < 0.5
