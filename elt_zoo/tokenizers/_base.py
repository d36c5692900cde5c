import abc

import equinox as eqx
from jaxtyping import Array, Float, Int

from .._checks import check_range


class AbstractTokenizer(eqx.Module):
    """Images or clips to grids of discrete tokens and back, one example per call."""

    shape: eqx.AbstractVar[tuple[int, ...]]
    """Of the images or clips: (frames,) height, width and channels."""

    @property
    @abc.abstractmethod
    def codebook_size(self) -> int:
        """K; ids are 0 to K − 1."""

    @property
    @abc.abstractmethod
    def grid(self) -> tuple[int, ...]:
        """Tokens along each axis."""

    @abc.abstractmethod
    def encode(self, image: Float[Array, "*shape channels"]) -> Int[Array, "*grid"]:
        """**Arguments:** `image`: channels last, pixels in [−1, 1]. **Returns:** ids."""

    @abc.abstractmethod
    def decode(self, ids: Int[Array, "*grid"]) -> Float[Array, "*shape channels"]:
        """**Arguments:** `ids` in [0, K), no masks. **Returns:** the image, float32 in [−1, 1]."""


def check_shape(name: str, what: str, given: tuple[int, ...], expected: tuple[int, ...]) -> None:
    if given != expected:
        raise ValueError(
            f"`{name}` got {what} of shape {given} but works on {expected}. Pass one example at a time (`jax.vmap` for "
            "a batch)."
        )


def check_ids(name: str, ids: Int[Array, "*grid"], codebook_size: int) -> None:
    """Refuses an id that is not a code, above all a mask left over from sampling."""
    check_range(
        ids,
        0,
        codebook_size - 1,
        f"`{name}` got an id outside the codebook, which has ids 0 to {codebook_size - 1}. The mask is not a code: "
        "decode only when every token has been drawn.",
    )
