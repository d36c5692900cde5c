import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

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
from ._autoencoder_kl import AutoencoderKL, AutoencoderKLConfig
from ._base import AbstractTokenizer
from ._blocks import Shortcut
from ._grey_levels import GreyLevels
from ._maskgit_vqgan import MaskGITVQGAN, VQGANConfig
from ._patch_codebook import PatchCodebook
from ._vq3d import VQ3D, VQ3DConfig

Tokenizer = AbstractTokenizer | AutoencoderKL
# What a file calls the tokenizers that a config describes.
_CONFIGS = {"maskgit_vqgan": VQGANConfig, "vq3d": VQ3DConfig, "autoencoder_kl": AutoencoderKLConfig}


def save_tokenizer(
    folder: str | os.PathLike,
    tokenizer: Tokenizer,
    *,
    metadata: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> Path:
    """Writes a tokenizer or autoencoder to a folder of its own, as [`save`][elt_zoo.save] does models.

    **Arguments:** `folder`: created if missing; `tokenizer`: any of this library's; `metadata`, `overwrite`: as for
    `save`.

    **Returns:** the folder. **Raises:** `FileExistsError` if it holds a model, `TypeError` for a tokenizer of another
    kind. Then nothing is written.
    """
    folder = Path(folder)
    if not overwrite:
        refuse_to_overwrite(folder)
    description = {"tokenizer": describe_tokenizer(tokenizer), "metadata": dict(metadata or {})}
    tensors = {f"tokenizer.{name}": np.asarray(leaf) for name, leaf in named_arrays(tokenizer).items()}
    write_folder(folder, tensors, description)
    return folder


def load_tokenizer(
    path: str | os.PathLike, *, dtype: DTypeLike | None = None, sharding: Shardings | None = None
) -> Tokenizer:
    """Reads a tokenizer that `save_tokenizer` wrote.

    **Arguments:** `path`: a folder; `dtype`, `sharding`: as for [`load`][elt_zoo.load].

    **Returns:** the tokenizer.

    **Raises:** `FileNotFoundError` if there is none; [`WeightsError`][elt_zoo.storage.WeightsError] if a file is
    damaged, from a newer version, or does not fit.
    """
    folder = Path(path)
    if not (folder / CONFIG).is_file() or not (folder / WEIGHTS).is_file():
        raise FileNotFoundError(f"No tokenizer at {str(path)!r}: expected a folder with {WEIGHTS} and {CONFIG}.")
    description = read_description(folder)
    try:
        tokenizer = abstract_tokenizer(description["tokenizer"])
    except (KeyError, TypeError, ValueError) as error:
        raise WeightsError(f"{folder / CONFIG} does not describe a tokenizer: {error!r}") from error
    if tokenizer is None or "model" in description:
        raise WeightsError(f"{folder} holds a model, not a tokenizer alone: read it with `load`.")
    tree = {"tokenizer": tokenizer}
    file = read_tensors(folder / WEIGHTS)
    return assemble(tree, own_names(tree), file, dtype=dtype, sharding=sharding)["tokenizer"]


def describe_tokenizer(tokenizer: Tokenizer) -> dict[str, Any]:
    """What a config.json says of a tokenizer."""
    match tokenizer:
        case PatchCodebook():
            return {"kind": "patch_codebook", "shape": tokenizer.shape, "patch_size": tokenizer.patch_size} | {
                "codebook_size": tokenizer.codebook_size
            }
        case GreyLevels():
            return {"kind": "grey_levels", "shape": tokenizer.shape, "levels": tokenizer.levels}
        case MaskGITVQGAN() | VQ3D() | AutoencoderKL():
            (kind,) = [kind for kind, family in _CONFIGS.items() if isinstance(tokenizer.config, family)]
            return {"kind": kind} | dataclasses.asdict(tokenizer.config)
    raise TypeError(
        f"A tokenizer of type {type(tokenizer).__name__} cannot be described in a file; known are PatchCodebook, "
        "GreyLevels, MaskGITVQGAN, VQ3D and AutoencoderKL. Save the model with `tokenizer=None` and keep the tokenizer "
        "yourself."
    )


def abstract_tokenizer(description: dict[str, Any] | None) -> Any:
    """The tokenizer that a config.json describes, with abstract arrays."""
    if description is None:
        return None
    fields: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in description.items()
    }
    kind = fields.pop("kind")
    if kind in _CONFIGS:
        if "shortcut" in fields:
            fields["shortcut"] = Shortcut(fields["shortcut"])
        config = _CONFIGS[kind](**fields)
        return eqx.filter_eval_shape(config.build, key=jax.random.key(0))
    match kind:
        case "patch_codebook":
            shape, size = fields["shape"], fields["patch_size"]
            codes = (fields["codebook_size"], size * size * shape[-1])
            return eqx.filter_eval_shape(lambda: PatchCodebook(jnp.zeros(codes, jnp.float32), shape, size))
        case "grey_levels":
            return GreyLevels(fields["shape"], fields["levels"])
    raise ValueError(f"unknown tokenizer {kind!r}")
