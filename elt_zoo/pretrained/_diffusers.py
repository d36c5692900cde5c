import json
from pathlib import Path
from typing import Any

from ..storage import TensorFile, WeightsError, read_tensors

_FILES = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")


def diffusers_settings(folder: Path, *classes: str) -> dict[str, Any]:
    """A diffusers folder's config.json, of one of the given classes."""
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{folder} is not a diffusers folder: it has no config.json.")
    try:
        settings = json.loads((folder / "config.json").read_text())
        name = settings["_class_name"]
    except (UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError) as error:
        raise WeightsError(f"{folder / 'config.json'} is damaged or not a config of diffusers: {error!r}") from error
    if name not in classes:
        raise WeightsError(f"{folder / 'config.json'} is of {name}, expected {' or '.join(classes)}.")
    return settings


def diffusers_weights(folder: Path) -> TensorFile:
    """A diffusers folder's tensors, safetensors first."""
    for name in _FILES:
        if (folder / name).is_file():
            return read_tensors(folder / name)
    raise FileNotFoundError(f"{folder} has no weights: expected {' or '.join(_FILES)}.")
