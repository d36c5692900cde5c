import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from .._checks import checked
from ._base import AbstractTokenizer, check_ids, check_shape


class GreyLevels(AbstractTokenizer):
    """Every pixel of a one-channel image is a token: its grey level, of `levels` even ones over [−1, 1].

    The digits have 17 levels, so `GreyLevels((8, 8, 1), 17)` loses nothing.
    """

    shape: tuple[int, int, int] = eqx.field(static=True)
    levels: int = eqx.field(static=True)

    def __init__(self, shape: tuple[int, int, int], levels: int):
        """**Arguments:** `shape`: height, width and 1 of the images; `levels`: grey levels, and codes.

        **Raises:** `ValueError` for another number of channels or fewer than two levels.
        """
        if len(shape) != 3 or shape[2] != 1 or levels < 2:
            raise ValueError(f"`GreyLevels(shape={shape}, levels={levels})` needs one channel and two levels or more.")
        self.shape = shape
        self.levels = levels

    @property
    def codebook_size(self) -> int:
        """K, the number of levels."""
        return self.levels

    @property
    def grid(self) -> tuple[int, ...]:
        """Height and width in pixels."""
        return self.shape[:2]

    @checked
    def encode(self, image: Float[Array, "height width 1"]) -> Int[Array, "height width"]:
        """**Arguments:** `image`: pixels in [−1, 1]. **Returns:** the nearest levels. **Raises:** `ValueError` for
        another shape.
        """
        check_shape("GreyLevels.encode", "an image", image.shape, self.shape)
        levels = jnp.rint((image[..., 0] + 1.0) * (0.5 * (self.levels - 1)))
        return jnp.clip(levels, 0, self.levels - 1).astype(jnp.int32)

    @checked
    def decode(self, ids: Int[Array, "height width"]) -> Float[Array, "height width 1"]:
        """**Arguments:** `ids` in [0, levels). **Returns:** the image.

        **Raises:** `ValueError` for another grid or an id out of range; where ids are traced, NaN stands for what
        they would have shown.
        """
        check_shape("GreyLevels.decode", "ids", ids.shape, self.grid)
        check_ids("GreyLevels.decode", ids, self.levels)
        image = ids.astype(jnp.float32) * (2.0 / (self.levels - 1)) - 1.0
        return jnp.where((ids < 0) | (ids >= self.levels), jnp.nan, image)[..., None]
