"""Data sets on disk with a folder for each class."""

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from ._messages import some
from ._source import DataError


def list_folder(root: Path, call: str, expected: str) -> tuple[list[str], list[str]]:
    """Lists the names of the folders and of the files in a folder, sorted, without hidden ones.

    **Raises:** `DataError` if there is no such folder, it cannot be read, or a link in it leads nowhere.
    """
    try:
        entries = [(entry.name, is_folder) for entry, is_folder in _scan(root)]
    except OSError as error:
        raise DataError(f"{call}: {_problem(error)}. {expected}.") from error
    folders = sorted(name for name, is_folder in entries if is_folder)
    return folders, sorted(name for name, is_folder in entries if not is_folder)


def describe(folders: Sequence[str], files: Sequence[str]) -> str:
    """Says what a folder holds, for messages."""
    kinds = [(folders, "folder(s)"), (files, "file(s)")]
    return " and ".join(f"{len(names)} {kind} ({some(names)})" for names, kind in kinds if names) or "nothing"


def files_by_class(
    root: Path, folders: Sequence[str], wanted: Callable[[str], bool], call: str, *, kind: str, deep: bool
) -> dict[str, list[str]]:
    """Lists the files of each class folder, as sorted paths below the root.

    **Arguments:** `root`, `folders`: the class folders and where they are; `wanted`: tells by its name whether a file
    counts; `call`, `kind`: for messages, such as "image"; `deep`: whether folders inside a class count.

    **Raises:** `DataError` if a class has no file, a folder cannot be read, or a link leads nowhere or to a folder that
    is read already: its files would count twice, or without end.
    """
    seen = {_identity(root): "."}

    def below(path: str) -> Iterator[str]:
        identity = _identity(root / path)
        if identity in seen:
            raise DataError(
                f"{call}: {path} and {seen[identity]} are one folder, by a symbolic link, and its files would count "
                "twice. Remove the link."
            )
        seen[identity] = path
        # Nothing is asked of a file but its name: there may be a million.
        for entry, is_folder in _scan(root / path, certain=wanted):
            if not is_folder and wanted(entry.name):
                yield f"{path}/{entry.name}"
            elif is_folder and deep:
                yield from below(f"{path}/{entry.name}")

    try:
        files = {folder: sorted(below(folder)) for folder in folders}
    except OSError as error:
        raise DataError(f"{call}: {_problem(error)}.") from error
    empty = [folder for folder, names in files.items() if not names]
    if empty:
        raise DataError(
            f"{call}: {len(empty)} of {len(folders)} class folders hold no {kind}: {some(empty)}. Fill or remove them."
        )
    return files


def _scan(folder: Path, certain: Callable[[str], bool] = lambda name: False) -> Iterator[tuple[os.DirEntry, bool]]:
    """The entries of a folder that are not hidden, and whether each is a folder. Names that are `certain` to be of
    files are not looked at.

    **Raises:** `OSError`, also for a link that leads nowhere.
    """
    with os.scandir(folder) as scan:
        for entry in scan:
            if entry.name.startswith("."):
                continue
            if certain(entry.name):
                yield entry, False
                continue
            if entry.is_symlink():
                os.stat(entry.path)
            yield entry, entry.is_dir()


def _identity(folder: Path) -> tuple[int, int] | Path:
    status = os.stat(folder)
    # Some network file systems number nothing.
    return (status.st_dev, status.st_ino) if status.st_ino else folder


def _problem(error: OSError) -> str:
    path = error.filename
    match error:
        case FileNotFoundError() if os.path.islink(path):
            return f"{path} is a symbolic link that leads nowhere; repair or remove it"
        case FileNotFoundError():
            return f"{path} does not exist"
        case NotADirectoryError():
            return f"{path} is a file and not a folder"
        case _:
            return f"{path} cannot be read ({error.strerror})"
