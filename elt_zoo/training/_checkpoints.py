import datetime
import json
import logging
import math
import os
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp

from ..distributed import ProcessFailed, first_says, is_first, together
from ..storage import FolderLock, FolderLocked, foreign_entries, read_json, require_writable, write_json
from ._background import Background
from ._checkpoint_files import (
    DATA,
    MANIFEST,
    RUN_FILE,
    CheckpointError,
    check_intact,
    checksums,
    described,
    first_line,
    from_arrays,
    read_run,
    to_arrays,
)
from ._config_differences import config_differences
from ._preservation import Preservation
from ._remote_copy import RemoteCopy
from ._state import TrainState
from ._step_folders import StepFolders

_LOGGER = logging.getLogger("elt_zoo.training")
# Of the background: how long a process waits for the others' parts of a checkpoint.
_LONGEST_WRITE = 3600


class Checkpoints:
    """The checkpoints of one run in a folder (Orbax): training state, position in the data, and the run's config.

    A folder belongs to one run and one process at a time. Creating this object changes nothing on the disk. The folder
    is claimed and locked by `claim`, which [`fit`][elt_zoo.training.fit] calls at its start, and released by `close`.

    Saves are asynchronous: `save` copies the arrays to the host and returns, and a thread writes them while training
    goes on. There is one write at a time, so that the next `save` waits for the last. `wait_until_finished` waits, as
    [`fit`][elt_zoo.training.fit] does at its end, and says what failed.

    Saves are atomic: an interrupted one leaves the checkpoints before it as they were. Every checkpoint lists the
    checksums (SHA-256) of its files, which `restore` compares before anything is read.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        config: Mapping[str, Any],
        *,
        every: int = 1000,
        keep: int = 2,
        keep_every_steps: int | None = None,
        keep_every_hours: float | None = None,
        asynchronous: bool = True,
        copy_to: str | None = None,
        fall_back: bool = False,
    ):
        """**Arguments:**

        - `folder`: created when it is claimed.
        - `config`: what defines the run, of JSON's types; compared on resuming.
        - `every`: steps between two checkpoints that [`fit`][elt_zoo.training.fit] saves.
        - `keep`: how many checkpoints to keep, the newest ones.
        - `keep_every_steps`: keep for good those of its multiples, too; a multiple of `every`.
        - `keep_every_hours`: keep for good the first one, too, and from then on one every so many hours, above 0.
        - `asynchronous`: write while training goes on. Otherwise `save` returns when all is on the disk.
        - `copy_to`: a folder of an object store, `gs://bucket/folder` or `s3://bucket/folder`, for a copy of every
          checkpoint, kept by the same rules, from the same thread. Where `folder` has no checkpoint as new as the
          newest there, such as on another machine, `restore` fetches it. It needs gcsfs or s3fs. Object stores have no
          locks: one run at a time.
        - `fall_back`: where the newest checkpoint is damaged, restore the newest intact one instead of raising. The
          damaged one is logged and renamed to `steps/<step>.damaged`.

        **Raises:** `ValueError` for counts and hours out of range, or if the folder holds other files or another run,
        with all differences, or for another kind of URL; `CheckpointError` if its `run.json`, or the object store,
        cannot be read.
        """
        if every < 1 or keep < 1:
            raise ValueError(f"`Checkpoints(every={every}, keep={keep})`: both must be at least 1.")
        if keep_every_steps is not None and (keep_every_steps < 1 or keep_every_steps % every):
            raise ValueError(
                f"`Checkpoints(keep_every_steps={keep_every_steps})` must be a multiple of the {every} steps from one "
                "checkpoint to the next."
            )
        if keep_every_hours is not None and not 0.0 < keep_every_hours < math.inf:
            raise ValueError(f"`Checkpoints(keep_every_hours={keep_every_hours})` must be a positive number of hours.")
        self.folder = Path(folder).absolute()
        self.every = every
        self.asynchronous = asynchronous
        self.fall_back = fall_back
        self._config = json.loads(json.dumps(config))
        preservation = Preservation(keep, keep_every_steps, keep_every_hours)
        self._steps = StepFolders(self.folder / "steps", preservation)
        self._claimed = False
        self._copy = None if copy_to is None else RemoteCopy(copy_to, preservation)
        self._seen = False  # whether the copies were looked at; from then on the folder has the last word
        self._lock = FolderLock(self.folder)
        self._writing, self._being_written = Background("elt_zoo checkpoint"), 0
        # For whoever drops the object instead of closing it, as happens in notebooks.
        self._finalizer = weakref.finalize(self, _let_go, self._writing, self._lock)
        # Two runs of one process may save at once, which Orbax's signals between threads are not made for.
        options = ocp.AsyncOptions(timeout_secs=_LONGEST_WRITE, create_directories_asynchronously=False)
        self._checkpointer = ocp.AsyncCheckpointer(ocp.StandardCheckpointHandler(), async_options=options)
        self._validate()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            self.close()
        except (CheckpointError, FolderLocked) as error:
            if kind is None:
                raise
            _LOGGER.error("%s", error)  # what ended the run matters more

    def claim(self, *, step: int = 0) -> None:
        """Locks the folder for this process, writes the run's config into it, and removes what an earlier process of
        the run left unfinished or did not come to remove. A second call only compares the step. Of several processes,
        all call it and the first one claims; the folder is one that all of them see.

        A folder whose run never saved a checkpoint may be claimed by a run with another config.

        **Arguments:** `step`: where training continues.

        **Raises:** as the constructor; `FolderLocked` if another process holds the folder; `OSError` in one line if the
        folder cannot be written to; `CheckpointError` if it holds a checkpoint of a later step than `step`.
        """
        if not self._claimed:
            together(lambda: self._take() if is_first() else None)
        self._claimed = True
        latest = first_says(self.latest_step())
        self._seen = True
        if latest is not None and latest > step:
            raise CheckpointError(
                f"{self.folder} holds a checkpoint of step {latest}, but training would continue from step {step}. "
                "Restore that checkpoint first, or use another folder."
            )

    def _take(self) -> None:
        self._lock.acquire()
        try:
            # Another process may have come first since the last look.
            self._validate()
            if not self._steps.saved():
                write_json(self.folder / RUN_FILE, self._config)
            else:
                require_writable(self.folder / RUN_FILE)
            self._steps.clean()
            if self._copy is not None:
                self._copy.adopt(self.folder, self._config)
                for newest in self._steps.saved()[:1]:
                    self._copy.put(self._steps[newest], newest)  # which a killed process did not come to copy
        except BaseException:
            self._lock.release()
            raise

    def latest_step(self) -> int | None:
        """The step of the newest checkpoint, or `None`. A folder without files is no checkpoint. Those at `copy_to`
        count until one was restored or the folder is claimed; process 0 alone looks there.
        """
        copied = [] if self._copy is None or self._seen or not is_first() else self._copy.saved()
        return max([*self._steps.saved()[:1], *copied[:1]], default=None)

    def save(self, state: TrainState, data_state: Any) -> None:
        """Saves a state and the position of the data iterator (`iterator.get_state()`), unless this step is saved
        already. Claims the folder if that has not happened yet.

        It returns once the state is copied to the host, whose arrays may then be donated, and the checkpoint counts
        once it is written. Call `wait_until_finished` or `close` before the process ends.

        **Raises:** as `claim`; `FolderLocked` if the lock was lost; `CheckpointError` if writing fails, this time or
        the last. The checkpoints from before are kept.
        """
        self.wait_until_finished()
        step = int(state.step)
        self.claim(step=step)
        if step == first_says(self.latest_step()):
            return
        arrays = to_arrays(state)
        # The iterator goes on while this is written.
        position = json.dumps(data_state)

        def begin() -> None:
            self._lock.check()
            self._steps.begin(step)

        self._being_written = step
        try:
            # What one process does the others wait for: afterwards all see the same checkpoints.
            together(lambda: begin() if is_first() else None)
            self._checkpointer.save(self._steps.writing(step) / "state", args=ocp.args.StandardSave(arrays))
        except FolderLocked:
            raise
        except Exception as error:
            raise self._not_saved(error) from error
        # What the thread knows is not dropped before it ends: it may not know this object.
        checkpointer, lock, steps, shapes = self._checkpointer, self._lock, self._steps, described(arrays)
        copy = self._copy

        def finish() -> None:
            checkpointer.wait_until_finished()
            if is_first():
                lock.check()  # much may have happened since the write began
                _complete(steps, step, shapes, json.loads(position))
                if copy is not None:
                    copy.put(steps[step], step)
                    copy.remove_old()

        self._writing.start(finish)
        if not self.asynchronous:
            self.wait_until_finished()

    @property
    def failed(self) -> bool:
        """Whether the write in the background has failed; `wait_until_finished` says how."""
        return self._writing.failed

    def wait_until_finished(self) -> None:
        """Waits until the checkpoint that is being written is on the disk. Of several processes, all call it.

        **Raises:** `CheckpointError` in one line if it could not be written, in any process; `FolderLocked` if the lock
        was lost. Each failure is raised once.
        """
        self._raise(lambda: together(self._writing.finish))

    def finish_writing(self) -> None:
        """As `wait_until_finished`, for a process that ends whatever the others do: it waits for its own part alone.

        **Raises:** as `wait_until_finished`.
        """
        self._raise(self._writing.finish)

    def _raise(self, finish: Callable[[], None]) -> None:
        try:
            finish()
        except (FolderLocked, CheckpointError):
            raise
        except Exception as error:
            raise self._not_saved(error) from error

    def _not_saved(self, error: Exception) -> CheckpointError:
        return CheckpointError(
            f"The checkpoint of step {self._being_written} cannot be saved in {self.folder}: {first_line(error)} Those "
            "before it are kept."
        )

    def restore(self, abstract: TrainState) -> tuple[TrainState, Any]:
        """Reads the newest checkpoint, or with `fall_back` the newest one that is intact.

        **Arguments:** `abstract`: a state of the right structure. Its values are not used, so
        `equinox.filter_eval_shape` will do. Where its shapes have a sharding, as those of
        [`Layout.abstract`][elt_zoo.sharding.Layout.abstract] do, each device reads its part, whatever mesh and however
        many processes the state was saved from.

        **Returns:** the state and the position of the data iterator.

        **Raises:** `CheckpointError` in one line if there is no checkpoint, it is damaged, or it is of another model;
        as `wait_until_finished`, for which it waits.
        """
        self.wait_until_finished()
        together(lambda: self._fetch() if is_first() else None)
        steps = first_says(self._steps.saved())
        if not steps:
            raise CheckpointError(f"There is no checkpoint in {self.folder}.")
        for step, before in zip(steps, [*steps[1:], None], strict=True):
            try:
                restored = self._read(step, abstract)
            except CheckpointError as error:
                if not self.fall_back:
                    advice = (
                        ""
                        if before is None
                        else f" To continue from step {before}, use `--fall-back`, `Checkpoints(fall_back=True)`, or "
                        f"delete {self._steps[step]}."
                    )
                    raise CheckpointError(f"{error}{advice}") from error.__cause__
                _LOGGER.warning("%s Trying the checkpoint before it.", error)
                self._steps.set_aside(step)
                continue
            if self._claimed and is_first():
                self._steps.rename_damaged()
            self._seen = True
            return restored
        self._steps.forget_damaged()
        raise CheckpointError(f"None of the checkpoints in {self.folder} can be restored (steps {steps}).")

    def close(self) -> None:
        """Waits for this process's part of what is being written, and releases the folder and Orbax's resources.

        **Raises:** as `wait_until_finished`; all is released then, too.
        """
        try:
            self.finish_writing()
        finally:
            self._claimed = False
            self._finalizer.detach()
            self._lock.release()
            self._checkpointer.close()

    def _fetch(self) -> None:
        """Fetches the newest checkpoint at `copy_to` if the folder has none as new."""
        if self._copy is None or self._seen:
            return
        newest = next(iter(self._copy.saved()), 0)
        if newest <= next(iter(self._steps.saved()), -1):
            return
        with self._lock:
            self._validate()
            if not self._steps.saved():
                write_json(self.folder / RUN_FILE, self._config)
            self._copy.adopt(self.folder, self._config)
            self._steps.folder.mkdir(exist_ok=True)
            self._copy.fetch(newest, self._steps.begin(newest))
            self._steps.commit(newest)

    def _validate(self) -> None:
        """Refuses folders of others, and of other runs that have checkpoints."""
        run_file = self.folder / RUN_FILE
        try:
            entries = foreign_entries(self.folder)
        except NotADirectoryError:
            raise ValueError(
                f"{self.folder} is a file or lies inside one. Choose a folder; nothing was changed."
            ) from None
        if RUN_FILE not in entries:
            if entries:
                raise ValueError(
                    f"{self.folder} is not empty and holds no run of elt_zoo ({', '.join(entries[:3])}). Choose "
                    "another folder; nothing was changed."
                )
            return
        differences = config_differences(read_run(run_file), self._config)
        if differences and self._steps.saved():
            raise ValueError(
                f"{self.folder} holds the checkpoints of a different run. Its config differs in:\n  "
                + "\n  ".join(differences)
                + "\nUse the same config to resume it, or another folder. Nothing was changed."
            )

    def _read(self, step: int, abstract: TrainState) -> tuple[TrainState, Any]:
        folder, place = self._steps[step], f"The checkpoint of step {step} in {self.folder}"
        wanted = to_arrays(abstract)
        try:
            # One process compares the checksums, for which it reads everything.
            together(lambda: check_intact(folder, place, wanted) if is_first() else None)
        except ProcessFailed as error:
            raise CheckpointError(first_line(error)) from error
        try:
            arrays = self._checkpointer.restore(folder / "state", args=ocp.args.StandardRestore(wanted))
        except Exception as error:
            raise CheckpointError(f"{place} cannot be read: {first_line(error)}") from error
        return from_arrays(abstract, arrays), read_json(folder / DATA)["iterator"]


def _let_go(writing: Background, lock: FolderLock) -> None:
    try:
        writing.finish()
    except Exception as error:
        _LOGGER.error("A checkpoint in %s could not be saved: %s", lock.folder, first_line(error))
    lock.release()


def _complete(steps: StepFolders, step: int, arrays: Mapping[str, str], data_state: Any) -> None:
    """Makes a checkpoint of what was written, and removes the old ones."""
    writing, now = steps.writing(step), datetime.datetime.now(datetime.UTC)
    write_json(writing / DATA, {"iterator": data_state, "time": now.isoformat()})
    write_json(writing / MANIFEST, {"arrays": arrays, "files": checksums(writing)})
    steps.commit(step)
    try:
        steps.remove_old()
    except OSError as error:
        raise CheckpointError(
            f"The checkpoint of step {step} is saved, but an older one in {steps.folder} cannot be removed: "
            f"{first_line(error)}"
        ) from error
