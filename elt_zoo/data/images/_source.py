import copy
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np

from .._batches import Images
from .._messages import some
from .._source import AbstractSource, DataError, UnreadableExample, Visit
from ._transform import ImageTransform

IMAGE_EXTENSIONS = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")


def is_image_name(name: str) -> bool:
    """Whether a file is taken for an image: by its extension, in capitals or not, unless it is hidden."""
    return name.lower().endswith(IMAGE_EXTENSIONS) and not name.startswith(".")


class ImageFiles(Protocol):
    """Where the encoded images are: in a folder or in an archive."""

    def __len__(self) -> int: ...

    def read(self, index: int) -> bytes:
        """The whole file. **Raises:** `OSError` if it cannot be read. Several threads may call this."""
        ...

    def name(self, index: int) -> str:
        """The file's path."""
        ...


class ImageSource(AbstractSource):
    """Encoded images, decoded and cropped when they are read.

    [`image_folder`][elt_zoo.data.image_folder], [`image_tar`][elt_zoo.data.image_tar] and
    [`imagenet`][elt_zoo.data.imagenet] make one.

    **Arguments:**

    - `files`: the encoded images.
    - `class_of_each`: the class of each file, as the data set calls it (a folder's name, a WordNet id).
    - `transform`: how to decode and crop.
    - `classes`: all classes, in the order of their labels; by default those that occur, sorted.
    - `names`: readable names of the classes, for `class_names`; a class that is not in it keeps its own.

    **Raises:** `ValueError` if there is not one class per file. `DataError` if a class is not among the `classes`.
    """

    classes: tuple[str, ...]
    """The classes as the data set calls them, by label."""

    def __init__(
        self,
        files: ImageFiles,
        class_of_each: Sequence[str],
        transform: ImageTransform,
        *,
        classes: Sequence[str] | None = None,
        names: Mapping[str, str] | None = None,
    ):
        if len(files) != len(class_of_each):
            raise ValueError(
                f"`ImageSource` got {len(files)} files and {len(class_of_each)} classes; it needs one class each."
            )
        found = set(class_of_each)
        self.classes = tuple(sorted(found) if classes is None else classes)
        label_of = {name: label for label, name in enumerate(self.classes)}
        unknown = sorted(found - label_of.keys())
        if unknown:
            raise DataError(
                f"{len(unknown)} of the {len(found)} classes found are not among the {len(self.classes)} given: "
                f"{some(unknown)}. Give all classes, or none to take those found."
            )
        self.class_names = tuple((names or {}).get(name, name) for name in self.classes)
        self.transform = transform
        self._files = files
        self._labels = np.asarray([label_of[name] for name in class_of_each], np.int32)

    def __len__(self) -> int:
        return len(self._files)

    def label(self, index: int) -> int:
        """The class of one image."""
        return int(self._labels[index])

    def with_transform(self, transform: ImageTransform) -> "ImageSource":
        """The same images, decoded and cropped otherwise."""
        other = copy.copy(self)
        other.transform = transform
        return other

    def encoded(self, index: int) -> bytes:
        """One file as it is stored. **Raises:** `UnreadableExample` if it is gone."""
        try:
            return self._files.read(index)
        except OSError as error:
            raise UnreadableExample(f"a file that cannot be read ({error.strerror or error})") from error

    def read(self, visit: Visit) -> Images:
        """One image, cropped, and its class."""
        try:
            image = self.transform(self.encoded(visit.index), visit.rng())
        except UnreadableExample as error:
            error.add_note(self.name(visit.index))
            raise
        return Images(image, np.asarray(self._labels[visit.index]))

    def name(self, index: int) -> str:
        """The path of the file, within its archive if it is in one."""
        return self._files.name(index)
