import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import numpy as np
from jax.typing import DTypeLike

from ..families import ModelConfig, config_from_dict, settings_from_dict
from ..models import ElasticModel
from ..storage import (
    CONFIG,
    WEIGHTS,
    Shardings,
    WeightsError,
    assemble,
    named_arrays,
    own_names,
    read_folder,
    refuse_to_overwrite,
    write_folder,
)
from ..tokenizers import abstract_tokenizer, describe_tokenizer
from ._card import write_card
from ._generator import Generator
from ._hub import SCHEME, download_model

_ASSETS = Path(__file__).parent / "assets"


def save(folder: str | os.PathLike, generator: Generator, *, own_model: bool = False, overwrite: bool = False) -> Path:
    """Writes a generator to a folder as `model.safetensors` and `config.json`, all that [`load`][elt_zoo.load] needs to
    sample it again, and a [card][elt_zoo.generator.model_card] for people, `README.md`.

    Tensor names are the attribute paths of the tree, such as `model.trunk.layers.attention.qkv.weight` (stacked over
    layers), so the file can be read without this library. Nothing in it is code. A folder is replaced as a whole or not
    at all: no reader gets the weights of one model with the config of another.

    **Arguments:**

    - `folder`: created if missing.
    - `generator`: what to write, its tokenizer included.
    - `own_model`: the model has layers or a head of your own, which its config would not build. Loading it then takes a
      `skeleton`.
    - `overwrite`: replace a model that is already there.

    **Returns:** the folder.

    **Raises:** `FileExistsError` if it holds a model, `ValueError` if the config would build another model (without
    `own_model`), `TypeError` for a tokenizer that cannot be described or metadata that JSON cannot hold. Then nothing
    is written.
    """
    folder = Path(folder)
    if not overwrite:
        refuse_to_overwrite(folder)
    model, config, tokenizer = generator.model, generator.config, generator.tokenizer
    if not own_model:
        abstract = eqx.filter_eval_shape(config.build, key=jax.random.key(0))
        problems = _differences(named_arrays(model), named_arrays(abstract))
        if problems:
            raise ValueError(
                "`save`: the config does not build this model; pass `own_model=True` if it has your own layers or "
                "head:\n  " + "\n  ".join(problems)
            )
    tensors = {f"model.{name}": np.asarray(leaf) for name, leaf in named_arrays(model).items()}
    tensors |= {f"tokenizer.{name}": np.asarray(leaf) for name, leaf in named_arrays(tokenizer).items()}
    description = {
        "model": config.to_dict(),
        "own_model": own_model,
        "sampler": dataclasses.asdict(generator.settings),
        "tokenizer": None if tokenizer is None else describe_tokenizer(tokenizer),
        "metadata": dict(generator.metadata),
    }
    write_folder(folder, tensors, description)
    write_card(folder, generator)
    return folder


def load(
    path: str | os.PathLike,
    *,
    family: type[ModelConfig] | None = None,
    skeleton: ElasticModel | None = None,
    dtype: DTypeLike | None = None,
    sharding: Shardings | None = None,
) -> Generator:
    """Reads a generator that `save` wrote, one that ships with the library, or one on the Hugging Face hub.

    **Arguments:**

    - `path`: a folder, one of [`bundled_names`][elt_zoo.generator.bundled_names], or `hf://owner/name@revision`, where
      the revision is a branch, a tag or a commit, and may be left out. The hub needs `pip install 'elt_zoo[hub]'`;
      downloads stay in its cache, and `HF_HUB_OFFLINE=1` forbids the network.
    - `family`: the config class of a family of your own.
    - `skeleton`: a model with the structure of the saved one, for one with layers or a head of your own. Its values are
      not used, so `equinox.filter_eval_shape` will do.
    - `dtype`: of the parameters, such as `jax.numpy.bfloat16`; default float32.
    - `sharding`: where the parameters go: a `jax.sharding.Sharding` for all of them, or a function of a parameter's
      name and shape that returns one; default the first device.

    **Returns:** the generator.

    **Raises:** `FileNotFoundError` if there is no such folder or name, or it cannot be downloaded; `ImportError`
    without the extra; [`WeightsError`][elt_zoo.storage.WeightsError] if a file is damaged or of a newer version, or if
    tensors are missing, unused or of another shape or dtype (all of them are named). Nothing is half-loaded.
    """
    folder = download_model(str(path)) if str(path).startswith(SCHEME) else Path(path)
    if not folder.exists() and str(path) in bundled_names():
        folder = _ASSETS / str(path)
    if not (folder / WEIGHTS).is_file():
        raise FileNotFoundError(
            f"No model at {str(path)!r}: expected a folder with {WEIGHTS}, or a bundled model, one of "
            f"{', '.join(bundled_names()) or '(none)'}."
        )
    description, tensors = read_folder(folder)
    try:
        config = config_from_dict(description["model"], family=family)
        settings = settings_from_dict(description["sampler"], config)
        tokenizer = abstract_tokenizer(description["tokenizer"])
        metadata = dict(description.get("metadata", {}))
        if description.get("own_model") and skeleton is None:
            raise ValueError(
                "the model has layers or a head of its author's, which no config builds; pass `skeleton=`, a model of "
                "the same structure"
            )
        if skeleton is None:
            skeleton = eqx.filter_eval_shape(config.build, key=jax.random.key(0))
    except (ArithmeticError, KeyError, TypeError, ValueError) as error:
        raise WeightsError(f"{folder / WEIGHTS} cannot be used: {error}") from error
    both = {"model": skeleton, "tokenizer": tokenizer}
    loaded = assemble(both, own_names(both), tensors, dtype=dtype, sharding=sharding)
    return Generator(loaded["model"], config, loaded["tokenizer"], settings, metadata)


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
