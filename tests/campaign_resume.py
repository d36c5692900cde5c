"""Whole trainings that are killed at random steps, and resumed by the same command until they end."""

import contextlib
import csv
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from campaign_tally import Tally
from command_line import SMALL

from elt_zoo.storage import read_folder

AT_ONCE = 2
STEPS = 40
KILLS = 4
"""Of one run, of which the last process alone measures the model at its end."""
_SHORT = ("--batch-size", 16, "--samples", 100, "--sampler.steps", 2, "--log-every", 1, "--checkpoint-every", 3)
_COMMAND = ("train", *SMALL, *_SHORT, "--no-compare", "--steps", STEPS, "--out")
_LONGEST_SECONDS = 300
# How long a process takes to its first step, about: some kills come before it.
_START_SECONDS = 10.0


def resume(count: int, seed: int, tally: Tally, folder: Path, *, minutes: float = math.inf) -> None:
    """Counts as many resumptions; begins no run after some minutes. Runs that differ keep their files in the folder."""
    latest = time.monotonic() + 60 * minutes
    environment = os.environ | {
        "JAX_COMPILATION_CACHE_DIR": str(folder / "programs"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    whole = _Run(folder / "whole", environment)
    code = whole.start().wait(_LONGEST_SECONDS)
    if code != 0:
        tally.add("whole run", fault=f"exit code {code}: {whole.said()}")
        return
    kills = [KILLS] * (count // KILLS) + [count % KILLS] * (count % KILLS > 0)

    def one(number: int) -> None:
        if time.monotonic() > latest:
            return
        rng, run = random.Random(f"{seed}/{number}"), _Run(folder / f"run-{number}", environment)
        try:
            for _ in range(kills[number]):
                problem = run.kill(rng)
                tally.add("resumptions", run.killed_by, problem)
            code = run.start().wait(_LONGEST_SECONDS)
            difference = f"exit code {code}: {run.said()}" if code else _difference(whole.out, run.out)
        except subprocess.TimeoutExpired:
            run.process.kill()
            difference = f"it had not ended after {_LONGEST_SECONDS} s"
        tally.add("runs", "equal" if difference is None else None, difference and f"{difference} (files: {run.folder})")
        if difference is None:
            shutil.rmtree(run.folder)

    with _busy(), ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(one, range(len(kills))))


class _Run:
    """A training run in a folder of its own, and its process."""

    def __init__(self, folder: Path, environment: dict[str, str]):
        self.folder, self.out = folder, folder / "run"
        self.killed_by: str | None = None
        self._environment = environment
        folder.mkdir()

    def start(self) -> "subprocess.Popen[bytes]":
        command = [sys.executable, "-m", "elt_zoo", *map(str, _COMMAND), "run"]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(command, cwd=self.folder, env=self._environment, stdout=log, stderr=log)
        return self.process

    def said(self) -> str:
        return (self.folder / "log").read_text()[-300:]

    def kill(self, rng: random.Random) -> str | None:
        """Starts the run and kills it at a random step, at times before its first. Returns what was wrong."""
        number, before = rng.choice([signal.SIGKILL, signal.SIGTERM]), self._step()
        step = rng.randint(before + 1, max(before + 1, min(before + STEPS // KILLS, STEPS - 1)))
        seconds = rng.uniform(0.0, _START_SECONDS) if rng.random() < 0.2 else _LONGEST_SECONDS
        process, end = self.start(), time.monotonic() + seconds
        while process.poll() is None and self._step() < step and time.monotonic() < end:
            time.sleep(0.005)
        self.killed_by = None
        if process.poll() is None:
            self.killed_by = number.name
            process.send_signal(number)
        code = process.wait(_LONGEST_SECONDS)
        if self.killed_by is None and code != 0:
            return f"it ended by itself with exit code {code}: {self.said()}"
        # A process that is terminated may end at once, say so, or be through with its work.
        if code not in (-number, 0, 130) or b"Traceback" in (self.folder / "log").read_bytes():
            return f"exit code {code} after {number.name}: {self.said()}"
        return None

    def _step(self) -> int:
        """The last step that was reported."""
        try:
            rows = list(csv.DictReader((self.out / "metrics-ilsd.csv").read_text().splitlines()))
            return max((int(row["step"]) for row in rows), default=0)
        except (OSError, ValueError, KeyError):
            return 0  # not there, or being written


def _difference(expected: Path, found: Path) -> str | None:
    """In what two runs' models differ, or `None` if they are bitwise equal."""
    one, other = (read_folder(run / "model") for run in (expected, found))
    if _without_times(one.description) != _without_times(other.description):
        return "the description of the model or its measures differ"
    arrays = dict(one.tensors), dict(other.tensors)
    if arrays[0].keys() != arrays[1].keys():
        return "the names of the tensors differ"
    different = [name for name in arrays[0] if arrays[0][name].tobytes() != arrays[1][name].tobytes()]
    if not different:
        return None
    largest = max(float(np.abs(arrays[0][name] - arrays[1][name]).max()) for name in different)
    return f"{len(different)} of {len(arrays[0])} tensors differ, by up to {largest:g}: {', '.join(different[:3])}"


def _without_times(tree: Any) -> Any:
    match tree:
        case dict():
            return {name: _without_times(value) for name, value in tree.items() if name != "milliseconds_per_sample"}
        case list():
            return [_without_times(value) for value in tree]
    return tree


@contextlib.contextmanager
def _busy() -> Iterator[None]:
    """Another process that takes what it gets of a core."""
    with subprocess.Popen([sys.executable, "-c", "while True: sum(range(100_000))"]) as process:
        try:
            yield
        finally:
            process.kill()
