from collections.abc import Iterable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .._checks import checked
from ..tokenizers import AbstractTokenizer

_LEAST_ERROR = 1e-10


class TokenizerQuality(NamedTuple):
    """The quality of a tokenizer's reconstructions, over all measured examples."""

    psnr: float
    """Mean over examples of the peak signal-to-noise ratio in decibels."""
    usage: float
    """Share of the codes that were chosen at all."""
    perplexity: float
    """Of the chosen codes: 1 if always the same one, K if all K equally often."""
    examples: int


@checked
def psnr(pixels: Float[Array, "batch *shape"], output: Float[Array, "batch *shape"]) -> Float[Array, " batch"]:
    """−10 log₁₀ of the mean squared error of each example, in decibels and at most 100. Batched.

    **Arguments:** both in [0, 1]; `output` is clipped to that.
    """
    errors = jnp.square(jnp.clip(output, 0.0, 1.0) - pixels)
    return -10.0 * jnp.log10(jnp.maximum(jnp.mean(errors, axis=tuple(range(1, errors.ndim))), _LEAST_ERROR))


@checked
def perplexity(counts: Float[Array | np.ndarray, " codes"]) -> Float[Array | np.ndarray, ""]:
    """The exponential of the entropy of the codes, in the precision of the counts. **Arguments:** `counts`: how often
    each code was chosen, not all 0.
    """
    numpy = np if isinstance(counts, np.ndarray) else jnp
    shares = counts / numpy.sum(counts)
    return numpy.asarray(numpy.exp(-numpy.sum(shares * numpy.log(numpy.where(shares > 0.0, shares, 1.0)))))


def evaluate_tokenizer(tokenizer: AbstractTokenizer, batches: Iterable[Any]) -> TokenizerQuality:
    """Encodes and decodes examples and compares. Batched; sums are kept in float64.

    **Arguments:** `tokenizer`: any; `batches`: each with a field `examples`, pixels in [−1, 1].

    **Returns:** the quality over all of them. **Raises:** `ValueError` if there are none.
    """
    counts = np.zeros(tokenizer.codebook_size, np.float64)
    decibels, examples = 0.0, 0
    for batch in batches:
        ratios, chosen = _measure(tokenizer, jnp.asarray(batch.examples))
        decibels += float(np.sum(np.asarray(ratios, np.float64)))
        counts += np.asarray(chosen, np.float64)
        examples += len(ratios)
    if examples == 0:
        raise ValueError("`evaluate_tokenizer` got no batches. An iterator that was used before is empty.")
    return TokenizerQuality(
        psnr=decibels / examples,
        usage=float(np.mean(counts > 0.0)),
        perplexity=float(perplexity(counts)),
        examples=examples,
    )


@eqx.filter_jit
def _measure(tokenizer: AbstractTokenizer, pixels: Float[Array, "batch *shape"]) -> tuple[Array, Array]:
    ids = jax.vmap(tokenizer.encode)(pixels)
    output = jax.vmap(tokenizer.decode)(ids)
    return psnr((pixels + 1.0) / 2.0, (output + 1.0) / 2.0), jnp.bincount(
        jnp.ravel(ids), length=tokenizer.codebook_size
    )
