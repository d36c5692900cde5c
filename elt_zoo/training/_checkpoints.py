import hashlib
import json
import logging
import os
import shutil
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from jaxtyping import PyTree

from ..distributed import ProcessFailed, first_says, is_first, together
from ..storage import FolderLock, FolderLocked, foreign_entries, read_json, require_writable, write_json
from ._config_differences import config_differences
from ._state import TrainState

_LOGGER = logging.getLogger("elt_zoo.training")
_RUN_FILE = "run.json"
_DAMAGED = ".damaged"
_DELETING = ".deleting"
_WRITING = ".writing"
_MANIFEST = "manifest.json"
_DATA = "data.json"


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be read or written."""


class Checkpoints:
    """The checkpoints of one run in a folder (Orbax): training state, position in the data, and the run's config.

    A folder belongs to one run and one process at a time. Creating this object changes nothing on the disk. The folder
    is claimed and locked by `claim`, which [`fit`][elt_zoo.training.fit] calls at its start, and released by `close`.

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
        fall_back: bool = False,
    ):
        """**Arguments:**

        - `folder`: created when it is claimed.
        - `config`: what defines the run, of JSON's types; compared on resuming.
        - `every`: steps between two checkpoints that [`fit`][elt_zoo.training.fit] saves.
        - `keep`: how many checkpoints to keep, the newest ones.
        - `fall_back`: where the newest checkpoint is damaged, restore the newest intact one instead of raising. The
          damaged one is logged and renamed to `steps/<step>.damaged`.

        **Raises:** `ValueError` for counts below 1, or if the folder holds other files or another run, with all
        differences; `CheckpointError` if its `run.json` cannot be read.
        """
        if every < 1 or keep < 1:
            raise ValueError(f"`Checkpoints(every={every}, keep={keep})`: both must be at least 1.")
        self.folder = Path(folder).absolute()
        self.every = every
        self.keep = keep
        self.fall_back = fall_back
        self._config = json.loads(json.dumps(config))
        self._steps = self.folder / "steps"
        self._damaged: set[int] = set()
        self._claimed = False
        self._lock = FolderLock(self.folder)
        # For whoever drops the object instead of closing it, as happens in notebooks.
        self._finalizer = weakref.finalize(self, self._lock.release)
        self._checkpointer = ocp.Checkpointer(ocp.StandardCheckpointHandler())
        self._validate()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

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
            if self.latest_step() is None:
                write_json(self.folder / _RUN_FILE, self._config)
            else:
                require_writable(self.folder / _RUN_FILE)
            self._steps.mkdir(exist_ok=True)
            self._clean()
        except BaseException:
            self._lock.release()
            raise

    def latest_step(self) -> int | None:
        """The step of the newest checkpoint, or `None`. A folder without files is no checkpoint."""
        return next(iter(self._saved_steps()), None)

    def save(self, state: TrainState, data_state: Any) -> None:
        """Saves a state and the position of the data iterator (`iterator.get_state()`), unless this step is saved
        already. Claims the folder if that has not happened yet.

        **Raises:** as `claim`; `FolderLocked` if the lock was lost; `CheckpointError` if writing fails. The checkpoints
        from before are kept.
        """
        step = int(state.step)
        self.claim(step=step)
        if step == first_says(self.latest_step()):
            return
        arrays, writing = _to_arrays(state), self._steps / f"{step}{_WRITING}"

        def begin() -> None:
            self._lock.check()
            shutil.rmtree(writing, ignore_errors=True)
            writing.mkdir()

        def end() -> None:
            write_json(writing / _DATA, {"iterator": data_state})
            write_json(writing / _MANIFEST, {"arrays": _described(arrays), "files": _checksums(writing)})
            os.rename(writing, self._steps / str(step))

        try:
            # What one process does the others wait for: afterwards all see the same checkpoints.
            together(lambda: begin() if is_first() else None)
            self._checkpointer.save(writing / "state", args=ocp.args.StandardSave(arrays))
            together(lambda: end() if is_first() else None)
        except FolderLocked:
            raise
        except Exception as error:
            raise CheckpointError(
                f"The checkpoint of step {step} cannot be saved in {self.folder}: {_first_line(error)} Those before it "
                "are kept."
            ) from error
        if is_first():
            self._remove_old()

    def restore(self, abstract: TrainState) -> tuple[TrainState, Any]:
        """Reads the newest checkpoint, or with `fall_back` the newest one that is intact.

        **Arguments:** `abstract`: a state of the right structure. Its values are not used, so
        `equinox.filter_eval_shape` will do. Where its shapes have a sharding, as those of
        [`Layout.abstract`][elt_zoo.sharding.Layout.abstract] do, each device reads its part, whatever mesh and however
        many processes the state was saved from.

        **Returns:** the state and the position of the data iterator.

        **Raises:** `CheckpointError` in one line if there is no checkpoint, it is damaged, or it is of another model.
        """
        steps = first_says(self._saved_steps())
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
                        f"delete {self._steps / str(step)}."
                    )
                    raise CheckpointError(f"{error}{advice}") from error.__cause__
                _LOGGER.warning("%s Trying the checkpoint before it.", error)
                self._damaged.add(step)
                continue
            if self._claimed and is_first():
                self._set_damaged_aside()
            return restored
        self._damaged.clear()
        raise CheckpointError(f"None of the checkpoints in {self.folder} can be restored (steps {steps}).")

    def close(self) -> None:
        """Releases the folder and Orbax's resources."""
        self._claimed = False
        self._finalizer.detach()
        self._lock.release()
        self._checkpointer.close()

    def _validate(self) -> None:
        """Refuses folders of others, and of other runs that have checkpoints."""
        run_file = self.folder / _RUN_FILE
        try:
            entries = foreign_entries(self.folder)
        except NotADirectoryError:
            raise ValueError(
                f"{self.folder} is a file or lies inside one. Choose a folder; nothing was changed."
            ) from None
        if _RUN_FILE not in entries:
            if entries:
                raise ValueError(
                    f"{self.folder} is not empty and holds no run of elt_zoo ({', '.join(entries[:3])}). Choose "
                    "another folder; nothing was changed."
                )
            return
        differences = config_differences(_read_run(run_file), self._config)
        if differences and self.latest_step() is not None:
            raise ValueError(
                f"{self.folder} holds the checkpoints of a different run. Its config differs in:\n  "
                + "\n  ".join(differences)
                + "\nUse the same config to resume it, or another folder. Nothing was changed."
            )

    def _saved_steps(self) -> list[int]:
        """Newest first, without those that were found to be damaged."""
        try:
            names = os.listdir(self._steps)
        except (FileNotFoundError, NotADirectoryError):
            return []
        steps = {int(name) for name in names if name.isascii() and name.isdigit() and str(int(name)) == name}
        return [step for step in sorted(steps - self._damaged, reverse=True) if _holds_files(self._steps / str(step))]

    def _clean(self) -> None:
        """Removes what killed processes left in the folder of steps, which is ours and locked."""
        for entry in self._steps.iterdir():
            empty = entry.name.isdigit() and not _holds_files(entry)
            if empty or entry.name.endswith((_WRITING, _DELETING)):
                shutil.rmtree(entry, ignore_errors=True)
        self._set_damaged_aside()
        self._remove_old()

    def _remove_old(self) -> None:
        """Keeps the newest `keep` checkpoints."""
        for old in self._saved_steps()[self.keep :]:
            # Renamed first: a process that is killed here does not leave half a checkpoint.
            leaving = self._steps / f"{old}{_DELETING}"
            os.rename(self._steps / str(old), leaving)
            shutil.rmtree(leaving, ignore_errors=True)

    def _set_damaged_aside(self) -> None:
        for step in self._damaged:
            aside = self._steps / f"{step}{_DAMAGED}"
            shutil.rmtree(aside, ignore_errors=True)
            os.rename(self._steps / str(step), aside)
        self._damaged.clear()

    def _read(self, step: int, abstract: TrainState) -> tuple[TrainState, Any]:
        folder, place = self._steps / str(step), f"The checkpoint of step {step} in {self.folder}"
        wanted = _to_arrays(abstract)
        try:
            # One process compares the checksums, for which it reads everything.
            together(lambda: _check_intact(folder, place, wanted) if is_first() else None)
        except ProcessFailed as error:
            raise CheckpointError(_first_line(error)) from error
        try:
            arrays = self._checkpointer.restore(folder / "state", args=ocp.args.StandardRestore(wanted))
        except Exception as error:
            raise CheckpointError(f"{place} cannot be read: {_first_line(error)}") from error
        return _from_arrays(abstract, arrays), read_json(folder / _DATA)["iterator"]


