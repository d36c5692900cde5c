import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from .._messages import some
from .._source import DataError
from ._source import ImageSource, is_image_name
from ._transform import ImageTransform

_SPLITS = {"test", "train", "training", "val", "valid", "validation"}


class FolderFiles:
    """Files below a folder."""

    def __init__(self, root: Path, names: Sequence[str]):
        self._root = root
        self._names = names

    def __len__(self) -> int:
        return len(self._names)

    def read(self, index: int) -> bytes:
        """The whole file."""
        return (self._root / self._names[index]).read_bytes()

    def name(self, index: int) -> str:
        """The file's path."""
        return str(self._root / self._names[index])


def image_folder(
    root: str | Path,
    transform: ImageTransform,
    *,
    classes: Sequence[str] | None = None,
    names: Mapping[str, str] | None = None,
) -> ImageSource:
    """Images in one folder per class, such as `root/cat/1.jpg`, at any depth below the class.

    The classes are the folders, sorted by name. Hidden files and files without the extension of an image are left
    out.

    **Arguments:**

    - `root`: the folder of the class folders.
    - `transform`: how to decode and crop.
    - `classes`: the folders that there may be, in the order of their labels. A validation set that lacks some classes
      gets the labels of training with `classes=train.classes`.
    - `names`: readable names of the folders, for `class_names`.

    **Raises:** `DataError` if there is no such folder, it is laid out otherwise, or a class has no image: with classes
    taken from the folders, leaving one out would silently give all that follow other labels.
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
    files: list[str] = []
    class_of_each: list[str] = []
    empty: list[str] = []
    for folder in folders:
        found = sorted(_images_below(root / folder, folder))
        files += found
        class_of_each += [folder] * len(found)
        if not found:
            empty.append(folder)
    if empty:
        raise DataError(
            f"{call}: {len(empty)} of {len(folders)} class folders hold no image: {some(empty)}. Fill or remove them."
        )
    return ImageSource(FolderFiles(root, files), class_of_each, transform, classes=classes, names=names)


def list_folder(root: Path, call: str, expected: str) -> tuple[list[str], list[str]]:
    """Names of the folders and of the files in a folder, sorted, without hidden ones.

    **Raises:** `DataError` if there is no such folder.
    """
    if not root.is_dir():
        what = "is a file and not a folder" if root.exists() else "does not exist"
        raise DataError(f"{call}: {root} {what}. {expected}.")
    with os.scandir(root) as scan:
        entries = [(entry.name, entry.is_dir()) for entry in scan if not entry.name.startswith(".")]
    folders = sorted(name for name, is_folder in entries if is_folder)
    return folders, sorted(name for name, is_folder in entries if not is_folder)


def describe(folders: Sequence[str], files: Sequence[str]) -> str:
    """What a folder holds, for messages."""
    kinds = [(folders, "folder(s)"), (files, "file(s)")]
    return " and ".join(f"{len(names)} {kind} ({some(names)})" for names, kind in kinds if names) or "nothing"


def _images_below(folder: Path, prefix: str) -> Iterator[str]:
    """Paths of the images, beginning with `prefix`. Nothing is asked of a file but its name: there may be a million."""
    with os.scandir(folder) as scan:
        for entry in scan:
            path = f"{prefix}/{entry.name}"
            if is_image_name(entry.name):
                yield path
            elif not entry.name.startswith(".") and entry.is_dir():
                yield from _images_below(folder / entry.name, path)
