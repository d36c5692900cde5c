import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import numpy as np
from jax.typing import DTypeLike

from ..families import ModelConfig, config_from_dict
from ..models import ElasticModel
from ..storage import (
    CONFIG,
    WEIGHTS,
    Shardings,
    WeightsError,
    assemble,
    named_arrays,
    own_names,
    read_description,
    read_tensors,
    refuse_to_overwrite,
    write_folder,
)
from ..tokenizers import Tokenizer, abstract_tokenizer, describe_tokenizer

_ASSETS = Path(__file__).parent / "assets"


class LoadedModel(NamedTuple):
    """What `load`, `load_dit` and `load_maskgit` return."""

    model: ElasticModel
    config: ModelConfig
    tokenizer: Tokenizer | None
    metadata: dict[str, Any]
    """Whatever `save` was given; the source of published weights."""


def save(
    folder: str | os.PathLike,
    model: ElasticModel,
    config: ModelConfig,
    *,
    tokenizer: Tokenizer | None = None,
    metadata: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> Path:
    """Writes a model to a folder as `model.safetensors` and `config.json`; no reader ever sees half a file.

    Tensor names are the attribute paths of the tree, such as `model.trunk.layers.attention.qkv.weight` (stacked over
    layers), so the file can be read without this library.

    **Arguments:**

    - `folder`: created if missing.
    - `model`, `config`: the model and the config that builds it.
    - `tokenizer`: saved along: the tokenizer of a masked model, the autoencoder of one of latents.
    - `metadata`: anything of JSON's types: training knobs, scores.
    - `overwrite`: replace a model that is already there.

    **Returns:** the folder. **Raises:** `FileExistsError` if it holds a model, `ValueError` if the config would build
    another model, `TypeError` for a tokenizer that cannot be described or metadata that JSON cannot hold. Then nothing
    is written.
    """
    folder = Path(folder)
    if not overwrite:
        refuse_to_overwrite(folder)
    abstract = eqx.filter_eval_shape(config.build, key=jax.random.key(0))
    problems = _differences(named_arrays(model), named_arrays(abstract))
    if problems:
        raise ValueError("`save`: this config does not build this model:\n  " + "\n  ".join(problems))
    described = None if tokenizer is None else describe_tokenizer(tokenizer)
    tensors = {f"model.{name}": np.asarray(leaf) for name, leaf in named_arrays(model).items()}
    tensors |= {f"tokenizer.{name}": np.asarray(leaf) for name, leaf in named_arrays(tokenizer).items()}
    description = {"model": config.to_dict(), "tokenizer": described, "metadata": dict(metadata or {})}
    write_folder(folder, tensors, description)
    return folder


def load(path: str | os.PathLike, *, dtype: DTypeLike | None = None, sharding: Shardings | None = None) -> LoadedModel:
    """Reads a model that `save` wrote, or one that ships with the library.

    **Arguments:**

    - `path`: a folder, or one of [`bundled_names`][elt_zoo.generator.bundled_names].
    - `dtype`: of the parameters, such as `jax.numpy.bfloat16`; default float32.
    - `sharding`: where the parameters go: a `jax.sharding.Sharding` for all of them, or a function of a parameter's
      name and shape that returns one; default the first device.

    **Returns:** model, config, tokenizer and metadata.

    **Raises:** `FileNotFoundError` if there is no such folder or name;
    [`WeightsError`][elt_zoo.storage.WeightsError] if a file is damaged or from a newer version, or if tensors are
    missing, unused or of another shape or dtype (all of them are named). Nothing is half-loaded.
    """
    folder = Path(path)
    if not folder.exists() and str(path) in bundled_names():
        folder = _ASSETS / str(path)
    if not (folder / CONFIG).is_file() or not (folder / WEIGHTS).is_file():
        raise FileNotFoundError(
            f"No model at {str(path)!r}: expected a folder with {WEIGHTS} and {CONFIG}, or a bundled model, one of "
            f"{', '.join(bundled_names()) or '(none)'}."
        )
    description = read_description(folder)
    try:
        config = config_from_dict(description["model"])
        abstract = eqx.filter_eval_shape(config.build, key=jax.random.key(0))
        tokenizer = abstract_tokenizer(description["tokenizer"])
    except (KeyError, TypeError, ValueError) as error:
        raise WeightsError(f"{folder / CONFIG} does not describe a model: {error!r}") from error
    both = {"model": abstract, "tokenizer": tokenizer}
    loaded = assemble(both, own_names(both), read_tensors(folder / WEIGHTS), dtype=dtype, sharding=sharding)
    return LoadedModel(loaded["model"], config, loaded["tokenizer"], description.get("metadata", {}))


def bundled_names() -> tuple[str, ...]:
    """The small trained models that ship with the library, by the names that `load` takes."""
    return tuple(sorted(file.parent.name for file in _ASSETS.glob(f"*/{CONFIG}")))


def _differences(model: Mapping[str, Any], expected: Mapping[str, Any]) -> list[str]:
    """Everything in which named arrays differ from what a config builds, one line each."""
    problems = [f"missing: {name} {expected[name].shape}" for name in sorted(expected.keys() - model.keys())]
    problems += [f"unused: {name} {model[name].shape}" for name in sorted(model.keys() - expected.keys())]
    for name in sorted(expected.keys() & model.keys()):
        want, have = expected[name], model[name]
        if (want.shape, want.dtype) != (have.shape, have.dtype):
            problems.append(f"different: {name} is {have.dtype}{have.shape}, expected {want.dtype}{want.shape}")
    return problems
