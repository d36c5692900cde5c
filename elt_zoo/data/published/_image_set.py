import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Literal, Protocol

from ...storage import PublishedFile, cache_folder
from .._image_arrays import ImageArrays


class OpenImages(Protocol):
    """How a set is opened: [`cifar10`][elt_zoo.data.cifar10] or [`mnist`][elt_zoo.data.mnist]."""

    def __call__(
        self, root: str | Path | None, split: Literal["train", "heldout"], *, flip: bool, size: int | None
    ) -> ImageArrays: ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageSet:
    """A small published set of images, which is read into memory from its official files.

    **Fields:**

    - `name`: how commands call it.
    - `title`: how people call it.
    - `shape`: height, width and channels of an image.
    - `symmetric`: whether an image and its mirror image show the same class, so that flips make sense.
    - `address`: where its files are published.
    - `files`: what to fetch from there.
    - `holds`: whether a path has such files, by their names.
    - `open`: reads them.
    """

    name: str
    title: str
    shape: tuple[int, int, int]
    symmetric: bool
    address: str
    files: tuple[PublishedFile, ...]
    holds: Callable[[Path], bool]
    open: OpenImages

    @property
    def folder(self) -> Path:
        """Where the files lie unless said otherwise: `~/.cache/elt_zoo/<name>`."""
        return cache_folder(self.name)
