"""Kills every writer of the library, at random operations on files and at random moments, and looks at what is left."""

import multiprocessing
import os
import random
import shutil
import signal
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

from campaign_children import count_operations, in_child, kill_at_operation
from campaign_tally import Tally
from campaign_writers import NEW, WRITERS

from elt_zoo.storage._process import is_our_own

_BY_CLOCK = 0.25
"""The share of kills at a moment, which also hits what no hook of Python sees: Orbax writes arrays in C++."""


_TRIES = 50


class _Start(NamedTuple):
    """What a writer begins with, in a folder, and how much it then does."""

    folder: Path
    operations: int
    seconds: float


def kill(count: int, seed: int, tally: Tally, folder: Path, *, only: Sequence[str] | None = None) -> None:
    """Kills each writer as often as that: one half with nothing there before, one half over what was saved."""
    starts: dict[str, list[_Start]] = {}
    for name in WRITERS if only is None else only:
        starts[name] = [_start(name, folder / f"{name}-{begun}", begun) for begun in (False, True)]
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(min(2, os.cpu_count() or 1), mp_context=context) as pool:
        jobs = {
            (name, number): pool.submit(_one, name, two[number % 2], f"{seed}/{name}/{number}", folder)
            for name, two in starts.items()
            for number in range(count)
        }
        for (name, _), job in jobs.items():
            how, problem = job.result()
            tally.add(name, how, problem)
    for name, two in starts.items():
        print(f"{name}: {two[0].operations} operations from nothing, {two[1].operations} over what was there")


def _start(name: str, folder: Path, begun: bool) -> _Start:
    """Makes what is there before, and counts what the writer does from there."""
    writer = WRITERS[name]

    def make() -> None:
        folder.mkdir()
        if begun:
            writer.before(folder)
            (folder / "begun").touch()

    whole = folder.with_name(f"{folder.name}-whole")
    for step in (make, lambda: shutil.copytree(folder, whole)):
        if (problem := in_child(step).problem) is not None:
            raise RuntimeError(f"{name}: {problem}")
    ended = in_child(lambda: count_operations(lambda: writer.write(whole, NEW), whole))
    checked = in_child(lambda: writer.check(whole, NEW))
    if ended.problem is not None or checked.problem is not None:
        raise RuntimeError(f"{name} fails where nothing kills it: {ended.problem or checked.problem}")
    return _Start(folder, ended.value, ended.seconds)


def _one(name: str, start: _Start, seed: str, folder: Path) -> tuple[str | None, str | None]:
    """Kills a writer once. Returns how, and what was wrong afterwards."""
    rng, writer = random.Random(seed), WRITERS[name]
    place = folder / seed.replace("/", "-")
    for _ in range(_TRIES):
        shutil.copytree(start.folder, place)
        if rng.random() < _BY_CLOCK:
            how, when = "by the clock", rng.uniform(0.0, start.seconds)
            killed = in_child(lambda: writer.write(place, NEW), kill_after=when)
        else:
            how, when = "at an operation", rng.randint(1, start.operations)
            killed = in_child(lambda at=when: kill_at_operation(lambda: writer.write(place, NEW), place, at))
        if killed.signal == signal.SIGKILL:
            break
        if killed.problem is not None or killed.signal:
            return how, f"before it was killed: {killed.problem or f'died of signal {killed.signal}'}"
        # It was faster this time: try another moment.
        shutil.rmtree(place)
    else:
        return None, f"it ended {_TRIES} times before it was killed"

    def look() -> None:
        writer.check(place, None)
        writer.write(place, NEW)
        writer.check(place, NEW)

    looked = in_child(look)
    left = [str(path.relative_to(place)) for path in place.rglob("*") if _is_unfinished(path.name)]
    problem = looked.problem or (f"died of signal {looked.signal}" if looked.signal else None)
    if problem is None and left:
        problem = f"it left {', '.join(left[:3])}"
    if problem is not None:
        return how, f"killed {how} ({when:.3g}), in {place}: {problem}"
    shutil.rmtree(place)
    return how, None


def _is_unfinished(name: str) -> bool:
    return is_our_own(name) or name.endswith((".writing", ".deleting", ".tmp")) or ".orbax-checkpoint-tmp" in name
