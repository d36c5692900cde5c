import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from .._checks import check_range, checked
from ._linear import Initializer, Linear


def sincos_positions(grid: tuple[int, ...], dim: int) -> np.ndarray:
    """Fixed sine-cosine position table of a token grid of any number of axes.

    The channels are divided among the axes, last axis first as in DiT ([2212.09748](https://arxiv.org/abs/2212.09748))
    and MAE ([2111.06377](https://arxiv.org/abs/2111.06377)): with two axes the first half encodes the column and the
    second the row. Each part is `[sin(p·ω), cos(p·ω)]` with `ω_i = 10000^(−i/n)`. If `dim` cannot be
    divided evenly, the last axis gets the remainder.

    **Arguments:**

    - `grid`: tokens along each axis, such as (height, width) or (frames, height, width).
    - `dim`: channels, even and at least two an axis.

    **Returns:** float32 array (tokens, dim), tokens in row-major order.

    **Raises:** `ValueError` if `dim` is odd or too small.
    """
    axes = len(grid)
    share = dim // (2 * axes) * 2
    if dim % 2 or share == 0:
        raise ValueError(
            f"`sincos_positions(grid={grid}, dim={dim})` needs an even `dim` of at least {2 * axes}: "
            f"a sine and a cosine for each of the {axes} axes."
        )
    widths = [dim - share * (axes - 1)] + [share] * (axes - 1)
    coordinates = np.meshgrid(*[np.arange(size, dtype=np.float64) for size in grid], indexing="ij")
    parts = []
    for coordinate, width in zip(reversed(coordinates), widths, strict=True):
        frequencies = 10_000.0 ** (-np.arange(width // 2) / (width // 2))
        angles = coordinate.reshape(-1, 1) * frequencies[None, :]
        parts += [np.sin(angles), np.cos(angles)]
    return np.concatenate(parts, axis=1).astype(np.float32)


class TimestepEmbedding(eqx.Module):
    """Embeds a diffusion time: sinusoids, then Linear, SiLU, Linear (DiT, [2212.09748](https://arxiv.org/abs/2212.09748)).

    The sinusoids are `[cos(1000·t·ω), sin(1000·t·ω)]`, `ω_i = 10000^(−i/half)`, `half = num_frequencies / 2`. Time runs
    over [0, 1]; the factor 1000 makes index i of a 1000-step chain, t = i/1000, the number that DiT's weights were
    trained with.
    """

    hidden: Linear
    out: Linear
    num_frequencies: int = eqx.field(static=True)

    def __init__(self, dim: int, *, num_frequencies: int = 256, init: Initializer | None = None, key: PRNGKeyArray):
        """**Arguments:**

        - `dim`: width of the embedding.
        - `num_frequencies`: number of sinusoids, even.
        - `init`: initialiser of both weights; default normal with standard deviation 0.02, as DiT.
        - `key`: PRNG key.
        """
        init = jax.nn.initializers.normal(0.02) if init is None else init
        hidden_key, out_key = jax.random.split(key)
        self.hidden = Linear(num_frequencies, dim, init=init, key=hidden_key)
        self.out = Linear(dim, dim, init=init, key=out_key)
        self.num_frequencies = num_frequencies

    def sinusoids(self, time: Float[Array, ""]) -> Float[Array, " num_frequencies"]:
        """The fixed part of the embedding, in float32."""
        half = self.num_frequencies // 2
        frequencies = jnp.asarray(np.exp(-math.log(10_000.0) * np.arange(half) / half), jnp.float32)
        angles = 1000.0 * time.astype(jnp.float32) * frequencies
        return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)])

    @checked
    def __call__(self, time: Float[Array, ""]) -> Float[Array, " dim"]:
        """**Arguments:** `time`: scalar in [0, 1]. **Returns:** the embedding, in the dtype of the weights."""
        x = self.sinusoids(time).astype(self.hidden.weight.dtype)
        return self.out(jax.nn.silu(self.hidden(x)))


class LabelEmbedding(eqx.Module):
    """Class embedding with one more row, the null class, that stands for "no class" in classifier-free guidance."""

    weight: Float[Array, "labels dim"]

    def __init__(self, num_classes: int, dim: int, *, init: Initializer | None = None, key: PRNGKeyArray):
        """**Arguments:**

        - `num_classes`: number of classes; labels run from 0 to `num_classes`, which is the null class.
        - `dim`: width of the embedding.
        - `init`: default normal with standard deviation 0.02.
        - `key`: PRNG key.
        """
        init = jax.nn.initializers.normal(0.02) if init is None else init
        self.weight = init(key, (num_classes + 1, dim), jnp.float32)

    @checked
    def __call__(self, label: Int[Array, ""]) -> Float[Array, " dim"]:
        """**Arguments:** `label`: scalar in [0, num_classes]; `num_classes` is the null class.

        **Raises:** `ValueError` if the label is out of range; where it is traced, the embedding is NaN instead.
        """
        null_label = self.weight.shape[0] - 1
        check_range(
            label,
            0,
            null_label,
            f"A class label is out of range: this model knows labels 0 to {null_label - 1}, and {null_label} for no "
            "class. Check the labels, or build the model with more classes.",
        )
        return look_up(self.weight, label)


def look_up(table: Float[Array, "rows dim"], index: Int[Array, "*shape"]) -> Float[Array, "*shape dim"]:
    """Rows of a table by their indices.

    **Arguments:** `table`: floating point; `index`: in [0, rows).

    **Returns:** the rows. An index outside the table, a negative one too, gives a row of NaN: it is never another row.
    Their gradient is summed in float32 at least.
    """
    # The gradient of a row is a sum over all tokens that look it up, thousands for the mask. In bfloat16 such a sum
    # stops growing at 256 times its terms.
    wide = table.astype(jnp.float32) if table.dtype.itemsize < 4 else table
    rows = wide.at[index].get(mode="fill", fill_value=jnp.nan, wrap_negative_indices=False)
    return rows.astype(table.dtype)
