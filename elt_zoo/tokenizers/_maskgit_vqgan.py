import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from .._checks import checked
from ..nn import look_up
from ._base import AbstractTokenizer, check_ids, check_shape
from ._blocks import Shortcut, VQDecoder, VQEncoder, check_divides, check_sizes, nearest_codes


@dataclasses.dataclass(frozen=True, kw_only=True)
class VQGANConfig:
    """Sizes of a MaskGIT VQGAN; the defaults are those of the released one for 256 × 256 images (2202.04200).

    **Fields:**

    - `image_size`: height and width, a multiple of the downsampling factor. The same weights serve any.
    - `filters`, `channel_multipliers`: width of each level, from the largest grid to the smallest; every level but the
      last halves the grid.
    - `num_res_blocks`: residual blocks of each level, and in the middle.
    - `embedding_dim`, `codebook_size`: width and number K of the codes.
    - `groups`: of group normalisation.
    - `shortcut`: what a block adds where the width changes; `BRANCH` for the released weights.
    """

    image_size: int = 256
    filters: int = 128
    channel_multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)
    num_res_blocks: int = 2
    embedding_dim: int = 256
    codebook_size: int = 1024
    groups: int = 32
    shortcut: Shortcut = Shortcut.BRANCH

    def __post_init__(self):
        check_sizes(self, levels=self.channel_multipliers, blocks=self.num_res_blocks)
        if self.image_size < 1 or self.image_size % self.downsampling:
            raise ValueError(
                f"`VQGANConfig(image_size={self.image_size})` must be a multiple of {self.downsampling}, by which "
                f"{len(self.channel_multipliers)} levels shrink an image."
            )

    @property
    def downsampling(self) -> int:
        """Pixels of a token along each axis."""
        return 2 ** (len(self.channel_multipliers) - 1)

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each level."""
        return tuple(self.filters * multiplier for multiplier in self.channel_multipliers)

    @property
    def pools(self) -> tuple[tuple[int, ...], ...]:
        """By what each level but the last shrinks the grid."""
        return ((2, 2),) * (len(self.channel_multipliers) - 1)

    def build(self, *, key: PRNGKeyArray) -> "MaskGITVQGAN":
        """The tokenizer with fresh parameters (float32)."""
        return MaskGITVQGAN(self, key=key)


class MaskGITVQGAN(AbstractTokenizer):
    """MaskGIT's VQGAN (2202.04200): a convolutional autoencoder whose latents are rounded to a codebook.

    By default of f = 16: an image of 256 × 256 pixels is 16 × 16 tokens of 1,024 codes. Pixels are in [−1, 1] here as
    in all of this library; the network itself works on [0, 1], which `latents` and `reconstruct` take and return.
    """

    encoder: VQEncoder
    decoder: VQDecoder
    codebook: Float[Array, "codes embedding"]
    config: VQGANConfig = eqx.field(static=True)

    def __init__(self, config: VQGANConfig, *, key: PRNGKeyArray):
        """**Arguments:** `config`: the sizes; `key`: PRNG key. For the released weights see
        [`load_maskgit_vqgan`][elt_zoo.pretrained.load_maskgit_vqgan].
        """
        encoder_key, decoder_key, code_key = jax.random.split(key, 3)
        options = {
            "channels": 3,
            "widths": config.widths,
            "pools": config.pools,
            "num_res_blocks": config.num_res_blocks,
            "embedding_dim": config.embedding_dim,
            "groups": config.groups,
            "shortcut": config.shortcut,
        }
        self.encoder = VQEncoder(**options, key=encoder_key)
        self.decoder = VQDecoder(**options, key=decoder_key)
        self.codebook = init_codebook(code_key, config.codebook_size, config.embedding_dim)
        self.config = config

    @property
    def shape(self) -> tuple[int, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Height, width and channels of the images."""
        return (self.config.image_size, self.config.image_size, 3)

    @property
    def codebook_size(self) -> int:
        """K, the number of codes."""
        return self.config.codebook_size

    @property
    def grid(self) -> tuple[int, ...]:
        """Tokens along height and width."""
        return (self.config.image_size // self.config.downsampling,) * 2

    @checked
    def latents(self, image: Float[Array, "height width 3"]) -> Float[Array, "rows columns embedding"]:
        """**Arguments:** `image`: pixels in [0, 1], height and width multiples of `config.downsampling`.

        **Returns:** what is then rounded to the nearest codes.

        **Raises:** `ValueError` for a size that does not divide.
        """
        check_divides("MaskGITVQGAN.latents", image.shape[:-1], (self.config.downsampling,) * 2)
        return self.encoder(image.astype(self.codebook.dtype))

    @checked
    def reconstruct(self, ids: Int[Array, "rows columns"]) -> Float[Array, "height width 3"]:
        """**Arguments:** `ids` in [0, K). **Returns:** the network's output, float32, about [0, 1] but not clipped."""
        return self.decoder(look_up(self.codebook, ids)).astype(jnp.float32)

    @checked
    def encode(self, image: Float[Array, "height width 3"]) -> Int[Array, "rows columns"]:
        """**Arguments:** `image`: pixels in [−1, 1]. **Returns:** the nearest codes. **Raises:** `ValueError` for
        another shape.
        """
        check_shape("MaskGITVQGAN.encode", "an image", image.shape, self.shape)
        return nearest_codes(self.latents((image + 1.0) / 2.0), self.codebook)

    @checked
    def decode(self, ids: Int[Array, "rows columns"]) -> Float[Array, "height width 3"]:
        """**Arguments:** `ids` in [0, K). **Returns:** the image.

        **Raises:** `ValueError` for another grid or an id out of range; where ids are traced, NaN stands for what
        they would have shown.
        """
        check_shape("MaskGITVQGAN.decode", "ids", ids.shape, self.grid)
        check_ids("MaskGITVQGAN.decode", ids, self.codebook_size)
        return 2.0 * jnp.clip(self.reconstruct(ids), 0.0, 1.0) - 1.0


def init_codebook(key: PRNGKeyArray, codes: int, dim: int) -> Float[Array, "codes dim"]:
    """Codes with entries of variance 1/dim."""
    return jax.nn.initializers.variance_scaling(1.0, "fan_in", "uniform", in_axis=1, out_axis=0)(
        key, (codes, dim), jnp.float32
    )
