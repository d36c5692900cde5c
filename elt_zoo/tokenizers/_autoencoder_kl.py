import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from .._checks import checked
from ..nn import Conv, GroupNorm, SelfAttention, UpsampleConv
from ..storage import from_json
from ._blocks import Grid, ResBlock, Shortcut, check_divides, check_sizes


@dataclasses.dataclass(frozen=True, kw_only=True)
class AutoencoderKLConfig:
    """Sizes of a Stable Diffusion autoencoder (2112.10752); the defaults are those of v1.4 and both sd-vae-ft models.

    **Fields:**

    - `block_out_channels`: width of each level, from the largest grid to the smallest; every level but the last halves
      the grid.
    - `layers_per_block`: residual blocks of each level of the encoder; the decoder has one more.
    - `latent_channels`: channels of the latents.
    - `groups`: of group normalisation.
    - `scaling_factor`: what latents are multiplied by to have about unit variance.
    """

    block_out_channels: tuple[int, ...] = (128, 256, 512, 512)
    layers_per_block: int = 2
    latent_channels: int = 4
    groups: int = 32
    scaling_factor: float = 0.18215

    def __post_init__(self):
        check_sizes(self, levels=self.block_out_channels, blocks=self.layers_per_block)
        if not 0.0 < self.scaling_factor < math.inf:
            raise ValueError(f"`AutoencoderKLConfig(scaling_factor={self.scaling_factor})` must be positive.")

    @property
    def downsampling(self) -> int:
        """Pixels of a latent along each axis."""
        return 2 ** (len(self.block_out_channels) - 1)

    @classmethod
    def from_diffusers(cls, settings: Mapping[str, Any]) -> "AutoencoderKLConfig":
        """**Arguments:** `settings`: a diffusers `config.json` of an `AutoencoderKL`.

        **Raises:** `ValueError` for settings that ask for another network, naming all of them.
        """
        channels = settings.get("block_out_channels", ())
        levels = len(channels) if isinstance(channels, list | tuple) else 0
        supported = {
            "_class_name": "AutoencoderKL",
            "act_fn": "silu",
            "in_channels": 3,
            "out_channels": 3,
            "down_block_types": ["DownEncoderBlock2D"] * levels,
            "up_block_types": ["UpDecoderBlock2D"] * levels,
            "mid_block_add_attention": True,
            "use_quant_conv": True,
            "use_post_quant_conv": True,
            "shift_factor": None,
            "latents_mean": None,
            "latents_std": None,
        }
        given = {key: list(value) if isinstance(value, tuple) else value for key, value in settings.items()}
        other = {key: given[key] for key, value in supported.items() if given.get(key, value) != value}
        if other or not levels:
            raise ValueError(
                f"This AutoencoderKL is not of Stable Diffusion's kind: {other or 'no block_out_channels'}. Supported "
                f"is {supported}."
            )
        fields = {
            "block_out_channels": settings["block_out_channels"],
            "layers_per_block": settings.get("layers_per_block", 1),
            "latent_channels": settings.get("latent_channels", 4),
            "groups": settings.get("norm_num_groups", 32),
            "scaling_factor": settings.get("scaling_factor", 0.18215),
        }
        return from_json(cls, fields)

    def build(self, *, key: PRNGKeyArray) -> "AutoencoderKL":
        """The autoencoder with fresh parameters (float32)."""
        return AutoencoderKL(self, key=key)


class AttentionBlock(eqx.Module):
    """Group norm and attention with one head over all positions, beside the identity."""

    norm: GroupNorm
    attention: SelfAttention

    def __init__(self, channels: int, *, groups: int, key: PRNGKeyArray):
        self.norm = GroupNorm(channels, groups=groups)
        self.attention = SelfAttention(channels, 1, key=key)

    def __call__(self, x: Grid) -> Grid:
        tokens = jnp.reshape(self.norm(x), (-1, x.shape[-1]))
        return x + jnp.reshape(self.attention(tokens), x.shape)


class Middle(eqx.Module):
    """A residual block, attention, and another residual block, on the smallest grid."""

    block1: ResBlock
    attention: AttentionBlock
    block2: ResBlock

    def __init__(self, channels: int, *, groups: int, key: PRNGKeyArray):
        keys = jax.random.split(key, 3)
        self.block1 = _block(channels, channels, groups, keys[0])
        self.attention = AttentionBlock(channels, groups=groups, key=keys[1])
        self.block2 = _block(channels, channels, groups, keys[2])

    def __call__(self, x: Grid) -> Grid:
        return self.block2(self.attention(self.block1(x)))


class KLEncoder(eqx.Module):
    """Levels of residual blocks with strided convolutions between."""

    conv_in: Conv
    levels: list[list[ResBlock]]
    downsamples: list[Conv]
    mid: Middle
    norm_out: GroupNorm
    conv_out: Conv

    def __init__(self, config: AutoencoderKLConfig, *, key: PRNGKeyArray):
        widths, count, groups = config.block_out_channels, config.layers_per_block, config.groups
        keys = iter(jax.random.split(key, 3 + len(widths) * (count + 1)))
        self.conv_in = Conv(3, widths[0], 3, key=next(keys))
        self.levels = _levels(widths, count, groups, keys)
        # Zeros only after the last row and column, as Stable Diffusion pads.
        after = ((0, 1), (0, 1))
        self.downsamples = [Conv(w, w, 3, stride=2, padding=after, key=next(keys)) for w in widths[:-1]]
        self.mid = Middle(widths[-1], groups=groups, key=next(keys))
        self.norm_out = GroupNorm(widths[-1], groups=groups)
        self.conv_out = Conv(widths[-1], 2 * config.latent_channels, 3, key=next(keys))

    def __call__(self, x: Grid) -> Float[Array, "*small latents"]:
        x = self.conv_in(x)
        for index, blocks in enumerate(self.levels):
            for block in blocks:
                x = block(x)
            if index < len(self.downsamples):
                x = self.downsamples[index](x)
        return self.conv_out(jax.nn.silu(self.norm_out(self.mid(x))))


