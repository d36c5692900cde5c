import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray


def categorical(
    key: PRNGKeyArray, logits: Float[Array, "batch tokens codebook"], temperature: Float[Array, ""]
) -> tuple[Int[Array, "batch tokens"], Float[Array, "batch tokens"]]:
    """Draws from softmax(logits / temperature) along the last axis, in float32, with one uniform number per token.

    `jax.random.categorical` draws a Gumbel number per code. For a million logits that takes 26 ms on a CPU
    core, longer than a small network's forward pass, and this half a millisecond. Here the distribution function is
    inverted, in two levels: first a block of about √codebook codes, then a code within it. A code of probability zero
    is never drawn. Where there is no distribution (a logit is NaN or +∞, or all are −∞) the result is −1.

    **Returns:** the codes, and the log-probability of each at temperature 1.
    """
    batch, tokens, codebook = logits.shape
    size = math.isqrt(codebook - 1) + 1
    num_blocks = -(-codebook // size)
    # Into blocks first: XLA fuses what follows with the sums, but not across a change of shape between them.
    padding = ((0, 0), (0, 0), (0, num_blocks * size - codebook))
    blocks = jnp.reshape(jnp.pad(logits, padding, constant_values=-jnp.inf), (batch, tokens, num_blocks, size))
    # Each token's largest logit, which both temperatures share: division by a positive number keeps the order.
    largest = jnp.max(blocks, axis=(2, 3), keepdims=True)

    def likelihood(some: Float[Array, "batch tokens some size"]) -> Float[Array, "batch tokens some size"]:
        return jnp.exp(some / temperature - largest / temperature)

    weights = jnp.sum(likelihood(blocks), axis=3)
    block, rest = _invert(weights, jax.random.uniform(key, (batch, tokens), jnp.float32))
    # The block's probabilities once more, instead of writing all of them to memory.
    inside = jnp.take_along_axis(blocks, block[:, :, None, None], axis=2)
    within, _ = _invert(likelihood(inside)[:, :, 0], rest)
    chosen = jnp.take_along_axis(inside[:, :, 0], within[:, :, None], axis=2)[:, :, 0]
    largest = largest[:, :, 0, 0]
    # Said in full: a compiled maximum may pass over NaN, and a comparison with it may come out either way.
    exists = jnp.isfinite(largest) & jnp.isfinite(jnp.sum(weights, axis=2))
    log_normaliser = jnp.log(jnp.sum(jnp.exp(blocks - largest[:, :, None, None]), axis=(2, 3)))
    return jnp.where(exists, block * size + within, -1), chosen - largest - log_normaliser


def _invert(
    weights: Float[Array, "batch tokens choices"], uniform: Float[Array, "batch tokens"]
) -> tuple[Int[Array, "batch tokens"], Float[Array, "batch tokens"]]:
    """The choice that a uniform number falls on, and how far into it the number lies, uniform in [0, 1) again."""
    choices = weights.shape[2]
    cumulative = jnp.cumsum(weights, axis=2)
    target = uniform * cumulative[:, :, -1]
    # The second condition, and the largest weight to fall back on: a parallel sum may round its way past a zero.
    reached = (cumulative > target[:, :, None]) & (weights > 0)
    is_largest = weights == jnp.max(weights, axis=2, keepdims=True)
    # The first choice reached, else the first of the largest: one minimum, which is faster than two `argmax`.
    index = jnp.broadcast_to(jnp.arange(choices, dtype=jnp.int32), weights.shape)
    choice = jnp.min(jnp.where(reached, index, jnp.where(is_largest, choices + index, 2 * choices)), axis=2) % choices
    weight = jnp.take_along_axis(weights, choice[:, :, None], axis=2)[:, :, 0]
    before = jnp.take_along_axis(cumulative, choice[:, :, None], axis=2)[:, :, 0] - weight
    return choice, jnp.clip((target - before) / weight, 0.0, 1.0 - 2**-23)
