"""Rates of two streams of batches, read in turn on one core.

A rate is in examples per second of processor time, that is per core. Decoding and copying keep a processor busy, so on
an idle core this is the wall clock's rate; but all threads of the process count, so that a library gains nothing by
starting some of its own, and other processes of a busy machine do not count.
"""

import contextlib
import os
import statistics
import time
from collections.abc import Iterable, Iterator
from typing import Any

import cv2
import torch  # pyright: ignore[reportMissingImports]
from timing import spread


@contextlib.contextmanager
def one_core() -> Iterator[None]:
    """One thread for the libraries, and one core for this thread and those that it starts, where Linux lets us."""
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
    if cores:
        os.sched_setaffinity(0, {max(cores)})
    try:
        yield
    finally:
        if cores:
            os.sched_setaffinity(0, cores)


def endless(loader: Iterable[Any]) -> Iterator[Any]:
    """Epoch after epoch of a DataLoader."""
    while True:
        yield from loader


def compare_streams(
    case: str, ours: Iterator[Any], baseline: Iterator[Any], *, batches: int, batch_size: int, rounds: int
) -> dict[str, Any]:
    """Reads as many batches from both sides in each round, and takes the ratio of the rates within it: above 1, ours is
    the faster. The order alternates, so that a slow drift falls on both alike. The first round, which opens files and
    fills caches, does not count.

    **Returns:** a row with medians, and the quartiles of the ratio.
    """

    def rate(stream: Iterator[Any]) -> float:
        started = time.process_time()
        for _ in range(batches):
            next(stream)
        return batches * batch_size / (time.process_time() - started)

    pairs = []
    with one_core():
        for index in range(rounds + 1):
            if index % 2:
                mine, theirs = rate(ours), rate(baseline)
            else:
                theirs, mine = rate(baseline), rate(ours)
            pairs.append((mine, theirs))
    pairs = pairs[1:]
    return {
        "case": case,
        "rounds": rounds,
        "ours_per_second": statistics.median(mine for mine, _ in pairs),
        "baseline_per_second": statistics.median(theirs for _, theirs in pairs),
        **spread([mine / theirs for mine, theirs in pairs]),
    }
