import contextlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from ..models import ElasticModel, ModelConfig, config_from_dict
from ..tokenizers import AbstractTokenizer, GreyLevels, PatchCodebook

FORMAT_VERSION = 1
"""Version of the folder's layout; `load` refuses newer ones."""
_WEIGHTS, _CONFIG = "model.safetensors", "config.json"
_ASSETS = Path(__file__).parent / "assets"


class WeightsError(RuntimeError):
    """A saved model that cannot be read: missing, damaged, newer than this version, or of another structure."""


class LoadedModel(NamedTuple):
    """What `load` returns."""

    model: ElasticModel
    config: ModelConfig
    tokenizer: AbstractTokenizer | None
    metadata: dict[str, Any]
    """Whatever `save` was given."""


def save(
    folder: str | os.PathLike,
    model: ElasticModel,
    config: ModelConfig,
    *,
    tokenizer: AbstractTokenizer | None = None,
    metadata: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> Path:
    """Writes a model to a folder as `model.safetensors` and `config.json`; no reader ever sees half a file.

    Tensor names are the attribute paths of the tree, such as `model.trunk.layers.attention.qkv.weight` (stacked over
    layers), so the file can be read without this library.

    **Arguments:**

    - `folder`: created if missing.
    - `model`, `config`: the model and the config that builds it.
    - `tokenizer`: saved along, for masked models.
    - `metadata`: anything of JSON's types: training knobs, scores.
    - `overwrite`: replace a model that is already there.

    **Returns:** the folder. **Raises:** `FileExistsError` if it holds a model, `ValueError` if the config would build
    another model, `TypeError` for a tokenizer that cannot be described or metadata that JSON cannot hold. Then nothing
    is written.
    """
    folder = Path(folder)
    if not overwrite and ((folder / _CONFIG).exists() or (folder / _WEIGHTS).exists()):
        raise FileExistsError(
            f"{folder} already holds a model. Choose another folder, or pass `overwrite=True` to replace it."
        )
    abstract = eqx.filter_eval_shape(config.build, key=jax.random.key(0))
    problems = _differences(_named_arrays(model), _named_arrays(abstract))
    if problems:
        raise ValueError("`save`: this config does not build this model:\n  " + "\n  ".join(problems))
    tensors = {f"model.{name}": np.asarray(leaf) for name, leaf in _named_arrays(model).items()}
    description = {
        "format_version": FORMAT_VERSION,
        "model": config.to_dict(),
        "tokenizer": None if tokenizer is None else _describe_tokenizer(tokenizer),
        "metadata": dict(metadata or {}),
    }
    if tokenizer is not None:
        tensors |= {f"tokenizer.{name}": np.asarray(leaf) for name, leaf in _named_arrays(tokenizer).items()}
    try:
        text = json.dumps(description, indent=2)
    except TypeError as error:
        raise TypeError(
            f"`save(metadata=…)` holds what JSON cannot: {error}. Convert arrays and their scalars first."
        ) from error
    folder.mkdir(parents=True, exist_ok=True)
    with _temporary(folder / _WEIGHTS) as weights, _temporary(folder / _CONFIG) as config_file:
        save_file(tensors, weights)
        config_file.write_text(text)
        # An interruption from here on may leave a folder without a config, which `load` refuses, but never one model's
        # weights with another's config.
        (folder / _CONFIG).unlink(missing_ok=True)
        os.replace(weights, folder / _WEIGHTS)
        os.replace(config_file, folder / _CONFIG)
    return folder


def load(path: str | os.PathLike) -> LoadedModel:
    """Reads a model that `save` wrote, or one that ships with the library.

    **Arguments:** `path`: a folder, or one of [`bundled_names`][elt_zoo.pretrained.bundled_names].

    **Returns:** model, config, tokenizer and metadata.

    **Raises:** `FileNotFoundError` if there is no such folder or name;
    [`WeightsError`][elt_zoo.pretrained.WeightsError] if a file is damaged or from a newer version, or if tensors are
    missing, unused or of another shape or dtype (all of them are named). Nothing is half-loaded.
    """
    folder = Path(path)
    if not folder.exists() and str(path) in bundled_names():
        folder = _ASSETS / str(path)
    if not (folder / _CONFIG).is_file() or not (folder / _WEIGHTS).is_file():
        raise FileNotFoundError(
            f"No model at {str(path)!r}: expected a folder with {_WEIGHTS} and {_CONFIG}, or a bundled model, one of "
            f"{', '.join(bundled_names()) or '(none)'}."
        )
    try:
        description = json.loads((folder / _CONFIG).read_text())
        version = description["format_version"]
        if not isinstance(version, int):
            raise TypeError(f"format_version is {version!r}")
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError) as error:
        raise WeightsError(f"{folder / _CONFIG} is damaged or not a config of elt_zoo: {error!r}") from error
    if version > FORMAT_VERSION:
        raise WeightsError(
            f"{folder / _CONFIG} has format version {version}; this elt_zoo reads up to {FORMAT_VERSION}. Install a "
            "newer elt_zoo."
        )
    try:
        config = config_from_dict(description["model"])
        abstract = eqx.filter_eval_shape(config.build, key=jax.random.key(0))
        abstract_tokenizer = _abstract_tokenizer(description["tokenizer"])
    except (KeyError, TypeError, ValueError) as error:
        raise WeightsError(f"{folder / _CONFIG} does not describe a model: {error!r}") from error
    try:
        tensors = load_file(folder / _WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"{folder / _WEIGHTS} is damaged or truncated: {error}") from error
    expected = {f"model.{name}": leaf for name, leaf in _named_arrays(abstract).items()}
    expected |= {f"tokenizer.{name}": leaf for name, leaf in _named_arrays(abstract_tokenizer).items()}
    problems = _differences(tensors, expected)
    if problems:
        raise WeightsError(f"{folder / _WEIGHTS} does not fit the model of its config:\n  " + "\n  ".join(problems))
    return LoadedModel(
        model=_fill(abstract, tensors, "model."),
        config=config,
        tokenizer=None if abstract_tokenizer is None else _fill(abstract_tokenizer, tensors, "tokenizer."),
        metadata=description.get("metadata", {}),
    )


