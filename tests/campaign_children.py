"""Children of a campaign: forked from a process that has imported everything, and computed nothing yet."""

import itertools
import os
import pickle
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

# Raised by the interpreter before it does the thing. Opening counts below a folder only: modules are opened too.
_OPERATIONS = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.utime", "os.chmod", "os.truncate"}


class Ended(NamedTuple):
    """How a child ended: by a signal (or 0), with a value, or with what went wrong."""

    signal: int
    value: Any
    problem: str | None
    seconds: float


def in_child(action: Callable[[], Any], *, limit: float = 120.0, kill_after: float | None = None) -> Ended:
    """Calls a function in a child, which dies of SIGALRM at the limit, and of SIGKILL after some seconds of work."""
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        # JAX and Python warn of threads, of which this process has none.
        warnings.simplefilter("ignore")
        child = os.fork()
    if child == 0:
        os.close(reading)
        _obey(action, writing, limit)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        pipe.read(1)
        started = time.monotonic()
        if kill_after is not None:
            time.sleep(kill_after)
            os.kill(child, signal.SIGKILL)
        content = pipe.read()
    seconds = time.monotonic() - started
    status = os.waitpid(child, 0)[1]
    if os.WIFSIGNALED(status):
        return Ended(os.WTERMSIG(status), None, None, seconds)
    value, problem = pickle.loads(content)
    return Ended(0, value, problem, seconds)


def _obey(action: Callable[[], Any], writing: int, limit: float) -> None:
    try:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, limit)
        os.write(writing, b".")
        content = pickle.dumps((action(), None))
    except BaseException as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        content = pickle.dumps((None, f"{error!r} ({Path(where.filename).name}:{where.lineno})"))
    with os.fdopen(writing, "wb") as pipe:
        pipe.write(content)
    os._exit(0)


def count_operations(action: Callable[[], Any], folder: Path) -> int:
    """How many operations on files a call makes, those below the folder that it opens among them."""
    seen = itertools.count(1)
    last = _on_operations(folder, lambda: next(seen))
    action()
    return last()


def kill_at_operation(action: Callable[[], Any], folder: Path, number: int) -> None:
    """Calls a function in this process, which dies of SIGKILL before that operation."""
    seen = itertools.count(1)

    def count() -> int:
        current = next(seen)
        if current == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return current

    _on_operations(folder, count)
    action()


def _on_operations(folder: Path, count: Callable[[], int]) -> Callable[[], int]:
    below, last = os.fsencode(folder), 0

    def operation() -> None:
        nonlocal last
        last = count()

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event in _OPERATIONS or (event == "open" and _is_below(arguments[0], below)):
            operation()

    def fsync(handle: int, call: Callable[[int], None] = os.fsync) -> None:
        operation()
        call(handle)

    sys.addaudithook(hook)
    os.fsync = fsync
    return lambda: last


def _is_below(path: Any, folder: bytes) -> bool:
    return isinstance(path, (str, bytes, os.PathLike)) and os.fsencode(path).startswith(folder)