class KLDecoder(eqx.Module):
    """The way back, with nearest-neighbour upsampling between levels."""

    conv_in: Conv
    mid: Middle
    levels: list[list[ResBlock]]
    upsamples: list[UpsampleConv]
    norm_out: GroupNorm
    conv_out: Conv

    def __init__(self, config: AutoencoderKLConfig, *, key: PRNGKeyArray):
        widths, count, groups = config.block_out_channels[::-1], config.layers_per_block + 1, config.groups
        keys = iter(jax.random.split(key, 3 + len(widths) * (count + 1)))
        self.conv_in = Conv(config.latent_channels, widths[0], 3, key=next(keys))
        self.mid = Middle(widths[0], groups=groups, key=next(keys))
        self.levels = _levels(widths, count, groups, keys)
        self.upsamples = [UpsampleConv(width, factors=(2, 2), key=next(keys)) for width in widths[:-1]]
        self.norm_out = GroupNorm(widths[-1], groups=groups)
        self.conv_out = Conv(widths[-1], 3, 3, key=next(keys))

    def __call__(self, x: Float[Array, "*small latents"]) -> Grid:
        x = self.mid(self.conv_in(x))
        for index, blocks in enumerate(self.levels):
            for block in blocks:
                x = block(x)
            if index < len(self.upsamples):
                x = self.upsamples[index](x)
        return self.conv_out(jax.nn.silu(self.norm_out(x)))


class AutoencoderKL(eqx.Module):
    """Stable Diffusion's autoencoder (2112.10752), whose latents diffusion models work on.

    An image of 256 × 256 × 3 becomes latents of 32 × 32 × 4, channels last. The encoder gives a Gaussian for each; one
    draws from it (DiT did so in training) or takes the mean. Latents that leave and enter are scaled by
    `config.scaling_factor`; those of `encode` are not. float32 or bfloat16: float16 overflows.
    """

    encoder: KLEncoder
    decoder: KLDecoder
    quant_conv: Conv
    post_quant_conv: Conv
    config: AutoencoderKLConfig = eqx.field(static=True)

    def __init__(self, config: AutoencoderKLConfig, *, key: PRNGKeyArray):
        """**Arguments:** `config`: the sizes; `key`: PRNG key. For published weights see
        [`load_autoencoder_kl`][elt_zoo.pretrained.load_autoencoder_kl].
        """
        keys = jax.random.split(key, 4)
        channels = config.latent_channels
        self.encoder = KLEncoder(config, key=keys[0])
        self.decoder = KLDecoder(config, key=keys[1])
        self.quant_conv = Conv(2 * channels, 2 * channels, 1, key=keys[2])
        self.post_quant_conv = Conv(channels, channels, 1, key=keys[3])
        self.config = config

    @checked
    def encode(
        self, image: Float[Array, "height width 3"]
    ) -> tuple[Float[Array, "rows columns latents"], Float[Array, "rows columns latents"]]:
        """**Arguments:** `image`: pixels in [−1, 1], height and width multiples of `config.downsampling`.

        **Returns:** mean and log-variance of the latents, float32, not scaled; the latter in [−30, 20].

        **Raises:** `ValueError` for a size that does not divide.
        """
        check_divides("AutoencoderKL.encode", image.shape[:-1], (self.config.downsampling,) * 2)
        moments = self.quant_conv(self.encoder(image.astype(self.quant_conv.weight.dtype))).astype(jnp.float32)
        mean, log_variance = jnp.split(moments, 2, axis=-1)
        return mean, jnp.clip(log_variance, -30.0, 20.0)

    @checked
    def sample(
        self, image: Float[Array, "height width 3"], *, key: PRNGKeyArray
    ) -> Float[Array, "rows columns latents"]:
        """Draws latents of an image, scaled, float32. **Arguments**, **Raises:** as `encode`; `key`: PRNG key."""
        mean, log_variance = self.encode(image)
        noise = jax.random.normal(key, mean.shape, jnp.float32)
        return self.config.scaling_factor * (mean + jnp.exp(0.5 * log_variance) * noise)

    @checked
    def decode(self, latents: Float[Array, "rows columns latents"]) -> Float[Array, "height width 3"]:
        """**Arguments:** `latents`: scaled. **Returns:** the image, float32, about [−1, 1] but not clipped.

        **Raises:** `ValueError` for another number of channels.
        """
        if latents.shape[-1] != self.config.latent_channels:
            raise ValueError(
                f"`AutoencoderKL.decode` got latents of shape {latents.shape}, but it has "
                f"{self.config.latent_channels} latent channels, last. Pass one example at a time."
            )
        latents = (latents / self.config.scaling_factor).astype(self.post_quant_conv.weight.dtype)
        return self.decoder(self.post_quant_conv(latents)).astype(jnp.float32)


def _block(in_channels: int, out_channels: int, groups: int, key: PRNGKeyArray) -> ResBlock:
    return ResBlock(in_channels, out_channels, axes=2, groups=groups, use_bias=True, mode=Shortcut.INPUT, key=key)


def _levels(widths: tuple[int, ...], count: int, groups: int, keys: Any) -> list[list[ResBlock]]:
    before = (widths[0], *widths[:-1])
    return [
        [_block(a if i == 0 else b, b, groups, next(keys)) for i in range(count)]
        for a, b in zip(before, widths, strict=True)
    ]
