import contextlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from ._tensor_file import WeightsError

FORMAT_VERSION = 1
"""Version of the folders that we write; newer ones are refused."""
WEIGHTS, CONFIG = "model.safetensors", "config.json"


def refuse_to_overwrite(folder: Path) -> None:
    """**Raises:** `FileExistsError` if the folder holds a model already."""
    if (folder / CONFIG).exists() or (folder / WEIGHTS).exists():
        raise FileExistsError(
            f"{folder} already holds a model. Choose another folder, or pass `overwrite=True` to replace it."
        )


def write_folder(folder: Path, tensors: Mapping[str, np.ndarray], description: Mapping[str, Any]) -> None:
    """Writes weights and config so that no reader ever sees half of them."""
    try:
        text = json.dumps({"format_version": FORMAT_VERSION, **description}, indent=2)
    except TypeError as error:
        raise TypeError(
            f"`save(metadata=…)` holds what JSON cannot: {error}. Convert arrays and their scalars first."
        ) from error
    folder.mkdir(parents=True, exist_ok=True)
    with _temporary(folder / WEIGHTS) as weights, _temporary(folder / CONFIG) as config_file:
        save_file(dict(tensors), weights)
        config_file.write_text(text)
        # An interruption from here on may leave a folder without a config, which reading refuses, but never one model's
        # weights with another's config.
        (folder / CONFIG).unlink(missing_ok=True)
        os.replace(weights, folder / WEIGHTS)
        os.replace(config_file, folder / CONFIG)


def read_description(folder: Path) -> dict[str, Any]:
    """The config of a folder, of a version that we know."""
    try:
        description = json.loads((folder / CONFIG).read_text())
        version = description["format_version"]
        if not isinstance(version, int):
            raise TypeError(f"format_version is {version!r}")
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError) as error:
        raise WeightsError(f"{folder / CONFIG} is damaged or not a config of elt_zoo: {error!r}") from error
    if version > FORMAT_VERSION:
        raise WeightsError(
            f"{folder / CONFIG} has format version {version}; this elt_zoo reads up to {FORMAT_VERSION}. Install a "
            "newer elt_zoo."
        )
    return description


@contextlib.contextmanager
def _temporary(file: Path) -> Iterator[Path]:
    """An empty file beside `file` to write to and rename; removed if it is still there at the end."""
    handle, name = tempfile.mkstemp(dir=file.parent, prefix=file.name)
    os.close(handle)
    temporary = Path(name)
    try:
        # mkstemp makes it private.
        temporary.chmod(0o644)
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)
