import os
from collections.abc import Callable, Sequence
from pathlib import Path

from .._class_folders import describe, files_by_class, list_folder
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
    on_progress: Callable[[int, int], None] | None = None,
) -> VideoSource:
    """Reads videos from one folder per class, `root/<class>/<video>`.

    The classes are the folders, sorted by name. Hidden files and files without the extension of a video are left out.

    **Arguments:**

    - `root`: the folder that holds the class folders.
    - `transform`: how clips are taken and cropped.
    - `classes`: the names of all class folders, in the order of their labels. For a test set that lacks some classes,
      `classes=train.class_names` gives the labels of training.
    - `cache`, `on_progress`: see [`VideoSource`][elt_zoo.data.VideoSource].

    **Raises:** `DataError` if the folder does not exist or has no class folders; if a class folder holds no video, is
    not among `classes`, cannot be read, or is a symbolic link to another one.
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
    return VideoSource(root, files, labels, class_names, transform, cache=cache, on_progress=on_progress)


def videos_by_class(root: Path, call: str, expected: str, ignored: Sequence[str] = ()) -> dict[str, list[str]]:
    """Lists the videos of each class folder, as sorted paths below `root`."""
    found, loose = list_folder(root, call, f"Expected {expected}")
    folders = [name for name in found if name not in ignored]
    if not folders:
        raise DataError(f"{call}: no class folders. Expected {expected}; found {describe(folders, loose)}.")
    return files_by_class(root, folders, _is_video_name, call, kind="video", deep=False)


def _is_video_name(name: str) -> bool:
    return name.lower().endswith(_SUFFIXES) and not name.startswith(".")
