import os
from collections.abc import Callable, Sequence
from pathlib import Path

from .._messages import some
from .._source import DataError
from ._source import VideoSource
from ._transform import ClipTransform

_SUFFIXES = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm")


def video_folder(
    root: str | os.PathLike,
    transform: ClipTransform | None = None,
    *,
    classes: Sequence[str] | None = None,
    cache: str | os.PathLike | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> VideoSource:
    """Any set of videos with a folder for each class: `root/<class>/<video>`.

    Classes are the folders, in the order of their names. Hidden files and files without the ending of a video are left
    out.

    **Arguments:**

    - `root`: the folder of the class folders.
    - `transform`: how a clip is taken.
    - `classes`: the folders that there may be, in the order of their labels. A test set that lacks some classes gets
      the labels of training with `classes=train.class_names`.
    - `cache`, `progress`: of [`VideoSource`][elt_zoo.data.VideoSource].

    **Raises:** `DataError`, saying what was expected and found, if there is no such folder, it is laid out otherwise, a
    class has no videos, or is not among `classes`.
    """
    root = Path(root)
    call = f"`video_folder({str(root)!r})`"
    by_class = videos_by_class(root, call, f"{root}/<class>/<video>")
    class_names = tuple(by_class) if classes is None else tuple(classes)
    unknown = sorted(set(by_class) - set(class_names))
    if unknown:
        raise DataError(f"{call}: {len(unknown)} class folders are not among `classes`: {some(unknown)}.")
    files = [file for members in by_class.values() for file in members]
    labels = [class_names.index(folder) for folder, members in by_class.items() for _ in members]
    return VideoSource(root, files, labels, class_names, transform, cache=cache, progress=progress)


def videos_by_class(root: Path, call: str, expected: str, ignored: Sequence[str] = ()) -> dict[str, list[str]]:
    """The videos in each folder of `root`, as paths below it, both in the order of their names."""
    if not root.is_dir():
        raise DataError(f"{call}: there is no such folder. Expected {expected}.")
    entries = sorted(root.iterdir())
    folders = [entry.name for entry in entries if entry.is_dir() and entry.name[0] != "." and entry.name not in ignored]
    if not folders:
        found = some([entry.name for entry in entries])
        raise DataError(f"{call}: no class folders. Expected {expected}; found {found}.")
    videos = {folder: [f"{folder}/{name}" for name in _video_names(root / folder)] for folder in folders}
    empty = [folder for folder, members in videos.items() if not members]
    if empty:
        raise DataError(
            f"{call}: {len(empty)} of {len(folders)} class folders hold no video ({', '.join(_SUFFIXES)}): "
            f"{some(empty)}. Expected {expected}. Fill or remove them."
        )
    return videos


def _video_names(folder: Path) -> list[str]:
    names = sorted(os.listdir(folder))
    return [name for name in names if name[0] != "." and name.lower().endswith(_SUFFIXES)]
