"""What the convolutional tokenizers are built of: residual blocks, and a pyramid of them at both ends."""

import dataclasses
import enum
from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from ..nn import Conv, GroupNorm, UpsampleConv

Grid = Float[Array, "*grid channels"]


class Shortcut(enum.StrEnum):
    """What a residual block adds where its width changes: a 1×1 convolution of the block's input (as intended), or of
    the branch's own output, which drops the input. The released MaskGIT VQGAN was trained with the latter.
    """

    INPUT = "input"
    BRANCH = "branch"


class ResBlock(eqx.Module):
    """Group norm, SiLU and a 3-tap convolution, twice, beside a shortcut."""

    norm1: GroupNorm
    conv1: Conv
    norm2: GroupNorm
    conv2: Conv
    shortcut: Conv | None
    mode: Shortcut = eqx.field(static=True)

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        axes: int,
        groups: int,
        use_bias: bool,
        mode: Shortcut,
        key: PRNGKeyArray,
    ):
        first, second, third = jax.random.split(key, 3)
        self.norm1 = GroupNorm(in_channels, groups=groups)
        self.conv1 = Conv(in_channels, out_channels, 3, axes=axes, use_bias=use_bias, key=first)
        self.norm2 = GroupNorm(out_channels, groups=groups)
        self.conv2 = Conv(out_channels, out_channels, 3, axes=axes, use_bias=use_bias, key=second)
        self.shortcut = None
        if in_channels != out_channels:
            source = in_channels if mode == Shortcut.INPUT else out_channels
            self.shortcut = Conv(source, out_channels, 1, axes=axes, use_bias=use_bias, key=third)
        self.mode = mode

    def __call__(self, x: Grid) -> Float[Array, "*grid new_channels"]:
        branch = self.conv1(jax.nn.silu(self.norm1(x)))
        branch = self.conv2(jax.nn.silu(self.norm2(branch)))
        if self.shortcut is None:
            return x + branch
        return self.shortcut(x if self.mode == Shortcut.INPUT else branch) + branch


class VQEncoder(eqx.Module):
    """Levels of residual blocks with average pooling between, then a few more blocks and a 1×1 convolution."""

    conv_in: Conv
    levels: list[list[ResBlock]]
    mid: list[ResBlock]
    norm_out: GroupNorm
    conv_out: Conv
    pools: tuple[tuple[int, ...], ...] = eqx.field(static=True)

    def __init__(
        self,
        *,
        channels: int,
        widths: Sequence[int],
        pools: tuple[tuple[int, ...], ...],
        num_res_blocks: int,
        embedding_dim: int,
        groups: int,
        shortcut: Shortcut,
        key: PRNGKeyArray,
    ):
        axes = len(pools[0])
        keys = iter(jax.random.split(key, 3 + num_res_blocks * (len(widths) + 1)))
        options = {"axes": axes, "groups": groups, "use_bias": False, "mode": shortcut}
        self.conv_in = Conv(channels, widths[0], 3, axes=axes, use_bias=False, key=next(keys))
        before = [widths[0], *widths[:-1]]
        self.levels = [
            [ResBlock(a if i == 0 else b, b, **options, key=next(keys)) for i in range(num_res_blocks)]
            for a, b in zip(before, widths, strict=True)
        ]
        last = widths[-1]
        self.mid = [ResBlock(last, last, **options, key=next(keys)) for _ in range(num_res_blocks)]
        self.norm_out = GroupNorm(last, groups=groups)
        self.conv_out = Conv(last, embedding_dim, 1, axes=axes, key=next(keys))
        self.pools = pools

    def __call__(self, x: Grid) -> Float[Array, "*small embedding"]:
        x = self.conv_in(x)
        for index, blocks in enumerate(self.levels):
            for block in blocks:
                x = block(x)
            if index < len(self.pools):
                x = average_pool(x, self.pools[index])
        for block in self.mid:
            x = block(x)
        return self.conv_out(jax.nn.silu(self.norm_out(x)))


