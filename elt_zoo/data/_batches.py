"""Types of examples. A batch has one more leading axis on every array than an example."""

import dataclasses
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float, Int, UInt8


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Images:
    """Images of one size as bytes 0 to 255, and their classes. They stay bytes until they are on the device, where
    [`to_pixels`][elt_zoo.data.to_pixels] converts them to floats.
    """

    images: UInt8[Array | np.ndarray, "*batch height width channels"]
    labels: Int[Array | np.ndarray, "*batch"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Clips:
    """Video clips of one size as bytes 0 to 255, and their classes; see [`to_pixels`][elt_zoo.data.to_pixels]."""

    clips: UInt8[Array | np.ndarray, "*batch frames height width channels"]
    labels: Int[Array | np.ndarray, "*batch"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Tokens:
    """Precomputed ids of a discrete tokenizer, in [0, K), and the classes of the images or clips."""

    ids: Int[Array | np.ndarray, "*batch_and_grid"]
    labels: Int[Array | np.ndarray, "*batch"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Latents:
    """Precomputed posteriors of an autoencoder, before its scaling, and the classes. Both moments are stored, so that
    [`sample_latents`][elt_zoo.data.sample_latents] can sample again in every epoch.
    """

    mean: Float[Array | np.ndarray, "*batch height width channels"]
    log_variance: Float[Array | np.ndarray, "*batch height width channels"]
    labels: Int[Array | np.ndarray, "*batch"]


class Batch(NamedTuple):
    """Examples of any shape, ready for a model, and their labels, with a leading batch axis."""

    examples: Any
    labels: Int[Any, " batch"]
