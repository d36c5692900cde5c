import abc
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from .._checks import checked
from ._mask_schedules import AbstractMaskSchedule
from ._noise_schedules import AbstractNoiseSchedule
from ._prediction import Prediction
from ._targets import DiffusionTarget, MaskedTarget


class Corrupted(NamedTuple):
    """A training batch after corruption: the model's inputs, the target, and the weight of each example."""

    inputs: tuple[PyTree[Array], ...]
    target: PyTree[Array]
    weight: Float[Array, " batch"]
    """The batch loss is the sum of the examples' losses over the sum of their weights."""


class AbstractCorruption(eqx.Module):
    """Turns clean examples into inputs and targets. It works on batches, because it spreads times evenly over one."""

    @abc.abstractmethod
    def __call__(self, examples: Any, labels: Int[Array, " batch"], *, key: PRNGKeyArray) -> Corrupted:
        """**Arguments:** clean `examples` and their `labels`, with a batch axis; `key`. **Returns:** the corrupted
        batch.
        """


class MaskedCorruption(AbstractCorruption):
    """Masks a random share of each example's tokens (MaskGIT, 2202.04200, section 3.2). Batched.

    A ratio r ~ U[0, 1) is sampled per example, spread evenly over the batch, and ⌈γ(r)·tokens⌉ positions are masked, at
    least one.
    """

    schedule: AbstractMaskSchedule
    mask_id: int = eqx.field(static=True)
    null_label: int = eqx.field(static=True)
    label_drop: float = eqx.field(static=True)

    def __init__(self, schedule: AbstractMaskSchedule, *, mask_id: int, null_label: int, label_drop: float = 0.1):
        """**Arguments:**

        - `schedule`: γ, the share of masked tokens.
        - `mask_id`, `null_label`: the head's ids for "masked" and "no class".
        - `label_drop`: share of examples that lose their label, for classifier-free guidance, in [0, 1].
        """
        self.schedule = schedule
        self.mask_id = mask_id
        self.null_label = null_label
        self.label_drop = _checked_label_drop("MaskedCorruption", label_drop)

    @checked
    def __call__(
        self, examples: Int[Array, "batch *grid"], labels: Int[Array, " batch"], *, key: PRNGKeyArray
    ) -> Corrupted:
        """**Arguments:** `examples`: token ids in [0, codebook); `labels`; `key`.

        **Returns:** inputs (masked ids, label), a [`MaskedTarget`][elt_zoo.corruption.MaskedTarget] and the number of
        masked positions as weight.
        """
        ratio_key, order_key, drop_key = jax.random.split(key, 3)
        batch = examples.shape[0]
        num_tokens = examples[0].size
        share = jax.vmap(self.schedule)(stratified(ratio_key, batch))
        count = jnp.clip(jnp.ceil(share * num_tokens), 1, num_tokens)
        # The ranks of random numbers are a random permutation: masking the low ranks masks exactly `count` positions.
        ranks = jnp.argsort(jnp.argsort(jax.random.uniform(order_key, (batch, num_tokens)), axis=1), axis=1)
        mask = jnp.reshape(ranks < count.astype(ranks.dtype)[:, None], examples.shape)
        ids = jnp.where(mask, jnp.asarray(self.mask_id, examples.dtype), examples)
        labels = drop_labels(labels, self.label_drop, self.null_label, key=drop_key)
        return Corrupted((ids, labels), MaskedTarget(examples, mask), count.astype(jnp.float32))


class DiffusionCorruption(AbstractCorruption):
    """Adds Gaussian noise: x_t = α_t·x0 + σ_t·ε at a random time (2006.11239). Batched.

    Times are uniform in [0, 1) for each example and spread evenly over the batch, which lowers the variance of the loss
    (2107.00630, appendix I.1).
    """

    schedule: AbstractNoiseSchedule
    prediction: Prediction = eqx.field(static=True)
    null_label: int = eqx.field(static=True)
    label_drop: float = eqx.field(static=True)

    def __init__(
        self,
        schedule: AbstractNoiseSchedule,
        *,
        prediction: Prediction,
        null_label: int,
        label_drop: float = 0.1,
    ):
        """**Arguments:**

        - `schedule`: the noise schedule.
        - `prediction`: what the network predicts (`model.head.prediction`).
        - `null_label`: the head's label for "no class".
        - `label_drop`: share of examples that lose their label, in [0, 1].
        """
        self.schedule = schedule
        self.prediction = Prediction(prediction)
        self.null_label = null_label
        self.label_drop = _checked_label_drop("DiffusionCorruption", label_drop)

    @checked
    def __call__(
        self, examples: Float[Array, "batch *shape"], labels: Int[Array, " batch"], *, key: PRNGKeyArray
    ) -> Corrupted:
        """**Arguments:** `examples`: clean arrays of about unit scale; `labels`; `key`.

        **Returns:** inputs (x_t, time, label), a [`DiffusionTarget`][elt_zoo.corruption.DiffusionTarget] and weights of
        1.
        """
        time_key, noise_key, drop_key = jax.random.split(key, 3)
        batch = examples.shape[0]
        time = stratified(time_key, batch)
        epsilon = jax.random.normal(noise_key, examples.shape, jnp.float32)

        def corrupt(x0, epsilon, time):
            alpha, sigma = self.schedule.alpha_sigma(time)
            value = self.prediction.target(x0, epsilon, alpha, sigma)
            target = DiffusionTarget(value, self.schedule.log_snr(time), self.schedule.log_snr_rate(time))
            return alpha * x0 + sigma * epsilon, target

        x_t, target = jax.vmap(corrupt)(examples.astype(jnp.float32), epsilon, time)
        labels = drop_labels(labels, self.label_drop, self.null_label, key=drop_key)
        return Corrupted((x_t, time, labels), target, jnp.ones(batch, jnp.float32))


def stratified(key: PRNGKeyArray, batch: int) -> Float[Array, " batch"]:
    """Numbers that are each uniform in [0, 1) and together evenly spread: (i + u) / batch, in random order, one u for
    all.
    """
    offset_key, order_key = jax.random.split(key)
    grid = (jnp.arange(batch, dtype=jnp.float32) + jax.random.uniform(offset_key)) / batch
    return jax.random.permutation(order_key, grid)


def drop_labels(
    labels: Int[Array, " batch"], rate: float, null_label: int, *, key: PRNGKeyArray
) -> Int[Array, " batch"]:
    """Replaces each label by the null label with probability `rate` (classifier-free guidance, 2207.12598)."""
    return jnp.where(jax.random.bernoulli(key, rate, labels.shape), jnp.asarray(null_label, labels.dtype), labels)


def _checked_label_drop(name: str, rate: float) -> float:
    if not 0.0 <= rate <= 1.0:
        raise ValueError(f"`{name}(label_drop={rate})` must be in [0, 1].")
    return rate
