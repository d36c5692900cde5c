"""Conversions between stored bytes, ids and posteriors and the arrays that models take."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from ._batches import Batch, Clips, Images, Latents, Tokens


def to_pixels(batch: Images | Clips) -> Batch:
    """Converts bytes 0 to 255 to float32 pixels in [−1, 1]. It runs on the device, so that only bytes travel there."""
    values = batch.images if isinstance(batch, Images) else batch.clips
    return Batch(jnp.asarray(values).astype(jnp.float32) / 127.5 - 1.0, batch.labels)


def from_pixels(pixels: Float[Array | np.ndarray, "*shape"]) -> np.ndarray:
    """Clips pixels to [−1, 1] and rounds them to bytes 0 to 255: the inverse of `to_pixels`."""
    return np.clip(np.rint(127.5 * np.asarray(pixels, np.float32) + 127.5), 0.0, 255.0).astype(np.uint8)


def to_tokens(batch: Tokens) -> Batch:
    """Converts ids to the int32 that heads and losses take."""
    return Batch(jnp.asarray(batch.ids).astype(jnp.int32), batch.labels)


def sample_latents(batch: Latents, *, scale: float, key: PRNGKeyArray) -> Batch:
    r"""Samples $s \cdot (\mu + \sigma \epsilon)$ from the stored posteriors.

    **Arguments:** `batch`: latents; `scale`: s, 0.18215 for Stable Diffusion's autoencoder; `key`: decides ε.
    """
    mean, log_variance = (jnp.asarray(part).astype(jnp.float32) for part in (batch.mean, batch.log_variance))
    noise = jax.random.normal(key, mean.shape, jnp.float32)
    return Batch(scale * (mean + jnp.exp(0.5 * log_variance) * noise), batch.labels)
