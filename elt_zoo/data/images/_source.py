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
    """Whether a file counts as an image: by its extension in any case, unless it is hidden."""
    return name.lower().endswith(IMAGE_EXTENSIONS) and not name.startswith(".")


class ImageFiles(Protocol):
    """Encoded images in a folder or an archive."""

    def __len__(self) -> int: ...

    def read(self, index: int) -> bytes:
        """Returns the bytes of a file. Several threads may call this. **Raises:** `OSError` if it cannot be read."""
        ...

    def name(self, index: int) -> str:
        """Returns the path of a file."""
        ...


class ImageSource(AbstractSource):
    """A source of encoded images, which are decoded and cropped when they are read.

    [`image_folder`][elt_zoo.data.image_folder], [`image_tar`][elt_zoo.data.image_tar] and
    [`imagenet`][elt_zoo.data.imagenet] make one.

    **Arguments:**

    - `files`: any object with a length, `read(index)`, which returns the bytes of a file or raises `OSError`, and
      `name(index)`, which returns its path.
    - `class_of_each`: the class of each file as the data set calls it (the name of a folder, a WordNet id).
    - `transform`: how images are decoded and cropped.
    - `classes`: all classes in the order of their labels, by default sorted from `class_of_each`.
    - `names`: readable names of classes, for `class_names`; other classes keep theirs.

    **Raises:** `ValueError` if there is not one class per file. `DataError` if a class is not among `classes`.
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
        """Returns the label of one image, without reading it."""
        return int(self._labels[index])

    def with_transform(self, transform: ImageTransform) -> "ImageSource":
        """Returns the same images with another transform."""
        other = copy.copy(self)
        other.transform = transform
        return other

    def encoded(self, index: int) -> bytes:
        """Returns the bytes of one file. **Raises:** `UnreadableExample` if it cannot be read."""
        try:
            return self._files.read(index)
        except OSError as error:
            raise UnreadableExample(f"a file that cannot be read ({error.strerror or error})") from error

    def read(self, visit: Visit) -> Images:
        """Returns one image, cropped for this visit, and its label. **Raises:** `UnreadableExample`."""
        try:
            image = self.transform(self.encoded(visit.index), visit.rng())
        except UnreadableExample as error:
            error.add_note(self.name(visit.index))
            raise
        return Images(image, np.asarray(self._labels[visit.index]))

    def name(self, index: int) -> str:
        """Returns the path of a file, with its archive if it is in one."""
        return self._files.name(index)
