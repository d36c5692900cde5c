"""Commands and examples in this process, where nothing is imported again."""

import contextlib
import csv
import io
import runpy
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from elt_zoo.commands import main

_EXAMPLES = Path(__file__).parents[1] / "examples"
SMALL = ("--dim", 16, "--num-layers", 1, "--max-loops", 2)
"""Sizes that compile fast."""
TINY = (*SMALL, "--batch-size", 16, "--samples", 100, "--log-every", 4, "--sampler.steps", 2)
"""A run of digits that is over soon."""


class Finished(NamedTuple):
    """What a command left: its exit code, what it printed, and what it said on the error stream."""

    code: int
    output: str
    errors: str


def run(*arguments, check: bool = True) -> Finished:
    """Runs `elt-zoo ARGUMENTS…` in the current folder; with `check` it must succeed."""
    return _finished(lambda: main([str(argument) for argument in arguments]), check)


def run_example(script: str, *arguments, check: bool = True) -> Finished:
    """Runs `python examples/SCRIPT ARGUMENTS…` in the current folder."""

    def call() -> None:
        path, before = str(_EXAMPLES / script), sys.argv
        sys.argv = [path, *map(str, arguments)]
        try:
            runpy.run_path(path, run_name="__main__")
        finally:
            sys.argv = before

    return _finished(call, check)


def _finished(call: Callable[[], None], check: bool) -> Finished:
    output, errors, code = io.StringIO(), io.StringIO(), 0
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
            call()
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    finished = Finished(code, output.getvalue(), errors.getvalue())
    assert not check or code == 0, finished.errors[-3000:]
    return finished


def rows_of(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file by their columns."""
    return list(csv.DictReader(path.read_text().splitlines()))


def files_of(folder: Path) -> dict[str, bytes | None]:
    """Everything under a folder: files with their content, and folders."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }
