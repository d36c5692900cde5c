import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from jaxtyping import PyTree

from ._state import TrainState

_RUN_FILE = "run.json"


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be read."""


class Checkpoints:
    """The checkpoints of one run in a folder (Orbax): training state, position in the data, and the run's config.

    A folder belongs to one config. Opening it with another one fails and changes nothing. Saves are atomic: one that
    was interrupted is not seen.
    """

    def __init__(self, folder: str | os.PathLike, config: Mapping[str, Any], *, every: int = 1000, keep: int = 2):
        """**Arguments:**

        - `folder`: created if missing.
        - `config`: what defines the run, of JSON's types; compared on resuming.
        - `every`: steps between two checkpoints that [`fit`][elt_zoo.training.fit] saves.
        - `keep`: how many checkpoints to keep, the newest ones.

        **Raises:** `ValueError` for counts below 1, or if the folder holds other files or another run, with all
        differences.
        """
        if every < 1 or keep < 1:
            raise ValueError(f"`Checkpoints(every={every}, keep={keep})`: both must be at least 1.")
        self.folder = Path(folder).absolute()
        self.every = every
        config = json.loads(json.dumps(config))
        run_file = self.folder / _RUN_FILE
        if run_file.exists():
            differences = config_differences(_read_run(run_file), config)
            if differences:
                raise ValueError(
                    f"{self.folder} holds the checkpoints of a different run. Its config differs in:\n  "
                    + "\n  ".join(differences)
                    + "\nUse the same config to resume it, or another folder. Nothing was changed."
                )
        elif self.folder.exists() and any(self.folder.iterdir()):
            raise ValueError(
                f"{self.folder} is not empty and holds no run of elt_zoo. Choose another folder; nothing was changed."
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        if not run_file.exists():
            temporary = run_file.with_suffix(".tmp")
            temporary.write_text(json.dumps(config, indent=2))
            os.replace(temporary, run_file)
        self._manager = ocp.CheckpointManager(
            self.folder / "steps",
            options=ocp.CheckpointManagerOptions(max_to_keep=keep, create=True, enable_async_checkpointing=False),
        )

    def latest_step(self) -> int | None:
        """The step of the newest checkpoint, or `None`."""
        return self._manager.latest_step()

    def save(self, state: TrainState, data_state: Any) -> None:
        """Saves a state and the position of the data iterator (`iterator.get_state()`), unless this step is saved
        already.
        """
        step = int(state.step)
        if step == self._manager.latest_step():
            return
        arguments = ocp.args.Composite(
            state=ocp.args.StandardSave(_to_arrays(state)), data=ocp.args.JsonSave({"iterator": data_state})
        )
        self._manager.save(step, args=arguments)
        self._manager.wait_until_finished()

    def restore(self, abstract: TrainState) -> tuple[TrainState, Any]:
        """Reads the newest checkpoint.

        **Arguments:** `abstract`: a state of the right structure; its values are not used, so
        `equinox.filter_eval_shape` will do.

        **Returns:** the state and the data iterator's position.

        **Raises:** `CheckpointError` if there is none or it cannot be read, naming the folder.
        """
        step = self._manager.latest_step()
        if step is None:
            raise CheckpointError(f"There is no checkpoint in {self.folder}.")
        wanted = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), _to_arrays(abstract))
        arguments = ocp.args.Composite(state=ocp.args.StandardRestore(wanted), data=ocp.args.JsonRestore())
        try:
            restored = self._manager.restore(step, args=arguments)
        except Exception as error:
            raise CheckpointError(
                f"The checkpoint of step {step} in {self.folder} cannot be read: it is damaged, incomplete or of "
                f"another model. Delete {self.folder / 'steps' / str(step)} to fall back to the one before it. "
                f"Cause: {error}"
            ) from error
        return _from_arrays(abstract, restored["state"]), restored["data"]["iterator"]

    def close(self) -> None:
        """Releases Orbax's threads."""
        self._manager.close()


def config_differences(saved: Mapping[str, Any], given: Mapping[str, Any]) -> list[str]:
    """One line for each field, nested ones with dotted names, in which two configs differ."""
    saved, given = _flatten(saved), _flatten(given)
    return [
        f"{name}: saved {saved.get(name, '(missing)')!r}, given {given.get(name, '(missing)')!r}"
        for name in sorted(saved.keys() | given.keys())
        if name not in saved or name not in given or saved[name] != given[name]
    ]


def _flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for name, value in config.items():
        flat |= _flatten(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return flat


def _read_run(file: Path) -> dict[str, Any]:
    try:
        return json.loads(file.read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{file} cannot be read, so the run in its folder is unknown: {error}") from error


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _to_arrays(state: TrainState) -> dict[str, Any]:
    """All arrays, or their shapes, by their path in the tree; typed PRNG keys as their raw data."""

    def plain(leaf):
        if not _is_key(leaf):
            return leaf
        abstract = isinstance(leaf, jax.ShapeDtypeStruct)
        return jax.eval_shape(jax.random.key_data, leaf) if abstract else jax.random.key_data(leaf)

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