def _check_intact(folder: Path, place: str, wanted: Mapping[str, Any]) -> None:
    """**Raises:** `CheckpointError` for files that are not as they were saved, or of another model."""
    try:
        manifest = read_json(folder / _MANIFEST)
        saved, files = dict(manifest["arrays"]), dict(manifest["files"])
        found = _checksums(folder)
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{place} is incomplete, or of an older version of elt_zoo: it has no {_MANIFEST}."
        ) from error
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise CheckpointError(f"{place} is damaged: {_first_line(error)}") from error
    changed = sorted(name for name in files.keys() | found.keys() if files.get(name) != found.get(name))
    if changed:
        raise CheckpointError(
            f"{place} is damaged: {len(changed)} of its files are not as they were saved ({changed[0]})."
        )
    differences = config_differences(saved, _described(wanted))
    if differences:
        raise CheckpointError(
            f"{place} is of another model or optimiser: {len(differences)} of its arrays differ, first "
            f"{differences[0]}."
        )


def _read_run(file: Path) -> dict[str, Any]:
    try:
        config = read_json(file)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file} cannot be read, so the run in its folder is unknown: {error}") from error
    if not isinstance(config, dict):
        raise CheckpointError(
            f"{file} holds a {type(config).__name__} and not the config of a run, so the run in its folder is unknown."
        )
    return config


