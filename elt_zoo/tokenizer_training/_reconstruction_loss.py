import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._checks import checked

Features = Callable[[Float[Array, "height width 3"]], Sequence[Float[Array, "rows columns channels"]]]
"""Pixels in [0, 1] of one image → feature maps of a fixed network."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReconstructionLoss:
    """How far reconstructions are from their originals, all pixels in [0, 1].

    **Fields:**

    - `l1`, `l2`: weights of the mean absolute and the mean squared error of pixels. MAGVIT takes the second.
    - `perceptual`: weight of the [`perceptual_distance`][elt_zoo.tokenizer_training.perceptual_distance].
    - `features`: the network for it, such as `lambda image: inception.activations(255.0 * image)` with
      [`load_inception`][elt_zoo.pretrained.load_inception].

    **Raises:** `ValueError` for weights below 0, all 0, or a perceptual term without features.
    """

    l1: float = 0.0
    l2: float = 1.0
    perceptual: float = 0.0
    features: Features | None = None

    def __post_init__(self):
        weights = (self.l1, self.l2, self.perceptual)
        if min(weights) < 0.0 or max(weights) == 0.0 or (self.perceptual > 0.0 and self.features is None):
            raise ValueError(
                f"`ReconstructionLoss(l1={self.l1}, l2={self.l2}, perceptual={self.perceptual})`: weights must be at "
                "least 0 and not all of them 0, and a perceptual term needs `features`."
            )

    @checked
    def __call__(
        self, pixels: Float[Array, "batch *grid 3"], output: Float[Array, "batch *grid 3"]
    ) -> dict[str, Float[Array, ""]]:
        """The weighted terms by name, those of weight 0 left out. Batched."""
        terms = {}
        if self.l1 > 0.0:
            terms["l1"] = self.l1 * jnp.mean(jnp.abs(output - pixels))
        if self.l2 > 0.0:
            terms["l2"] = self.l2 * jnp.mean(jnp.square(output - pixels))
        features = self.features
        if features is not None and self.perceptual > 0.0:
            distance = jax.vmap(lambda a, b: perceptual_distance(features, a, b))(output, pixels)
            terms["perceptual"] = self.perceptual * jnp.mean(distance)
        return terms


@checked
def perceptual_distance(
    features: Features, first: Float[Array, "*grid 3"], second: Float[Array, "*grid 3"]
) -> Float[Array, ""]:
    """LPIPS (1801.03924) without its learned weights: feature vectors are scaled to length one, and their squared
    distances are averaged over positions and then over the maps.

    **Arguments:** `features`: of one image; `first`, `second`: an image each, or a clip each, whose frames are compared
    one by one.
    """
    frames = [jnp.reshape(pixels, (-1, *pixels.shape[-3:])) for pixels in (first, second)]

    def one(a, b):
        return jnp.stack([_map_distance(p, q) for p, q in zip(features(a), features(b), strict=True)])

    return jnp.mean(jax.vmap(one)(*frames))


def _map_distance(
    a: Float[Array, "rows columns channels"], b: Float[Array, "rows columns channels"]
) -> Float[Array, ""]:
    return jnp.mean(jnp.sum(jnp.square(_unit(a) - _unit(b)), axis=-1))


def _unit(x: Float[Array, "rows columns channels"]) -> Float[Array, "rows columns channels"]:
    x = x.astype(jnp.float32)
    # Under the root, where it also keeps the gradient of a vector of zeros finite.
    return x * jax.lax.rsqrt(jnp.sum(jnp.square(x), axis=-1, keepdims=True) + 1e-10)
