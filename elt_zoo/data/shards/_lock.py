import contextlib
import errno
import os
import re
import time
from pathlib import Path

from ...storage import FolderLock, FolderLocked, foreign_entries

_SHARE = re.compile(r"process-(\d+)-of-(\d+)\.lock")
# Processes that start together wait for each other while they compare their plans.
_PATIENCE_SECONDS = 60.0


class FolderShare:
    """The right to write one process's shards of a folder, a context.

    A process on its own locks the folder. Processes that share it lock the folder only until they have agreed on the
    plan, see `admit_others`, and keep a lock each on a folder inside, `process-0-of-4.lock`.
    """

    alone: bool
    """Whether no other process writes to the folder."""

    def __init__(self, folder: Path, index: int, count: int):
        self._folder = folder
        self._index = index
        self._count = count
        self._whole = FolderLock(folder)
        self._part = FolderLock(folder / f"process-{index}-of-{count}.lock") if count > 1 else None

    def __enter__(self) -> "FolderShare":
        """**Raises:** `FolderLocked` if another process writes the same shards, naming it; `OSError` in one line if the
        folder cannot be written to.
        """
        try:
            _acquire(self._whole, patience=_PATIENCE_SECONDS if self._part else 0.0)
        except OSError as error:
            not_a_folder = error.errno in (errno.EEXIST, errno.ENOTDIR)
            reason = "it is not a folder" if not_a_folder else os.strerror(error.errno or errno.EIO)
            raise OSError(
                error.errno, f"{self._folder} cannot take shards: {reason}. Choose another folder; nothing was changed."
            ) from error
        try:
            self.alone = self._check_others()
            if self._part is not None:
                self._part.acquire()
        except BaseException:
            self._whole.release()
            raise
        return self

    def admit_others(self) -> None:
        """Lets the other processes of the same work in."""
        if self._part is not None:
            self._whole.release()

    def __exit__(self, *_: object) -> None:
        if self._part is not None:
            self._part.release()
            _remove(self._part.folder)
        self._whole.release()

    def _check_others(self) -> bool:
        alone = True
        for name in os.listdir(self._folder):
            if (match := _SHARE.fullmatch(name)) is None:
                continue
            try:
                with FolderLock(self._folder / name):
                    pass
            except FolderLocked as error:
                if int(match[2]) != self._count:
                    raise FolderLocked(
                        f"{self._folder} is shared by {match[2]} processes, and this one is number {self._index} of "
                        f"{self._count}. Use the same number, or wait until they end. {error}"
                    ) from error
                if int(match[1]) == self._index:
                    raise
                alone = False
            else:
                _remove(self._folder / name)  # its process was killed
        return alone


def other_entries(folder: Path) -> list[str]:
    """Names of what is in a folder, other than locks and unfinished files of this library."""
    return [name for name in foreign_entries(folder) if _SHARE.fullmatch(name) is None]


def _acquire(lock: FolderLock, *, patience: float) -> None:
    deadline = time.monotonic() + patience
    while True:
        try:
            return lock.acquire()
        except FolderLocked:
            if time.monotonic() >= deadline:
                raise
            time.sleep(0.1)


def _remove(folder: Path) -> None:
    with contextlib.suppress(OSError):
        folder.rmdir()
