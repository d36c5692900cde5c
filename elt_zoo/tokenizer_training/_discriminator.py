import dataclasses
import itertools
import math

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from .._checks import checked
from ..nn import Conv, Linear

Grid = Float[Array, "*grid channels"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class DiscriminatorConfig:
    """Sizes of a discriminator.

    **Fields:**

    - `shape`: of its inputs without channels: (height, width) of images, or (frames, height, width) of clips.
    - `filters`, `channel_multipliers`: their products are the widths of the residual blocks. Every block halves each
      axis that is even.

    **Raises:** `ValueError` for sizes below one or no blocks.
    """

    shape: tuple[int, ...]
    filters: int = 64
    channel_multipliers: tuple[int, ...] = (2, 4, 4, 4)

    def __post_init__(self):
        if not self.channel_multipliers or min(*self.shape, self.filters, *self.channel_multipliers) < 1:
            raise ValueError(f"`{self}` needs one block or more, and sizes of at least one.")

    @property
    def grids(self) -> tuple[tuple[int, ...], ...]:
        """The input grid of every block, and the output grid of the last: an axis is halved while it is even."""
        grids = [self.shape]
        for _ in self.channel_multipliers:
            grids.append(tuple(size if size % 2 else size // 2 for size in grids[-1]))
        return tuple(grids)

    def build(self, *, key: PRNGKeyArray) -> "Discriminator":
        """A discriminator with new parameters (float32)."""
        return Discriminator(self, key=key)


class DownBlock(eqx.Module):
    """Two convolutions with a blurred halving between them, and a 1×1 shortcut."""

    conv1: Conv
    conv2: Conv
    shortcut: Conv

    def __init__(self, in_channels: int, out_channels: int, *, axes: int, key: PRNGKeyArray):
        first, second, third = jax.random.split(key, 3)
        self.conv1 = Conv(in_channels, in_channels, 3, axes=axes, key=first)
        self.conv2 = Conv(in_channels, out_channels, 3, axes=axes, key=second)
        self.shortcut = Conv(in_channels, out_channels, 1, axes=axes, use_bias=False, key=third)

    def __call__(self, x: Grid) -> Float[Array, "*small new_channels"]:
        branch = _activation(self.conv2(halve(_activation(self.conv1(x)))))
        return (self.shortcut(halve(x)) + branch) / math.sqrt(2.0)


class Discriminator(eqx.Module):
    """StyleGAN's residual discriminator (1912.04958) for images or, as in MAGVIT (2212.05199), for clips: one logit,
    high for what looks real. Every example is judged alone, without minibatch statistics.
    """

    conv_in: Conv
    blocks: list[DownBlock]
    conv_out: Conv
    hidden: Linear
    logit: Linear
    config: DiscriminatorConfig = eqx.field(static=True)

    def __init__(self, config: DiscriminatorConfig, *, key: PRNGKeyArray):
        """**Arguments:** `config`: the sizes; `key`: PRNG key."""
        axes = len(config.shape)
        keys = iter(jax.random.split(key, len(config.channel_multipliers) + 4))
        widths = [config.filters, *(config.filters * multiplier for multiplier in config.channel_multipliers)]
        last = widths[-1]
        self.conv_in = Conv(3, widths[0], 3, axes=axes, key=next(keys))
        self.blocks = [DownBlock(a, b, axes=axes, key=next(keys)) for a, b in itertools.pairwise(widths)]
        self.conv_out = Conv(last, last, 3, axes=axes, key=next(keys))
        self.hidden = Linear(math.prod(config.grids[-1]) * last, last, key=next(keys))
        self.logit = Linear(last, 1, key=next(keys))
        self.config = config

    @checked
    def __call__(self, pixels: Float[Array, "*grid 3"]) -> Float[Array, ""]:
        """**Arguments:** `pixels`: in [0, 1]. **Returns:** the logit.

        **Raises:** `ValueError` for another shape.
        """
        if pixels.shape[:-1] != self.config.shape:
            raise ValueError(f"`Discriminator` got pixels of shape {pixels.shape} but judges {self.config.shape}.")
        x = _activation(self.conv_in(2.0 * pixels - 1.0))
        for block in self.blocks:
            x = block(x)
        x = _activation(self.conv_out(x))
        return self.logit(_activation(self.hidden(jnp.ravel(x))))[0]


def _activation(x: Grid) -> Grid:
    return jax.nn.leaky_relu(x, 0.2)


def halve(x: Grid) -> Float[Array, "*small channels"]:
    """Every second position along each axis of even size, after a blur of (1, 3, 3, 1)/8 between the pairs; the border
    is repeated. Without the blur, what the discriminator sees would depend on where a pattern falls on the grid.
    """
    for axis, size in enumerate(x.shape[:-1]):
        if size % 2 == 0:
            padding = [(1, 1) if other == axis else (0, 0) for other in range(x.ndim)]
            padded = jnp.pad(x, padding, mode="edge")
            taps = [jax.lax.slice_in_dim(padded, start, start + size - 1, 2, axis) for start in range(4)]
            x = (taps[0] + 3.0 * taps[1] + 3.0 * taps[2] + taps[3]) / 8.0
    return x
