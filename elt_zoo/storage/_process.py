"""This process, told apart from every other one, so that what a killed one left behind can be recognised."""

import functools
import hashlib
import os
import re
import secrets
import socket
import time
from pathlib import Path
from typing import NamedTuple

_PREFIX = ".elt-zoo-tmp-"
_TEMPORARY = re.compile(re.escape(_PREFIX) + r"([0-9a-f]{8})-(\d+)-(\d+)-[0-9a-f]{8}(\.[^/]*)?")
LOCK_NAME = ".elt-zoo-lock"
# A file of another machine says nothing of its writer: it is kept as long as any write could take.
_OLD_SECONDS = 24 * 3600


class Process(NamedTuple):
    """A process: `machine` differs between hosts, boots and containers; `start` between processes of one number."""

    machine: str
    pid: int
    start: int


def this_process() -> Process:
    """The running process."""
    return Process(_machine(), os.getpid(), _start_time(os.getpid()) or 0)


def is_dead(process: Process) -> bool | None:
    """Whether a process has ended; `None` if it ran on another machine, where nobody here can tell."""
    if process.machine != _machine():
        return None
    try:
        os.kill(process.pid, 0)
    except (ProcessLookupError, OverflowError):
        return True
    except PermissionError:
        # Of another user, whose processes may be hidden.
        return _start_time(process.pid) not in (None, process.start)
    return _start_time(process.pid) != process.start


def temporary_name(suffix: str) -> str:
    """A new name for a file under way. The suffix stays, since some writers take the format from it."""
    process = this_process()
    return f"{_PREFIX}{process.machine}-{process.pid}-{process.start}-{secrets.token_hex(4)}{suffix[:32]}"


def is_our_own(name: str) -> bool:
    """Whether a file of this name is a lock or an unfinished file of this library."""
    return name == LOCK_NAME or name.startswith(f"{LOCK_NAME}.") or _TEMPORARY.fullmatch(name) is not None


def is_abandoned(file: Path) -> bool:
    """Whether a file is one that a killed process of this library left unfinished."""
    match = _TEMPORARY.fullmatch(file.name)
    if match is None:
        return False
    dead = is_dead(Process(match[1], int(match[2]), int(match[3])))
    try:
        return time.time() - file.stat().st_mtime > _OLD_SECONDS if dead is None else dead
    except OSError:
        return False


@functools.cache
def _machine() -> str:
    # Containers share a boot and may share a name; process numbers mean something within one namespace only.
    parts = [socket.gethostname()]
    for read in (lambda: Path("/proc/sys/kernel/random/boot_id").read_text(), lambda: os.readlink("/proc/self/ns/pid")):
        try:
            parts.append(read())
        except OSError:
            # Not Linux. Process numbers of Windows cannot be asked after, so that each process is a machine there.
            parts.append(str(os.getpid()) if os.name == "nt" else "")
    return hashlib.sha256("/".join(parts).encode()).hexdigest()[:8]


def _start_time(pid: int) -> int | None:
    """When a process began, in clock ticks since boot; `None` for one that has ended, 0 where there is no telling."""
    if not os.path.exists("/proc/self/stat"):
        return 0
    try:
        # The name in brackets may hold anything, brackets too.
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return None
    # Zombies have ended; only their parent has not asked yet.
    return None if fields[0] in (b"Z", b"X") else int(fields[19])
