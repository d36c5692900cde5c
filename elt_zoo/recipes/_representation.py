import dataclasses
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from ..data import Batch, Latents, Tokens, sample_latents, to_pixels, to_tokens
from ..tokenizers import AbstractTokenizer, AutoencoderKL


@dataclasses.dataclass(frozen=True, kw_only=True)
class Representation:
    """How the batches of a source become what a model sees. Batched.

    **Fields:**

    - `encode`: runs a tokenizer or an autoencoder, before the training step.
    - `prepare`: the first thing in the step, `(batch, key) -> batch`: what is cheap, or sampled in every step.
    - `codebook_size`: the number of codes, for tokens.
    """

    encode: Callable[[Any], Any] | None = None
    prepare: Callable[[Any, jax.Array], Batch] | None = None
    codebook_size: int | None = None

    def __call__(self, batch: Any) -> Batch:
        """A batch of the source as the model sees it, on the device."""
        batch = batch if self.encode is None else self.encode(batch)
        batch = batch if self.prepare is None else self.prepare(batch, jax.random.key(0))
        return Batch(jnp.asarray(batch.examples), jnp.asarray(batch.labels))


def as_pixels() -> Representation:
    """For images and a model of pixels, or arrays in memory that a model takes as they are."""
    return Representation(prepare=lambda batch, _: batch if isinstance(batch, Batch) else to_pixels(batch))


def as_tokens(tokenizer: AbstractTokenizer | None, codebook_size: int) -> Representation:
    """For images, clips or precomputed ids, and a model of token ids.

    **Arguments:** `tokenizer`: may be missing for precomputed ids; `codebook_size`: the number of codes.
    """

    @eqx.filter_jit
    def run(tokenizer: AbstractTokenizer, batch: Any) -> Tokens:
        return Tokens(jax.vmap(tokenizer.encode)(to_pixels(batch).examples), jnp.asarray(batch.labels))

    def encode(batch: Any) -> Tokens:
        if isinstance(batch, Tokens):
            return batch
        assert tokenizer is not None
        return run(tokenizer, batch)

    return Representation(encode=encode, prepare=lambda batch, _: to_tokens(batch), codebook_size=codebook_size)


def as_latents(autoencoder: AutoencoderKL | None, scale: float) -> Representation:
    """For images or precomputed posteriors, and a model of latents, which are sampled from the posterior in every step.

    **Arguments:** `autoencoder`: may be missing for precomputed posteriors; `scale`: what latents are multiplied by.
    """

    @eqx.filter_jit
    def run(autoencoder: AutoencoderKL, batch: Any) -> Latents:
        mean, log_variance = jax.vmap(autoencoder.encode)(to_pixels(batch).examples)
        return Latents(mean, log_variance, jnp.asarray(batch.labels))

    def encode(batch: Any) -> Latents:
        if isinstance(batch, Latents):
            return batch
        assert autoencoder is not None
        return run(autoencoder, batch)

    return Representation(encode=encode, prepare=lambda batch, key: sample_latents(batch, scale=scale, key=key))


def representation_of(tokenizer: Any) -> Representation:
    """How images or clips become what a generator with this tokenizer was trained on."""
    if tokenizer is None:
        return as_pixels()
    if isinstance(tokenizer, AutoencoderKL):
        return as_latents(tokenizer, tokenizer.config.scaling_factor)
    return as_tokens(tokenizer, tokenizer.codebook_size)