class VQDecoder(eqx.Module):
    """The way back: levels from the smallest grid to the largest, with nearest-neighbour upsampling between."""

    conv_in: Conv
    mid: list[ResBlock]
    levels: list[list[ResBlock]]
    upsamples: list[UpsampleConv]
    norm_out: GroupNorm
    conv_out: Conv

    def __init__(
        self,
        *,
        channels: int,
        widths: Sequence[int],
        pools: tuple[tuple[int, ...], ...],
        num_res_blocks: int,
        embedding_dim: int,
        groups: int,
        shortcut: Shortcut,
        key: PRNGKeyArray,
    ):
        axes = len(pools[0])
        keys = iter(jax.random.split(key, 3 + num_res_blocks * (len(widths) + 1) + len(pools)))
        options = {"axes": axes, "groups": groups, "use_bias": False, "mode": shortcut}
        widths = list(reversed(widths))
        self.conv_in = Conv(embedding_dim, widths[0], 3, axes=axes, key=next(keys))
        self.mid = [ResBlock(widths[0], widths[0], **options, key=next(keys)) for _ in range(num_res_blocks)]
        before = [widths[0], *widths[:-1]]
        self.levels = [
            [ResBlock(a if i == 0 else b, b, **options, key=next(keys)) for i in range(num_res_blocks)]
            for a, b in zip(before, widths, strict=True)
        ]
        self.upsamples = [
            UpsampleConv(width, factors=factors, key=next(keys))
            for width, factors in zip(widths[:-1], reversed(pools), strict=True)
        ]
        self.norm_out = GroupNorm(widths[-1], groups=groups)
        self.conv_out = Conv(widths[-1], channels, 3, axes=axes, key=next(keys))

    def __call__(self, x: Float[Array, "*small embedding"]) -> Grid:
        x = self.conv_in(x)
        for block in self.mid:
            x = block(x)
        for index, blocks in enumerate(self.levels):
            for block in blocks:
                x = block(x)
            if index < len(self.upsamples):
                x = self.upsamples[index](x)
        return self.conv_out(jax.nn.silu(self.norm_out(x)))


# Networks are built block by block, which takes time without end for numbers that no tokenizer has.
_MAX_LEVELS, _MAX_BLOCKS = 16, 256


def check_sizes(config: Any, *, levels: Sequence[int], blocks: int) -> None:
    """Refuses a config of no levels, of any number of things below one, or of more levels, or residual blocks of each,
    than there can be.
    """
    numbers = {name: value for name, value in dataclasses.asdict(config).items() if type(value) is int and value < 1}
    if len(levels) > _MAX_LEVELS or blocks > _MAX_BLOCKS:
        raise ValueError(
            f"A {type(config).__name__} has at most {_MAX_LEVELS} levels with {_MAX_BLOCKS} residual blocks each, not "
            f"{len(levels)} with {blocks}."
        )
    if numbers or len(levels) < 2 or min(levels) < 1:
        raise ValueError(
            f"`{config}`: a convolutional tokenizer needs two levels or more, and sizes of at least one"
            f"{f', not {numbers}' if numbers else ''}."
        )


def check_divides(name: str, grid: tuple[int, ...], factors: tuple[int, ...]) -> None:
    if any(size % factor for size, factor in zip(grid, factors, strict=True)):
        raise ValueError(
            f"`{name}` got {' × '.join(map(str, grid))} pixels, but the network shrinks its input by "
            f"{' × '.join(map(str, factors))}: each must be a multiple."
        )


def average_pool(x: Grid, factors: tuple[int, ...]) -> Float[Array, "*small channels"]:
    """Means over blocks of the grid, taken in float32."""
    split = [part for size, factor in zip(x.shape[:-1], factors, strict=True) for part in (size // factor, factor)]
    blocks = jnp.reshape(x, (*split, x.shape[-1]))
    return jnp.mean(blocks.astype(jnp.float32), axis=tuple(range(1, 2 * len(factors), 2))).astype(x.dtype)


def nearest_codes(latents: Float[Array, "*grid dim"], codebook: Float[Array, "codes dim"]) -> Int[Array, "*grid"]:
    """The id of the code at the least squared Euclidean distance, the lowest of equals, for latents on any grid. The
    gradient stops here.
    """
    latents, codebook = latents.astype(jnp.float32), codebook.astype(jnp.float32)
    # The latent's own square is the same for all codes. Full precision: accelerators would round to other codes.
    products = jnp.tensordot(latents, codebook, axes=(-1, -1), precision=jax.lax.Precision.HIGHEST)
    squares = jnp.sum(jnp.square(codebook), axis=1)
    return jnp.argmin(jnp.broadcast_to(squares, products.shape) - 2.0 * products, axis=-1).astype(jnp.int32)