def bundled_names() -> tuple[str, ...]:
    """The small trained models that ship with the library, by the names that `load` takes."""
    return tuple(sorted(file.parent.name for file in _ASSETS.glob(f"*/{_CONFIG}")))


def _describe_tokenizer(tokenizer: AbstractTokenizer) -> dict[str, Any]:
    match tokenizer:
        case PatchCodebook():
            return {"kind": "patch_codebook", "shape": tokenizer.shape, "patch_size": tokenizer.patch_size} | {
                "codebook_size": tokenizer.codebook_size
            }
        case GreyLevels():
            return {"kind": "grey_levels", "shape": tokenizer.shape, "levels": tokenizer.levels}
    raise TypeError(
        f"`save` cannot describe a tokenizer of type {type(tokenizer).__name__}; it knows PatchCodebook and "
        "GreyLevels. Save the model with `tokenizer=None` and keep the tokenizer yourself."
    )


def _abstract_tokenizer(description: dict[str, Any] | None) -> AbstractTokenizer | None:
    if description is None:
        return None
    shape = tuple(description["shape"])
    match description["kind"]:
        case "patch_codebook":
            size = description["patch_size"]
            codes = (description["codebook_size"], size * size * shape[-1])
            return eqx.filter_eval_shape(lambda: PatchCodebook(jnp.zeros(codes, jnp.float32), shape, size))
        case "grey_levels":
            return GreyLevels(shape, description["levels"])
    raise ValueError(f"unknown tokenizer {description['kind']!r}")


def _named_arrays(tree: PyTree) -> dict[str, Any]:
    leaves, _ = jax.tree.flatten_with_path(tree)
    return {_name(path): leaf for path, leaf in leaves if hasattr(leaf, "dtype")}


def _name(path: tuple[Any, ...]) -> str:
    return ".".join(str(getattr(entry, "name", getattr(entry, "idx", getattr(entry, "key", entry)))) for entry in path)


def _fill(abstract: PyTree, tensors: dict[str, np.ndarray], prefix: str) -> Any:
    return jax.tree.map_with_path(
        lambda path, leaf: jnp.asarray(tensors[prefix + _name(path)]) if hasattr(leaf, "dtype") else leaf,
        abstract,
    )


def _differences(tensors: Mapping[str, Any], expected: Mapping[str, Any]) -> list[str]:
    """Everything in which named arrays differ from what is expected, one line each."""
    problems = [f"missing: {name} {expected[name].shape}" for name in sorted(expected.keys() - tensors.keys())]
    problems += [f"unused: {name} {tensors[name].shape}" for name in sorted(tensors.keys() - expected.keys())]
    for name in sorted(expected.keys() & tensors.keys()):
        want, have = expected[name], tensors[name]
        if (want.shape, want.dtype) != (have.shape, have.dtype):
            problems.append(f"different: {name} is {have.dtype}{have.shape}, expected {want.dtype}{want.shape}")
    return problems


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
