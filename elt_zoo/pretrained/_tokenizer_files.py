from typing import Any

import equinox as eqx
import jax.numpy as jnp

from ..tokenizers import AbstractTokenizer, GreyLevels, PatchCodebook


def describe_tokenizer(tokenizer: AbstractTokenizer) -> dict[str, Any]:
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


def abstract_tokenizer(description: dict[str, Any] | None) -> AbstractTokenizer | None:
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
