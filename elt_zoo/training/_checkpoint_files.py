import datetime
import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from ..storage import read_json
from ._config_differences import config_differences
from ._state import TrainState

RUN_FILE = "run.json"
MANIFEST = "manifest.json"
DATA = "data.json"


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be read or written."""


def check_intact(folder: Path, place: str, wanted: Mapping[str, Any]) -> None:
    """**Raises:** `CheckpointError` for files that are not as they were saved, or of another model."""
    try:
        manifest = read_json(folder / MANIFEST)
        saved, files = dict(manifest["arrays"]), dict(manifest["files"])
        found = checksums(folder)
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{place} is incomplete, or of an older version of elt_zoo: it has no {MANIFEST}."
        ) from error
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise CheckpointError(f"{place} is damaged: {first_line(error)}") from error
    changed = sorted(name for name in files.keys() | found.keys() if files.get(name) != found.get(name))
    if changed:
        raise CheckpointError(
            f"{place} is damaged: {len(changed)} of its files are not as they were saved ({changed[0]})."
        )
    differences = config_differences(saved, described(wanted))
    if differences:
        raise CheckpointError(
            f"{place} is of another model or optimiser: {len(differences)} of its arrays differ, first "
            f"{differences[0]}."
        )


def read_run(file: Path) -> dict[str, Any]:
    try:
        config = read_json(file)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file} cannot be read, so the run in its folder is unknown: {error}") from error
    if not isinstance(config, dict):
        raise CheckpointError(
            f"{file} holds a {type(config).__name__} and not the config of a run, so the run in its folder is unknown."
        )
    return config


def saved_at(folder: Path) -> datetime.datetime:
    """When a checkpoint was saved; those of older versions do not say, and are as old as their files."""
    try:
        return datetime.datetime.fromisoformat(read_json(folder / DATA)["time"])
    except (OSError, ValueError, TypeError, KeyError):
        return datetime.datetime.fromtimestamp(folder.stat().st_mtime, datetime.UTC)


def holds_files(folder: Path) -> bool:
    return any(files for _, _, files in os.walk(folder))


def checksums(folder: Path) -> dict[str, str]:
    """SHA-256 of every file of a checkpoint but its manifest, by relative path."""
    sums = {}
    for path in folder.rglob("*"):
        if path.is_file() and path != folder / MANIFEST:
            with path.open("rb") as file:
                sums[path.relative_to(folder).as_posix()] = hashlib.file_digest(file, "sha256").hexdigest()
    return sums


def described(arrays: Mapping[str, Any]) -> dict[str, str]:
    return {name: f"{leaf.dtype}{list(leaf.shape)}" for name, leaf in arrays.items()}


def first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:200].rstrip(".") + "."


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def to_arrays(state: TrainState) -> dict[str, Any]:
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


def from_arrays(abstract: TrainState, arrays: dict[str, Any]) -> PyTree:
    def fill(path, leaf):
        if not hasattr(leaf, "dtype"):
            return leaf
        # A copy of our own: the next step donates its buffers, and what was read may share memory with the reader.
        array = jnp.array(arrays[jax.tree_util.keystr(path)], copy=True)
        return jax.random.wrap_key_data(array) if _is_key(leaf) else array

    return jax.tree.map_with_path(fill, abstract, is_leaf=eqx.is_array)
