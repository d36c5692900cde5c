import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ._checkpoints import Checkpoints
from ._state import TrainState
from ._step import TrainStep


class TrainingDiverged(RuntimeError):
    """The loss or its gradient stopped being finite."""


class FitResult(NamedTuple):
    """What `fit` returns: the last state, whether all steps were taken, and the seconds spent per step after the
    first.
    """

    state: TrainState
    finished: bool
    seconds_per_step: float


class Report(NamedTuple):
    """What `fit` tells while it runs: the steps taken, the metrics of the last of them, and since the last report the
    examples per second and the share of the time spent waiting for batches.
    """

    step: int
    metrics: dict[str, float]
    examples_per_second: float
    data_wait: float


def fit(
    state: TrainState,
    step: TrainStep,
    batches: Iterator[Any],
    *,
    total_steps: int,
    log_every: int = 50,
    on_report: Callable[[Report], None] | None = None,
    checkpoints: Checkpoints | None = None,
    encode: Callable[[Any], Any] | None = None,
    stop: threading.Event | None = None,
) -> FitResult:
    """Trains until `total_steps` steps have been taken, or until the process is asked to stop.

    The devices are never waited for between reports. SIGTERM and SIGINT (Ctrl-C) let the running step finish, save a
    checkpoint and return with `finished` false; a second Ctrl-C interrupts at once.

    **Arguments:**

    - `state`: where to start; `state.step` steps count as taken. A donating step consumes it.
    - `step`: `(state, batch) -> (state, metrics)`, usually from [`jit_step`][elt_zoo.training.jit_step].
    - `batches`: a Grain iterator (with checkpoints its `get_state` is used) or any iterator.
    - `total_steps`: when to stop.
    - `log_every`, `on_report`: how often to report, and to whom.
    - `checkpoints`: where and how often to save; also saved at the end.
    - `encode`: applied to every batch before the compiled step, such as a frozen tokenizer. What should run inside the
      step is the `prepare` of [`make_train_step`][elt_zoo.training.make_train_step].
    - `stop`: set it to end the run after the running step; by default signals do, see
      [`stop_on_signals`][elt_zoo.training.stop_on_signals]. Needed off the main thread, where Python delivers no
      signals.

    **Returns:** the last state, whether the run is complete, and its pace.

    **Raises:** `TrainingDiverged` at the first report or save after an update that was not finite. Checkpoints from
    before are kept.
    """
    taken = int(state.step)
    paced = reported = time.perf_counter()
    first, since_report, size, waited = taken, 0, 0, 0.0
    with stop_on_signals() if stop is None else contextlib.nullcontext(stop) as stop:
        while taken < total_steps and not stop.is_set():
            asked = time.perf_counter()
            batch = next(batches)
            waited += time.perf_counter() - asked
            size = len(jax.tree.leaves(batch)[0])
            state, metrics = step(state, batch if encode is None else encode(batch))
            taken, since_report = taken + 1, since_report + 1
            if taken == first + 1:
                # The first step includes the compilation, which should not count in the pace.
                jax.block_until_ready(metrics)
                paced = reported = time.perf_counter()
                since_report, waited = 0, 0.0
            if taken % log_every == 0 or taken == total_steps:
                values = {name: float(value) for name, value in jax.device_get(metrics).items()}
                _check_finite(state, checkpoints)
                now = time.perf_counter()
                if on_report is not None:
                    passed = max(now - reported, 1e-9)
                    on_report(Report(taken, values, size * since_report / passed, waited / passed))
                reported, since_report, waited = time.perf_counter(), 0, 0.0
            if checkpoints is not None and taken % checkpoints.every == 0:
                _check_finite(state, checkpoints)
                checkpoints.save(state, _position(batches))
    jax.block_until_ready(state.step)
    seconds = (time.perf_counter() - paced) / max(taken - first - 1, 1)
    if checkpoints is not None and taken > first:
        _check_finite(state, checkpoints)
        checkpoints.save(state, _position(batches))
    return FitResult(state, taken >= total_steps, seconds)


def _check_finite(state: TrainState, checkpoints: Checkpoints | None) -> None:
    if int(jnp.asarray(state.skipped)) == 0:
        return
    kept = (
        ""
        if checkpoints is None
        else f" The last good checkpoint is step {checkpoints.latest_step()} in {checkpoints.folder}."
    )
    raise TrainingDiverged(
        f"By step {int(state.step)}, {int(state.skipped)} update(s) had a loss or gradient that was not finite; none "
        f"of them was applied.{kept} Lower the learning rate, lengthen the warm-up, or compute in float32."
    )


def _position(batches: Any) -> Any:
    return batches.get_state() if hasattr(batches, "get_state") else None


@contextlib.contextmanager
def stop_on_signals() -> Iterator[threading.Event]:
    """A context with an event that SIGTERM and the first SIGINT (Ctrl-C) set; the handlers from before come back after
    it.

    Python delivers signals to the main thread only, so in another thread the event stays unset.
    """
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def request(number, frame):
        stop.set()
        signal.signal(number, before[number])

    try:
        for number in before:
            signal.signal(number, request)
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
