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
from jaxtyping import PRNGKeyArray

from ..storage import (
    WEIGHTS,
    Shardings,
    WeightsError,
    assemble,
    from_json,
    named_arrays,
    own_names,
    read_folder,
    refuse_to_overwrite,
    write_folder,
)
from ._autoencoder_kl import AutoencoderKL, AutoencoderKLConfig
from ._base import AbstractTokenizer
from ._grey_levels import GreyLevels
from ._maskgit_vqgan import MaskGITVQGAN, VQGANConfig
from ._patch_codebook import PatchCodebook
from ._vq3d import VQ3D, VQ3DConfig

Tokenizer = AbstractTokenizer | AutoencoderKL


@dataclasses.dataclass(frozen=True, kw_only=True)
class _PatchCodebookConfig:
    """Sizes of a `PatchCodebook`."""

    shape: tuple[int, ...]
    patch_size: int
    codebook_size: int
    patch_frames: int = 1

    def __post_init__(self):
        if len(self.shape) not in (3, 4):
            raise ValueError(f"a `PatchCodebook` is of images or clips, with three or four axes, not of {self.shape}.")
        if min(*self.shape, self.patch_size, self.codebook_size, self.patch_frames) < 1:
            raise ValueError(f"the sizes of a `PatchCodebook` are at least one, not {self}.")

    def build(self, *, key: PRNGKeyArray) -> PatchCodebook:
        frames = self.patch_frames if len(self.shape) == 4 else 1
        codes = jnp.zeros((self.codebook_size, frames * self.patch_size**2 * self.shape[-1]), jnp.float32)
        return PatchCodebook(codes, self.shape, self.patch_size, patch_frames=self.patch_frames)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _GreyLevelsConfig:
    """Sizes of `GreyLevels`."""

    shape: tuple[int, int, int]
    levels: int

    def __post_init__(self):
        if min(self.shape) < 1:
            raise ValueError(f"the sizes of `GreyLevels` are at least one, not {self}.")

    def build(self, *, key: PRNGKeyArray) -> GreyLevels:
        return GreyLevels(self.shape, self.levels)


# What a file calls a tokenizer, and the config that builds it.
_CONFIGS = {
    "patch_codebook": _PatchCodebookConfig,
    "grey_levels": _GreyLevelsConfig,
    "maskgit_vqgan": VQGANConfig,
    "vq3d": VQ3DConfig,
    "autoencoder_kl": AutoencoderKLConfig,
}


def save_tokenizer(
    folder: str | os.PathLike,
    tokenizer: Tokenizer,
    *,
    metadata: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> Path:
    """Writes a tokenizer or autoencoder to a folder, as [`save`][elt_zoo.save] writes models. A folder that is
    overwritten is replaced whole or not at all.

    **Arguments:** `folder`: created if missing; `tokenizer`: any of this library's; `metadata`, `overwrite`: as for
    `save`.

    **Returns:** the folder. **Raises:** `FileExistsError` if it holds a model, `TypeError` for a tokenizer of another
    kind, `OSError` in one line if it cannot be written. Then nothing is written.
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
    damaged, from a newer version, does not fit, or holds NaN; `ValueError` if `dtype` is no floating-point type.
    """
    folder = Path(path)
    if not (folder / WEIGHTS).is_file():
        raise FileNotFoundError(f"No tokenizer at {str(path)!r}: expected a folder with {WEIGHTS}.")
    description, tensors = read_folder(folder)
    if "model" in description:
        raise WeightsError(f"{folder} holds a model, not a tokenizer alone: read it with `load`.")
    try:
        tokenizer = abstract_tokenizer(description.get("tokenizer"))
    except ValueError as error:
        raise WeightsError(f"{folder / WEIGHTS} does not describe a tokenizer: {error}") from error
    if tokenizer is None:
        raise WeightsError(f"{folder / WEIGHTS} does not describe a tokenizer.")
    tree = {"tokenizer": tokenizer}
    return assemble(tree, own_names(tree), tensors, dtype=dtype, sharding=sharding)["tokenizer"]


def describe_tokenizer(tokenizer: Tokenizer) -> dict[str, Any]:
    """What a file says of a tokenizer, of JSON's types.

    **Raises:** `TypeError` for a tokenizer of another kind than this library's.
    """
    match tokenizer:
        case PatchCodebook():
            config = _PatchCodebookConfig(
                shape=tokenizer.shape,
                patch_size=tokenizer.patch_size,
                codebook_size=tokenizer.codebook_size,
                patch_frames=tokenizer.patch_frames,
            )
        case GreyLevels():
            config = _GreyLevelsConfig(shape=tokenizer.shape, levels=tokenizer.levels)
        case MaskGITVQGAN() | VQ3D() | AutoencoderKL():
            config = tokenizer.config
        case _:
            raise TypeError(
                f"A tokenizer of type {type(tokenizer).__name__} cannot be described in a file; known are "
                "PatchCodebook, GreyLevels, MaskGITVQGAN, VQ3D and AutoencoderKL. Save the model with "
                "`tokenizer=None` and keep the tokenizer yourself."
            )
    (kind,) = [kind for kind, family in _CONFIGS.items() if isinstance(config, family)]
    return {"kind": kind} | dataclasses.asdict(config)


def abstract_tokenizer(description: Any) -> Any:
    """The tokenizer that a file describes, with abstract arrays; `None` for `None`.

    **Raises:** `ValueError` if the description is damaged or of a kind that is not known. It is checked in full before
    anything is built.
    """
    if description is None:
        return None
    if not isinstance(description, Mapping):
        raise ValueError("the description of a tokenizer is a table.")
    fields = dict(description)
    kind = fields.pop("kind", None)
    if not isinstance(kind, str) or kind not in _CONFIGS:
        raise ValueError(f"unknown tokenizer {str(kind)[:80]!r}; known are {', '.join(_CONFIGS)}.")
    config: Any = from_json(_CONFIGS[kind], fields)
    try:
        return eqx.filter_eval_shape(config.build, key=jax.random.key(0))
    except (ValueError, TypeError, ArithmeticError) as error:
        raise ValueError(f"no {kind} has the sizes of {config}: {error}") from error
