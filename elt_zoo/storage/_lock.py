import errno
import os
import shlex
import socket
import sys
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ._atomic import read_json, remove_abandoned, write_json
from ._process import LOCK_NAME, Process, is_dead, temporary_name, this_process

HEARTBEAT_SECONDS = 10.0
STALE_SECONDS = 120.0
"""A lock of another machine, which touches its file every 10 seconds, is abandoned if it has not for this long."""
_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}
_BREAKING_SECONDS = 30.0


class FolderLocked(RuntimeError):
    """A folder that another process writes to. The message names it: host, process, since when, command."""


class FolderLock:
    """The right to write to a folder: `with FolderLock("runs/a"): …`. Readers need none.

    It is a file in the folder, `.elt-zoo-lock`, that says who holds it. There is one holder at a time, among threads,
    processes and hosts. A crash locks nobody out:

    - a lock of this machine is abandoned if its process has ended (a later process of the same number is another one);
    - a lock of another machine, container or boot is abandoned if its file was not touched for 120 seconds; the holder
      does so every 10. Ages are told by the clock of the file system.

    File systems need no locking of their own, only that creating a file or a link fails if it exists, as local ones,
    NFS from version 3, Lustre and SMB guarantee. Object stores mounted as folders do not; there one process has to
    keep to one folder by itself.

    It is not re-entrant: a second lock on the same folder is refused, in the same process too. Functions below the one
    that took it do not take it again. Of several processes that train together, one takes it.
    """

    def __init__(self, folder: str | os.PathLike):
        """**Arguments:** `folder`: created if missing, when the lock is taken."""
        self.folder = Path(folder).absolute()
        self._file = self.folder / LOCK_NAME
        self._entry: dict[str, Any] | None = None
        self._stop = threading.Event()
        self._owner = 0

    def __enter__(self) -> "FolderLock":
        self.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def acquire(self) -> None:
        """Takes the lock, or refuses at once.

        **Raises:** `FolderLocked` if another holds it, naming the holder; `OSError` if the folder cannot be written to.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        remove_abandoned(self.folder)
        process, token = this_process(), temporary_name("")
        entry = process._asdict() | {
            "host": socket.gethostname(),
            "since": datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC"),
            "command": shlex.join(sys.argv)[:200],
            "token": token,
        }
        own = self.folder / token
        try:
            for _ in range(20):
                # Written anew each time: its time of change is what time it is on the file system.
                write_json(own, entry)
                if _create(self._file, own):
                    break
                holder = _read_holder(self._file)
                if holder is None:
                    continue
                if not _abandoned(self._file, holder, own.stat().st_mtime):
                    raise FolderLocked(_refusal(self.folder, self._file, holder))
                self._remove_abandoned_lock(holder, own.stat().st_mtime)
            else:
                raise FolderLocked(f"{self.folder} is just being taken by other processes. Try again.")
        finally:
            own.unlink(missing_ok=True)
        self._entry, self._owner = entry, os.getpid()
        self._stop = threading.Event()
        threading.Thread(target=self._beat, args=(self._stop,), name="elt_zoo folder lock", daemon=True).start()

    def release(self) -> None:
        """Gives the lock back; does nothing if it is not held, or in a forked child."""
        entry, self._entry = self._entry, None
        self._stop.set()
        if entry is not None and self._owner == os.getpid() and _read_holder(self._file) == entry:
            self._file.unlink(missing_ok=True)

    def check(self) -> None:
        """Makes sure, before something that cannot be undone, that the lock is still held.

        **Raises:** `FolderLocked` if it was removed, or taken by another machine because this one slept too long.
        """
        holder = _read_holder(self._file)
        if self._entry is None or holder != self._entry:
            lost = "nobody holds it now." if holder is None else f"it is held by {_named(holder)}."
            raise FolderLocked(f"The lock on {self.folder} was lost: {lost} Stop, and start again.")

    def _beat(self, stop: threading.Event) -> None:
        while not stop.wait(HEARTBEAT_SECONDS):
            try:
                if _read_holder(self._file) != self._entry:
                    return
                os.utime(self._file)
            except OSError:
                # The file system may be away for a moment.
                continue

    def _remove_abandoned_lock(self, holder: dict[str, Any], now: float) -> None:
        """Removes a lock that was found abandoned, unless somebody else has done so and taken it since."""
        # Whoever creates this file may look again and remove; no two do so at a time.
        guard = self._file.with_name(f"{LOCK_NAME}.breaking")
        try:
            os.close(os.open(guard, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        except FileExistsError:
            try:
                if now - guard.stat().st_mtime > _BREAKING_SECONDS:
                    guard.unlink(missing_ok=True)
            except FileNotFoundError:
                pass
            time.sleep(0.05)
            return
        try:
            if _read_holder(self._file) == holder:
                self._file.unlink(missing_ok=True)
        finally:
            guard.unlink(missing_ok=True)


def _create(file: Path, own: Path) -> bool:
    """Gives a written file its second name if that is free: it is never seen without its content."""
    try:
        os.link(own, file)
        return True
    except FileExistsError:
        # Over a network the answer to a link that was made may be lost and the request repeated.
        return own.stat().st_nlink == 2
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
    try:
        with file.open("xb") as opened:
            opened.write(own.read_bytes())
        return True
    except FileExistsError:
        return False


def _read_holder(file: Path) -> dict[str, Any] | None:
    """Who holds a lock; `None` if nobody does, `{}` if the file does not say."""
    try:
        holder = read_json(file)
    except FileNotFoundError:
        return None
    except ValueError:
        return {}
    return holder if isinstance(holder, dict) else {}


def _abandoned(file: Path, holder: dict[str, Any], now: float) -> bool:
    try:
        dead = is_dead(Process(str(holder["machine"]), int(holder["pid"]), int(holder["start"])))
    except (KeyError, TypeError, ValueError):
        dead = None
    if dead is not None:
        return dead
    try:
        return now - file.stat().st_mtime > STALE_SECONDS
    except FileNotFoundError:
        return True


def _named(holder: dict[str, Any]) -> str:
    if "token" not in holder:
        return "a process that left no name"
    if holder["pid"] == os.getpid() and holder["machine"] == this_process().machine:
        return f"this very process (since {holder['since']})"
    return f"process {holder['pid']} on {holder['host']} since {holder['since']} ({holder['command']})"


def _refusal(folder: Path, file: Path, holder: dict[str, Any]) -> str:
    return (
        f"{folder} is being written to by {_named(holder)}. Wait until that ends, or use another folder. A lock whose "
        f"process is gone opens by itself, that of another machine after {STALE_SECONDS:.0f} seconds ({file})."
    )
