import abc

import equinox as eqx
from jaxtyping import Array, Float, Int


class AbstractTokenizer(eqx.Module):
    """Images to grids of discrete tokens and back, one example per call."""

    codebook_size: eqx.AbstractVar[int]
    """K; ids are 0 to K − 1."""
    grid: eqx.AbstractVar[tuple[int, ...]]
    """Tokens along each axis."""

    @abc.abstractmethod
    def encode(self, image: Float[Array, "*shape channels"]) -> Int[Array, "*grid"]:
        """**Arguments:** `image`: channels last, pixels in [−1, 1]. **Returns:** ids."""

    @abc.abstractmethod
    def decode(self, ids: Int[Array, "*grid"]) -> Float[Array, "*shape channels"]:
        """**Arguments:** `ids` in [0, K). **Returns:** the image, float32 in [−1, 1]."""


def check_shape(name: str, what: str, given: tuple[int, ...], expected: tuple[int, ...]) -> None:
    if given != expected:
        raise ValueError(
            f"`{name}` got {what} of shape {given} but works on {expected}. Pass one example at a time (`jax.vmap` for a batch)."
        )
