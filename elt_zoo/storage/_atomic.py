import contextlib
import errno
import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ._process import is_abandoned, is_our_own, temporary_name

# What a disk does to whoever writes to it, in whatever library.
_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EIO, errno.ESTALE}


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike) -> Iterator[Path]:
    """Writes a file whole or not at all: `with atomic_write("scores.csv") as file: file.write_text(…)`.

    The context gives the path of an empty file in the same folder, with the same suffix. At the end it is flushed to
    the disk and takes the place of what was there; after an exception or a kill the old file is still there. The new
    file has the access rights of any new file (umask). What killed processes left in the folder is removed.

    **Arguments:** `path`: the file; its folder exists. A symbolic link is followed.

    **Raises:** `OSError` in one line if the file cannot be written: no such folder, no rights, disk full, or something
    there that is not a file.
    """
    path = Path(path)
    target = Path(os.path.realpath(path))
    with _one_line(path):
        if target.exists() and not target.is_file():
            raise OSError(errno.EISDIR if target.is_dir() else errno.EINVAL, "it is not a regular file")
        remove_abandoned(target.parent)
        temporary = target.with_name(temporary_name(target.suffix))
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        mode = stat.S_IMODE(temporary.stat().st_mode)
    try:
        try:
            yield temporary
        except OSError as error:
            if error.errno not in _DISK:
                raise
            with _one_line(path):
                raise
        with _one_line(path):
            # Libraries may have put a private file in its place.
            temporary.chmod(mode)
            _flush(temporary)
            os.replace(temporary, target)
            _flush(target.parent)
    finally:
        temporary.unlink(missing_ok=True)


def require_writable(path: str | os.PathLike) -> None:
    """Makes sure that a file can be written, before hours of work: its folder is there, and takes a new file.

    **Arguments:** `path`: of a file to be written later, in a folder that exists.

    **Raises:** `OSError` in one line if it cannot.
    """
    path = Path(path)
    target = Path(os.path.realpath(path))
    with _one_line(path):
        if target.exists() and not target.is_file():
            raise OSError(errno.EISDIR if target.is_dir() else errno.EINVAL, "it is not a regular file")
        _write_and_remove(target.parent)


def require_writable_folder(folder: str | os.PathLike) -> None:
    """Makes sure that files can be written to a folder that is there or can be made, and makes none.

    **Raises:** `OSError` in one line if they cannot.
    """
    existing = Path(os.path.realpath(folder))
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    if not existing.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, f"{folder} cannot be a folder: {existing} is a file")
    try:
        _write_and_remove(existing)
    except OSError as error:
        code = error.errno or errno.EIO
        raise OSError(code, f"{folder} cannot be written to: {os.strerror(code)}") from error


def _write_and_remove(folder: Path) -> None:
    temporary = folder / temporary_name("")
    os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    temporary.unlink()


def remove_abandoned(folder: str | os.PathLike) -> None:
    """Removes the unfinished files that killed processes of this library left in a folder, and nothing else.

    A process of another machine counts as killed if its file has not changed for a day.
    """
    for entry in Path(folder).iterdir():
        if is_abandoned(entry):
            entry.unlink(missing_ok=True)


def foreign_entries(folder: str | os.PathLike) -> list[str]:
    """Names of everything in a folder but this library's locks and unfinished files; empty if there is no folder.

    Where it is empty, a folder may be claimed: at most a process of ours was killed there before it had written
    anything.

    **Raises:** `NotADirectoryError` if it is no folder.
    """
    try:
        return sorted(name for name in os.listdir(folder) if not is_our_own(name))
    except FileNotFoundError:
        return []


def read_json(path: str | os.PathLike) -> Any:
    """The content of a JSON file.

    **Raises:** `OSError` if it cannot be read; `ValueError` in one line, naming the file, if it is not JSON, or has a
    key twice.
    """
    try:
        return json.loads(Path(path).read_bytes(), object_pairs_hook=unique_keys)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged or not a JSON file: {error}") from error


def write_json(path: str | os.PathLike, content: Any, *, indent: int | None = 2) -> None:
    """Writes a JSON file whole or not at all, see [`atomic_write`][elt_zoo.storage.atomic_write].

    **Raises:** `TypeError` for what JSON cannot hold, before anything is written; `OSError` in one line if the file
    cannot be written.
    """
    text = json.dumps(content, indent=indent, ensure_ascii=False)
    with atomic_write(path) as file:
        file.write_text(text + "\n", encoding="utf-8")


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """For `json.loads(object_pairs_hook=…)`: refuses a key that occurs twice."""
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ValueError("a name occurs twice in one table")
    return table


@contextlib.contextmanager
def _one_line(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise OSError(error.errno, f"{path} cannot be written: {reason}. Nothing was changed.") from error


def _flush(path: Path) -> None:
    """Waits until a file or the entries of a folder are on the disk, where the system can tell."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise
    finally:
        os.close(handle)
