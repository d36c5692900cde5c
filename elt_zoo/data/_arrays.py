from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from ._batches import Clips, Images, Latents, Tokens
from ._source import AbstractSource, Visit


class Batch(NamedTuple):
    """Examples as a model wants them, of any shape, and their labels, with a leading batch axis."""

    examples: Any
    labels: Int[Any, " batch"]


class ArraySource(AbstractSource):
    """Arrays in memory as a source of [`Batch`][elt_zoo.data.Batch] entries without the batch axis."""

    batched = True
    in_memory = True

    def __init__(
        self,
        examples: np.ndarray,
        labels: Int[np.ndarray, " examples"],
        class_names: tuple[str, ...] | None = None,
    ):
        """**Arguments:** `examples`, `labels`: one of each; `class_names`: by default the numbers up to the largest
        label.

        **Raises:** `ValueError` if there is nothing, or not one label per example.
        """
        if len(examples) == 0 or len(examples) != len(labels):
            raise ValueError(
                f"`ArraySource` got {len(examples)} examples and {len(labels)} labels; it needs one label each."
            )
        self._examples = examples
        self._labels = labels
        self.class_names = tuple(map(str, range(int(labels.max()) + 1))) if class_names is None else class_names

    def __len__(self) -> int:
        return len(self._labels)

    def read(self, visit: Visit) -> Batch:
        """One entry."""
        return Batch(self._examples[visit.index], self._labels[visit.index])

    def read_batch(self, visits: list[Visit]) -> Batch:
        """Several entries, stacked."""
        rows = [visit.index for visit in visits]
        return Batch(self._examples[rows], self._labels[rows])

    def name(self, index: int) -> str:
        """Its number."""
        return f"example {index}"


def to_pixels(batch: Images | Clips) -> Batch:
    """Bytes 0 to 255 → float32 pixels in [−1, 1], where 127.5 is 0. Runs on the device, so that what travels there is a
    quarter of the size.
    """
    values = batch.images if isinstance(batch, Images) else batch.clips
    return Batch(jnp.asarray(values).astype(jnp.float32) / 127.5 - 1.0, batch.labels)


def from_pixels(pixels: Float[Array | np.ndarray, "*shape"]) -> np.ndarray:
    """Pixels in [−1, 1], clipped to that range → bytes 0 to 255, rounded: the inverse of `to_pixels`."""
    return np.clip(np.rint(127.5 * np.asarray(pixels, np.float32) + 127.5), 0.0, 255.0).astype(np.uint8)


def to_tokens(batch: Tokens) -> Batch:
    """Ids as the int32 that heads and losses take."""
    return Batch(jnp.asarray(batch.ids).astype(jnp.int32), batch.labels)


def sample_latents(batch: Latents, *, scale: float, key: PRNGKeyArray) -> Batch:
    r"""Draws $s \cdot (\mu + \sigma \epsilon)$ from the stored posteriors, with new $\epsilon$ for each key.

    **Arguments:** `batch`: latents; `scale`: s, 0.18215 for Stable Diffusion's autoencoder; `key`: PRNG key.
    """
    mean, log_variance = (jnp.asarray(part).astype(jnp.float32) for part in (batch.mean, batch.log_variance))
    noise = jax.random.normal(key, mean.shape, jnp.float32)
    return Batch(scale * (mean + jnp.exp(0.5 * log_variance) * noise), batch.labels)