def _holds_files(folder: Path) -> bool:
    return any(files for _, _, files in os.walk(folder))


def _checksums(folder: Path) -> dict[str, str]:
    """SHA-256 of every file of a checkpoint but its manifest, by relative path."""
    sums = {}
    for path in folder.rglob("*"):
        if path.is_file() and path != folder / _MANIFEST:
            with path.open("rb") as file:
                sums[path.relative_to(folder).as_posix()] = hashlib.file_digest(file, "sha256").hexdigest()
    return sums


def _described(arrays: Mapping[str, Any]) -> dict[str, str]:
    return {name: f"{leaf.dtype}{list(leaf.shape)}" for name, leaf in arrays.items()}


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:200].rstrip(".") + "."


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _to_arrays(state: TrainState) -> dict[str, Any]:
    """All arrays, or their shapes, by their path in the tree; typed PRNG keys as their raw data."""

    # Orbax would lay out what has no sharding as it was saved, on devices that may not be here.
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])

    def plain(leaf):
        if not isinstance(leaf, jax.ShapeDtypeStruct):
            return jax.random.key_data(leaf) if _is_key(leaf) else leaf
        # A key's data have one more axis than the key, so that they keep its sharding only where it has no axis.
        data = jax.eval_shape(jax.random.key_data, leaf) if _is_key(leaf) else leaf
        return jax.ShapeDtypeStruct(data.shape, data.dtype, sharding=leaf.sharding or here)

    leaves, _ = jax.tree.flatten_with_path(state)
    return {jax.tree_util.keystr(path): plain(leaf) for path, leaf in leaves if hasattr(leaf, "dtype")}


def _from_arrays(abstract: TrainState, arrays: dict[str, Any]) -> PyTree:
    def fill(path, leaf):
        if not hasattr(leaf, "dtype"):
            return leaf
        # A copy of our own: the next step donates its buffers, and what was read may share memory with the reader.
        array = jnp.array(arrays[jax.tree_util.keystr(path)], copy=True)
        return jax.random.wrap_key_data(array) if _is_key(leaf) else array

    return jax.tree.map_with_path(fill, abstract, is_leaf=eqx.is_array)
