import contextlib
import errno
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ._atomic import unique_keys, write_json
from ._read import read_tensors
from ._safetensors import write_safetensors
from ._tensor_file import TensorFile, WeightsError

FORMAT_VERSION = 1
"""Version of the folders that we write; newer ones are refused."""
WEIGHTS = "model.safetensors"
"""The file of a folder that is the truth: tensors and description."""
CONFIG = "config.json"
"""A copy of the description for people."""
# Name of the description in the metadata of the weights.
_DESCRIPTION = "description"
_ABOUT = "A copy for people to read. What is loaded is the description inside model.safetensors."


class StoredFolder(NamedTuple):
    """What a folder holds: the description and the tensors that belong together."""

    description: dict[str, Any]
    tensors: TensorFile


def refuse_to_overwrite(folder: Path) -> None:
    """**Raises:** `FileExistsError` if the folder holds a model already."""
    if (folder / CONFIG).exists() or (folder / WEIGHTS).exists():
        raise FileExistsError(
            f"{folder} already holds a model. Choose another folder, or pass `overwrite=True` to replace it."
        )


def write_folder(folder: Path, tensors: Mapping[str, np.ndarray], description: Mapping[str, Any]) -> None:
    """Writes tensors and what describes them to a folder, in place of what it may hold.

    `model.safetensors` carries both, with checksums, and is replaced in one step: at any moment, and after a kill at
    any moment, a reader gets the old model or the new one, never the weights of one with the description of the other.
    `config.json` is a copy of the description for people.

    **Arguments:** `folder`: created if missing; `tensors`: arrays by name; `description`: of JSON's types.

    **Raises:** `TypeError` for a description that JSON cannot hold, before anything is written; `OSError` in one line
    if the folder cannot be written to; what it held is unchanged then.
    """
    try:
        described = {"format_version": FORMAT_VERSION, **description}
        text = json.dumps(described)
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"`save(metadata=…)` holds what JSON cannot: {error}. Convert arrays and their scalars first."
        ) from error
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, f"{folder} is a file, not a folder to save to. Choose another name.")
    is_new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        write_safetensors(folder / WEIGHTS, tensors, {_DESCRIPTION: text})
    except BaseException:
        if is_new:
            with contextlib.suppress(OSError):
                folder.rmdir()
        raise
    write_json(folder / CONFIG, {"about": _ABOUT, **described})


def read_folder(folder: str | os.PathLike) -> StoredFolder:
    """Opens a folder that [`write_folder`][elt_zoo.storage.write_folder] wrote. What it returns belongs together and
    stays readable, also while the folder is being replaced.

    Weights without a description, as other programs write them, are described by the `config.json` beside them.

    **Raises:** `FileNotFoundError` if there is no `model.safetensors`;
    [`WeightsError`][elt_zoo.storage.WeightsError] if it or its description is damaged or of a newer version.
    """
    weights = Path(folder) / WEIGHTS
    for _ in range(100):
        tensors = read_tensors(weights)
        if _DESCRIPTION in tensors.metadata:
            return StoredFolder(_parsed(weights, tensors.metadata[_DESCRIPTION].encode()), tensors)
        config = Path(folder) / CONFIG
        try:
            text = config.read_bytes()
        except OSError as error:
            raise WeightsError(
                f"{weights} carries no description, and there is no config.json to read beside it: {error}. "
                "It was not written by `save`."
            ) from error
        # The weights are replaced before the config: as long as they are the same, so was the config.
        if tensors.is_current():
            return StoredFolder(_parsed(config, text), tensors)
    raise WeightsError(f"{folder} is replaced faster than it can be read. Try again.")


def read_description(folder: str | os.PathLike) -> dict[str, Any]:
    """The description of a folder alone; raises what [`read_folder`][elt_zoo.storage.read_folder] does."""
    return read_folder(folder).description


def _parsed(path: Path, text: bytes) -> dict[str, Any]:
    try:
        description = json.loads(text, object_pairs_hook=unique_keys)
        version = description["format_version"]
        if type(version) is not int or version < 1:
            raise TypeError(f"format_version is {version!r}")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise WeightsError(f"{path} is damaged or holds no description of elt_zoo: {error!r}") from error
    if version > FORMAT_VERSION:
        raise WeightsError(
            f"{path} has format version {version}; this elt_zoo reads up to {FORMAT_VERSION}. Install a newer elt_zoo."
        )
    return description
