"""What is trained on what: a preset fitted to the data, and the parts that its family needs."""

import dataclasses
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from samplers import SamplerSettings, make_sampler

from elt_zoo.corruption import (
    AbstractCorruption,
    CosineMaskSchedule,
    DiffusionCorruption,
    MaskedCorruption,
    ShiftedCosineSchedule,
)
from elt_zoo.data import AbstractSource, Batch, Latents, Tokens, sample_latents, to_pixels, to_tokens
from elt_zoo.families import DiTConfig, MaskGITConfig, ModelConfig
from elt_zoo.objectives import MaskedCrossEntropy, SigmoidWeightedMSE
from elt_zoo.sampling import DiffusionSampler, MaskedSampler
from elt_zoo.tokenizers import AbstractTokenizer, AutoencoderKL


@dataclasses.dataclass(frozen=True, kw_only=True)
class Representation:
    """How the batches of a source become what a model sees, and how samples become pixels. All of it batched."""

    encode: Callable[[Any], Any] | None = None
    """Runs a tokenizer or autoencoder, before the training step."""
    prepare: Callable[[Any, jax.Array], Batch] | None = None
    """The first thing in the step: what is cheap, or drawn anew each time."""
    decode: Callable[[jax.Array], jax.Array] | None = None
    """Samples → pixels in [−1, 1]; none for precomputed data without its tokenizer."""
    codebook_size: int | None = None

    def __call__(self, batch: Any) -> Batch:
        """A batch of the source as the model sees it, on the device."""
        batch = batch if self.encode is None else self.encode(batch)
        batch = batch if self.prepare is None else self.prepare(batch, jax.random.key(0))
        return Batch(jnp.asarray(batch.examples), jnp.asarray(batch.labels))


def as_pixels() -> Representation:
    """Bytes, and a model of pixels."""
    return Representation(prepare=lambda batch, _: to_pixels(batch), decode=lambda samples: samples)


def as_tokens(tokenizer: AbstractTokenizer | None, codebook_size: int) -> Representation:
    """Bytes or precomputed ids, and a model of ids."""

    @eqx.filter_jit
    def run(tokenizer: AbstractTokenizer, batch: Any) -> Tokens:
        return Tokens(jax.vmap(tokenizer.encode)(to_pixels(batch).examples), jnp.asarray(batch.labels))

    def encode(batch: Any) -> Tokens:
        if isinstance(batch, Tokens):
            return batch
        assert tokenizer is not None
        return run(tokenizer, batch)

    return Representation(
        encode=encode,
        prepare=lambda batch, _: to_tokens(batch),
        decode=None if tokenizer is None else jax.vmap(tokenizer.decode),
        codebook_size=codebook_size,
    )


def as_latents(autoencoder: AutoencoderKL | None, scale: float) -> Representation:
    """Bytes or precomputed posteriors, and a model of latents, drawn from them anew in every step."""

    @eqx.filter_jit
    def run(autoencoder: AutoencoderKL, batch: Any) -> Latents:
        mean, log_variance = jax.vmap(autoencoder.encode)(to_pixels(batch).examples)
        return Latents(mean, log_variance, jnp.asarray(batch.labels))

    def encode(batch: Any) -> Latents:
        if isinstance(batch, Latents):
            return batch
        assert autoencoder is not None
        return run(autoencoder, batch)

    return Representation(
        encode=encode,
        prepare=lambda batch, key: sample_latents(batch, scale=scale, key=key),
        decode=None if autoencoder is None else jax.vmap(autoencoder.decode),
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """A family's parts, put together for one data set."""

    model: ModelConfig
    settings: SamplerSettings
    sampler: MaskedSampler | DiffusionSampler
    train: AbstractSource
    heldout: Batch
    representation: Representation
    corruption: Callable[[float], AbstractCorruption]
    """Label-drop rate → corruption."""
    loss: MaskedCrossEntropy | SigmoidWeightedMSE
    tokenizer: AbstractTokenizer | AutoencoderKL | None = None


def make_task(
    preset: ModelConfig,
    train: AbstractSource,
    heldout: Any,
    representation: Representation,
    *,
    settings: SamplerSettings,
    tokenizer: AbstractTokenizer | AutoencoderKL | None = None,
    digits: bool = False,
    loss_bias: float = 0.0,
    label_smoothing: float = 0.0,
) -> Task:
    """The parts for training `preset`, with the classes and sizes of the data, on `train`.

    `heldout` is a batch as the source gives it, and `representation` says what becomes of those.
    """
    batch = representation(heldout)
    shape, classes = batch.examples.shape[1:], train.num_classes
    model: ModelConfig
    if isinstance(preset, DiTConfig):
        model = dataclasses.replace(preset, num_classes=classes, shape=shape)
        schedule = ShiftedCosineSchedule(settings.noise_shift)
        prediction = model.prediction
        loss = SigmoidWeightedMSE(prediction, loss_bias)

        def corruption(drop: float) -> AbstractCorruption:
            return DiffusionCorruption(schedule, prediction=prediction, null_label=classes, label_drop=drop)
    else:
        assert isinstance(preset, MaskGITConfig) and representation.codebook_size is not None
        codes = representation.codebook_size
        model = dataclasses.replace(preset, num_classes=classes, grid=shape, codebook_size=codes)
        loss = MaskedCrossEntropy(label_smoothing)

        def corruption(drop: float) -> AbstractCorruption:
            return MaskedCorruption(CosineMaskSchedule(), mask_id=codes, null_label=classes, label_drop=drop)

    settings = settings.resolved(model, digits=digits)
    return Task(
        model=model,
        settings=settings,
        sampler=make_sampler(model, settings),
        train=train,
        heldout=batch,
        representation=representation,
        corruption=corruption,
        loss=loss,
        tokenizer=tokenizer,
    )
