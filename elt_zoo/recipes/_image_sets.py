from pathlib import Path
from typing import NamedTuple

from ..data import IMAGE_SETS, ImageArrays, ImageSet
from ._split import Split


class NamedImages(NamedTuple):
    """A published set of images, and where its files are."""

    images: ImageSet
    root: Path

    def open(self, split: Split, *, size: int | None, flip: bool = False) -> ImageArrays:
        """Its images of a split. They are mirrored only where that leaves the class as it is."""
        return self.images.open(self.root, split, size=size, flip=flip and self.images.symmetric)


def named_images(data: str) -> NamedImages | None:
    """The published set that `data` means: its name, for the files in the cache, or the path of its official files."""
    if data in IMAGE_SETS:
        return NamedImages(IMAGE_SETS[data], IMAGE_SETS[data].folder)
    path = Path(data)
    return next((NamedImages(images, path) for images in IMAGE_SETS.values() if images.holds(path)), None)
