import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from .._class_folders import list_folder
from .._messages import some
from .._source import DataError
from ._folder import videos_by_class
from ._source import VideoSource
from ._transform import ClipTransform

VIDEO_FOLDER = "UCF-101"
LIST_FOLDER = "ucfTrainTestlist"


def ucf101(
    root: str | os.PathLike,
    transform: ClipTransform | None = None,
    *,
    split: Literal["train", "test", "all"] = "train",
    fold: int = 1,
    lists: str | os.PathLike | None = None,
    cache: str | os.PathLike | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> VideoSource:
    """Reads UCF-101 as its archives unpack, or any videos laid out like it.

    ```text
    root/UCF-101/<Class>/v_<Class>_g01_c01.avi
    root/ucfTrainTestlist/classInd.txt, trainlist01.txt, testlist01.txt, …
    ```

    Labels are the numbers in `classInd.txt` minus one. Without the lists, only `split="all"` is possible; classes are
    then sorted by name, which may differ from `classInd.txt`.

    **Arguments:**

    - `root`: the folder that holds `UCF-101`, or `UCF-101` itself, with the lists beside it or in it.
    - `transform`: how clips are taken and cropped.
    - `split`, `fold`: one of the official lists; "all" is every file.
    - `lists`: the folder of the lists, if it is elsewhere.
    - `cache`, `on_progress`: see [`VideoSource`][elt_zoo.data.VideoSource].

    **Raises:** `DataError` with what was expected and found, if folders, lists or files of a list are missing, or a
    list is malformed. `ValueError` for another split.

    ??? cite "Reference"
        Soomro, Zamir, Shah: *UCF101: A Dataset of 101 Human Actions Classes From Videos in The Wild*, 2012
        (arXiv 1212.0402).
    """
    if split not in ("train", "test", "all"):
        raise ValueError(f"`ucf101(split={split!r})`: the splits are 'train', 'test' and 'all'.")
    root = Path(root)
    call = f"`ucf101({str(root)!r}, split={split!r})`"
    expected = f"{root}/{VIDEO_FOLDER}/<Class>/v_*.avi"
    list_folder(root, call, f"Expected {expected}")
    videos = root / VIDEO_FOLDER if (root / VIDEO_FOLDER).is_dir() else root
    places = [videos.parent / LIST_FOLDER, videos / LIST_FOLDER] if lists is None else [Path(lists)]
    folder = next((place for place in places if place.is_dir()), None)
    if folder is None and (split != "all" or lists is not None):
        raise DataError(
            f"{call} needs the official lists ({LIST_FOLDER}); there is no folder "
            f"{' or '.join(map(str, places))}. Unpack them there, or take every file with split='all'."
        )
    if split == "all":
        by_class = videos_by_class(videos, call, expected, ignored=[LIST_FOLDER])
        names = sorted(by_class) if folder is None else _class_names(folder / "classInd.txt")
        files = [file for members in by_class.values() for file in members]
        labels = _labels(files, names, videos)
    else:
        assert folder is not None
        names = _class_names(folder / "classInd.txt")
        files, labels = _read_list(folder / f"{split}list{fold:02}.txt", names)
    return VideoSource(videos, files, labels, names, transform, cache=cache, on_progress=on_progress)


def _lines(path: Path) -> list[list[str]]:
    try:
        text = path.read_text()
    except FileNotFoundError:
        raise DataError(f"There is no list {path}. Beside it: {some(sorted(os.listdir(path.parent)))}.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"The list {path} cannot be read: {getattr(error, 'strerror', None) or error}.") from error
    return [line.split() for line in text.splitlines() if line.strip()]


def _class_names(path: Path) -> list[str]:
    """Reads `classInd.txt`, whose lines are "1 ApplyEyeMakeup"."""
    lines = _lines(path)
    if [line[0] for line in lines] != [str(number) for number in range(1, len(lines) + 1)] or {2} != set(
        map(len, lines)
    ):
        raise DataError(f"{path} should number the classes from 1 on, with lines such as '1 ApplyEyeMakeup'.")
    return [name for _, name in lines]


def _read_list(path: Path, names: Sequence[str]) -> tuple[list[str], list[int]]:
    """Reads a list, whose lines are "Class/v_Class_g01_c01.avi 1", without the number in test lists."""
    lines = _lines(path)
    files = [line[0] for line in lines]
    labels = _labels(files, names, path)
    for line, label in zip(lines, labels, strict=True):
        if len(line) > 1 and line[1] != str(label + 1):
            raise DataError(f"{path} gives {line[0]} the number {line[1]}; in classInd.txt it is {label + 1}.")
    return files, labels


def _labels(files: Sequence[str], names: Sequence[str], where: Path) -> list[int]:
    numbers = {name: number for number, name in enumerate(names)}
    unknown = sorted({file.split("/")[0] for file in files} - set(numbers))
    if unknown:
        raise DataError(f"{where} has classes that classInd.txt does not name: {some(unknown)}.")
    return [numbers[file.split("/")[0]] for file in files]
