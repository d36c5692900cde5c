from collections.abc import Mapping, Sequence
from pathlib import Path

from .._class_folders import describe, files_by_class, list_folder
from .._messages import some
from .._source import DataError
from ._source import ImageSource, is_image_name
from ._transform import ImageTransform

_SPLITS = {"test", "train", "training", "val", "valid", "validation"}


class FolderFiles:
    """Image files below a folder."""

    def __init__(self, root: Path, names: Sequence[str]):
        self._root = root
        self._names = names

    def __len__(self) -> int:
        return len(self._names)

    def read(self, index: int) -> bytes:
        """Returns the bytes of a file."""
        return (self._root / self._names[index]).read_bytes()

    def name(self, index: int) -> str:
        """Returns the path of a file."""
        return str(self._root / self._names[index])


def image_folder(
    root: str | Path,
    transform: ImageTransform,
    *,
    classes: Sequence[str] | None = None,
    names: Mapping[str, str] | None = None,
) -> ImageSource:
    """Reads images from one folder per class, such as `root/cat/1.jpg`, at any depth below the class.

    The classes are the folders, sorted by name. Hidden files and files without the extension of an image are left out.

    **Arguments:**

    - `root`: the folder that holds the class folders.
    - `transform`: how images are decoded and cropped.
    - `classes`: the names of all class folders, in the order of their labels. For a validation set that lacks some
      classes, `classes=train.classes` gives the labels of training.
    - `names`: readable names of the folders, for `class_names`.

    **Raises:** `DataError` if the folder does not exist or has no class folders; if a class folder holds no image (its
    label would go to the next class), cannot be read, or is a symbolic link to another one.
    """
    root = Path(root)
    call = f"`image_folder({str(root)!r})`"
    expected = f"Expected one folder per class with images in it, such as {root / 'cat' / '1.jpg'}"
    folders, loose = list_folder(root, call, expected)
    if not folders:
        raise DataError(f"{call}: no class folders. {expected}; found {describe(folders, loose)}.")
    if set(folders) <= _SPLITS:
        raise DataError(
            f"{call}: these are splits and not classes: {some(folders)}. Give the folder of one split, such as "
            f"{root / folders[0]}."
        )
    by_class = files_by_class(root, folders, is_image_name, call, kind="image", deep=True)
    files = [name for names in by_class.values() for name in names]
    class_of_each = [folder for folder, names in by_class.items() for _ in names]
    return ImageSource(FolderFiles(root, files), class_of_each, transform, classes=classes, names=names)
