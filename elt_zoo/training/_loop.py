import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from ..distributed import gather
from ..storage import FolderLocked
from ._checkpoint_files import CheckpointError
from ._checkpoints import Checkpoints
from ._pace import Pace, Report
from ._signals import stop_on_signals
from ._state import TrainState
from ._step import TrainStep


class TrainingDiverged(RuntimeError):
    """The loss or its gradient stopped being finite."""


class TrainingInterrupted(KeyboardInterrupt):
    """Training was interrupted at once, by a second Ctrl-C. The message says in one line what is saved."""


class FitResult(NamedTuple):
    """What `fit` returns: the last state, whether all steps were taken, and the seconds spent per step after the
    first.
    """

    state: TrainState
    finished: bool
    seconds_per_step: float


@runtime_checkable
class HasPosition(Protocol):
    """An iterator that knows its position in the data, as Grain's do."""

    def get_state(self) -> Any:
        """The position, of JSON's types."""


def fit(
    state: TrainState,
    step: TrainStep,
    batches: Iterator[PyTree],
    *,
    total_steps: int,
    log_every: int = 50,
    on_report: Callable[[Report], None] | None = None,
    checkpoints: Checkpoints | None = None,
    encode: Callable[[Any], PyTree] | None = None,
    stop: threading.Event | None = None,
) -> FitResult:
    """Trains until `total_steps` steps have been taken, or until the process is asked to stop.

    A step is one call of `step` with one batch. Between reports nothing waits for the devices. SIGTERM and SIGINT
    (Ctrl-C) let the running step finish, save a checkpoint and return with `finished` false; a second Ctrl-C interrupts
    at once. Several processes stop together, at the next report after one of them was asked to.

    **Arguments:**

    - `state`: where to start; `state.step` steps count as taken. A donating step consumes it.
    - `step`: `(state, batch) -> (state, metrics)`, usually from [`jit_step`][elt_zoo.training.jit_step].
    - `batches`: any iterator. With checkpoints, the position of an iterator that has `get_state` is saved, as of
      [`training_batches`][elt_zoo.data.training_batches].
    - `total_steps`: when to stop; at least 1.
    - `log_every`, `on_report`: steps between reports, and who gets them. The first and the last step are reported too.
    - `checkpoints`: where and how often to save; also saved at the end. The folder is claimed before the first step.
      Checkpoints are written while training goes on; when this function returns, all are on the disk.
    - `encode`: applied to every batch before the compiled step, such as a frozen tokenizer. What should run inside the
      step is the `prepare` of [`make_train_step`][elt_zoo.training.make_train_step].
    - `stop`: set it to end the run after the running step; by default signals do, see
      [`stop_on_signals`][elt_zoo.training.stop_on_signals]. Needed off the main thread, where Python delivers no
      signals.

    **Returns:** the last state, whether the run is complete, and its pace.

    **Raises:** `ValueError` for counts below 1, or if the batches end before the last step; `TrainingDiverged` at the
    first report or save after an update that was not finite; `TrainingInterrupted`; and what
    [`Checkpoints`][elt_zoo.training.Checkpoints] raises. Checkpoints from before are kept.
    """
    if total_steps < 1 or log_every < 1:
        raise ValueError(f"`fit(total_steps={total_steps}, log_every={log_every})`: both must be at least 1.")
    taken = first = int(state.step)
    if checkpoints is not None:
        checkpoints.claim(step=taken)

    def save() -> None:
        if checkpoints is not None:
            _check_finite(state, checkpoints)
            checkpoints.save(state, batches.get_state() if isinstance(batches, HasPosition) else None)

    pace, alone, stopping = Pace(), jax.process_count() == 1, False
    try:
        with stop_on_signals() if stop is None else contextlib.nullcontext(stop) as stop:
            while taken < total_steps and not (stop.is_set() if alone else stopping):
                with pace.waiting():
                    batch = _next_batch(batches, taken, total_steps)
                state, metrics = step(state, batch if encode is None else encode(batch))
                taken += 1
                pace.count(batch, metrics)
                if taken % log_every == 0 or taken in (1, total_steps):
                    values = {name: float(value) for name, value in jax.device_get(metrics).items()}
                    _check_finite(state, checkpoints)
                    if on_report is not None:
                        on_report(pace.report(taken, values))
                    pace.restart()
                    # A signal comes to the processes between different steps, and they must stop after the same one.
                    failed = checkpoints is not None and checkpoints.failed
                    said = gather("failed" if failed else "stop" if stop.is_set() else "")
                    stopping = "stop" in said
                    if checkpoints is not None and "failed" in said:
                        checkpoints.wait_until_finished()
                if checkpoints is not None and taken % checkpoints.every == 0:
                    save()
        jax.block_until_ready(state.step)
        seconds_per_step = pace.seconds_per_step
        if taken > first:
            save()
        if checkpoints is not None:
            checkpoints.wait_until_finished()
    except KeyboardInterrupt as interrupt:
        if checkpoints is not None:
            with contextlib.suppress(CheckpointError, FolderLocked):
                checkpoints.finish_writing()
        raise TrainingInterrupted(_what_is_saved(taken, total_steps, checkpoints)) from interrupt
    return FitResult(state, taken >= total_steps, seconds_per_step)


def _next_batch(batches: Iterator[PyTree], taken: int, total_steps: int) -> PyTree:
    try:
        return next(batches)
    except StopIteration:
        raise ValueError(
            f"`fit(total_steps={total_steps})` got no more batches after step {taken}. Use an iterator that repeats "
            "the data, such as `training_batches`, or fewer steps."
        ) from None


def _check_finite(state: TrainState, checkpoints: Checkpoints | None) -> None:
    if int(jnp.asarray(state.skipped)) == 0:
        return
    if checkpoints is not None:
        with contextlib.suppress(CheckpointError, FolderLocked):  # the message says what is there
            checkpoints.wait_until_finished()
    kept = (
        ""
        if checkpoints is None
        else f" The last good checkpoint is step {checkpoints.latest_step()} in {checkpoints.folder}."
    )
    raise TrainingDiverged(
        f"By step {int(state.step)}, {int(state.skipped)} update(s) had a loss or gradient that was not finite; none "
        f"of them was applied.{kept} Lower the learning rate, lengthen the warm-up, or compute in float32. "
        "Labels that the model does not know do this too."
    )


def _what_is_saved(taken: int, total_steps: int, checkpoints: Checkpoints | None) -> str:
    latest = None if checkpoints is None else checkpoints.latest_step()
    if checkpoints is None or latest is None:
        saved = "Nothing was saved."
    else:
        saved = f"The checkpoint of step {latest} is saved in {checkpoints.folder}; the same run resumes from it."
    return f"Interrupted at step {taken} of {total_steps}. {saved}"
