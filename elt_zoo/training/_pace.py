import contextlib
import time
from collections.abc import Iterator
from typing import NamedTuple

import jax
from jaxtyping import PyTree


class Report(NamedTuple):
    """What `fit` tells while it runs: the steps taken, the metrics of the last of them, and, since the last report, the
    examples per second and the share of the time spent waiting for batches. The first step compiles, so that its report
    has 0 for both.
    """

    step: int
    metrics: dict[str, float]
    examples_per_second: float
    data_wait: float


class Pace:
    """How fast training goes, since its second step and since the last report. The first step compiles and does not
    count.
    """

    def __init__(self):
        self._steps = 0
        self._started = time.perf_counter()
        self._clear()

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """A context for what waits for data."""
        asked = time.perf_counter()
        yield
        self._waited += time.perf_counter() - asked

    def count(self, batch: PyTree, metrics: PyTree) -> None:
        """Counts a step that was started."""
        self._steps += 1
        self._examples += len(jax.tree.leaves(batch)[0])
        if self._steps == 1:
            jax.block_until_ready(metrics)
            self._started = time.perf_counter()
            self._clear()

    def report(self, step: int, metrics: dict[str, float]) -> Report:
        """The report of a step that has ended; the next one counts from here."""
        passed = max(time.perf_counter() - self._reported, 1e-9)
        report = Report(step, metrics, self._examples / passed, self._waited / passed)
        self._clear()
        return report

    def restart(self) -> None:
        """Leaves what happened since the last report out of the next one."""
        self._clear()

    @property
    def seconds_per_step(self) -> float:
        """Mean over all steps but the first."""
        return (time.perf_counter() - self._started) / max(self._steps - 1, 1)

    def _clear(self) -> None:
        self._reported, self._examples, self._waited = time.perf_counter(), 0, 0.0
