import dataclasses
import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .._checks import checked


@dataclasses.dataclass(frozen=True)
class Rotary:
    r"""Rotary positions over a token grid: queries and keys are turned by their places, so that their product depends
    on how far apart they stand ([2104.09864](https://arxiv.org/abs/2104.09864)).

    On a grid of several axes each axis turns channels of its own, as in vision transformers
    ([2403.13298](https://arxiv.org/abs/2403.13298), "axial"). Of n pairs of channels, which are read as complex
    numbers, the place p along the axis turns pair i by the angle $p \cdot \text{base}^{-i/n}$. All axes have equally
    many pairs, and channels that are left over are not turned.

    The first half of the turned channels holds the real parts, the second half the imaginary parts, and in both the
    first axis comes first. Other orders of the channels are as good, since the maps to queries and keys are learned.

    **Fields:**

    - `grid`: tokens along each axis, such as (length,), (height, width) or (frames, height, width), in row-major order.
    - `prefix`: tokens before the grid that have no place in it, such as a class token. They are not turned.
    - `base`: what divides the angle of the fastest pair to give about that of the slowest. The default of 100 is that
      of the axial form in 2403.13298. Language models, whose axis is longer, have 10,000.

    **Raises:** `ValueError` for an empty grid, a negative prefix, or a base that is not above 1.
    """

    grid: tuple[int, ...]
    prefix: int = 0
    base: float = 100.0

    def __post_init__(self):
        if min(self.grid, default=0) < 1 or self.prefix < 0 or not 1.0 < self.base < math.inf:
            raise ValueError(
                f"`{self}` needs a grid of one or more axes of at least one token, a prefix of 0 or more tokens, and a "
                "base above 1."
            )

    def pairs(self, head_dim: int) -> int:
        """Pairs of channels that each axis turns in a head.

        **Raises:** `ValueError` if the head has fewer than two channels for each axis.
        """
        axes = len(self.grid)
        if head_dim < 2 * axes:
            raise ValueError(
                f"Rotary positions on the grid {self.grid} turn at least two channels for each of its {axes} axes, but "
                f"a head has {head_dim}. Use fewer heads or a larger width, for heads of {2 * axes} channels or more."
            )
        return head_dim // (2 * axes)

    def angles(self, head_dim: int) -> np.ndarray:
        """The angle of every token and pair, float64 (tokens, axes · pairs). Those of the prefix are zero.

        **Raises:** `ValueError` as `pairs`.
        """
        pairs = self.pairs(head_dim)
        frequencies = self.base ** (-np.arange(pairs) / pairs)
        places = np.stack([axis.ravel() for axis in np.indices(self.grid)], axis=1)
        angles = (places[:, :, None] * frequencies).reshape(len(places), -1)
        return np.concatenate([np.zeros((self.prefix, angles.shape[1])), angles])

    @checked
    def __call__(self, heads: Float[Array, "tokens heads head_dim"]) -> Float[Array, "tokens heads head_dim"]:
        """Turns the queries or the keys of all heads, in float32.

        **Returns:** them in the dtype that they came in.

        **Raises:** `ValueError` if there are not as many tokens as the prefix and the grid have.
        """
        tokens, _, head_dim = heads.shape
        angles = self.angles(head_dim)[:, None, :]
        if tokens != len(angles):
            raise ValueError(
                f"`{self}` turns {len(angles)} tokens and got {tokens}. Build it for the grid of the tokens and the "
                "tokens before it."
            )
        cos, sin = (jnp.asarray(table, jnp.float32) for table in (np.cos(angles), np.sin(angles)))
        size = angles.shape[-1]
        real, imaginary = (heads[..., at : at + size].astype(jnp.float32) for at in (0, size))
        turned = jnp.concatenate([real * cos - imaginary * sin, real * sin + imaginary * cos], axis=-1)
        return jnp.concatenate([turned.astype(heads.dtype), heads[..., 2 * size :]], axis=-1)
