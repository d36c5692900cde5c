import dataclasses
import math

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from .._checks import checked
from ..nn import look_up
from ._base import AbstractTokenizer, check_ids, check_shape
from ._blocks import Shortcut, VQDecoder, VQEncoder, check_divides, check_sizes, nearest_codes
from ._maskgit_vqgan import MaskGITVQGAN, init_codebook


@dataclasses.dataclass(frozen=True, kw_only=True)
class VQ3DConfig:
    """Sizes of a MAGVIT 3D-VQ; the defaults are its base model for 16 × 128 × 128 clips (2212.05199).

    **Fields:**

    - `shape`: frames, height and width of the clips.
    - `filters`, `channel_multipliers`: width of each level, from the largest grid to the smallest; every level but the
      last halves height and width.
    - `temporal_downsample`: for each of those levels, whether it halves the frames too.
    - `num_enc_res_blocks`, `num_dec_res_blocks`: residual blocks of each level, and in the middle.
    - `embedding_dim`, `codebook_size`: width and number K of the codes.
    - `groups`: of group normalisation.
    """

    shape: tuple[int, int, int] = (16, 128, 128)
    filters: int = 64
    channel_multipliers: tuple[int, ...] = (1, 2, 2, 4)
    temporal_downsample: tuple[bool, ...] = (True, True, False)
    num_enc_res_blocks: int = 2
    num_dec_res_blocks: int = 2
    embedding_dim: int = 256
    codebook_size: int = 1024
    groups: int = 32

    def __post_init__(self):
        blocks = max(self.num_enc_res_blocks, self.num_dec_res_blocks)
        check_sizes(self, levels=self.channel_multipliers, blocks=blocks)
        if len(self.temporal_downsample) != len(self.channel_multipliers) - 1:
            raise ValueError(
                f"`VQ3DConfig(temporal_downsample={self.temporal_downsample})` needs one entry for each of the "
                f"{len(self.channel_multipliers) - 1} levels that shrink the grid."
            )
        if any(size < 1 or size % factor for size, factor in zip(self.shape, self.downsampling, strict=True)):
            raise ValueError(
                f"`VQ3DConfig(shape={self.shape})` must be a multiple of {self.downsampling} (frames, height, width), "
                "by which the levels shrink a clip."
            )

    @property
    def pools(self) -> tuple[tuple[int, ...], ...]:
        """By what each level but the last shrinks the grid."""
        return tuple((2 if temporal else 1, 2, 2) for temporal in self.temporal_downsample)

    @property
    def downsampling(self) -> tuple[int, int, int]:
        """Frames, rows and columns of a token."""
        frames, height, width = (math.prod(pool[axis] for pool in self.pools) for axis in range(3))
        return frames, height, width

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each level."""
        return tuple(self.filters * multiplier for multiplier in self.channel_multipliers)

    def build(self, *, key: PRNGKeyArray) -> "VQ3D":
        """The tokenizer with fresh parameters (float32)."""
        return VQ3D(self, key=key)


class VQ3D(AbstractTokenizer):
    """MAGVIT's 3D-VQ (2212.05199): a VQGAN whose convolutions run over time too, for video.

    By default a clip of 16 × 128 × 128 pixels is 4 × 16 × 16 tokens of 1,024 codes. Its weights were never released:
    train it, or start from an image model with [`inflate`][elt_zoo.tokenizers.inflate]. Pixels are in [−1, 1] here; the
    network itself works on [0, 1], which `latents` and `reconstruct` take and return.
    """

    encoder: VQEncoder
    decoder: VQDecoder
    codebook: Float[Array, "codes embedding"]
    config: VQ3DConfig = eqx.field(static=True)

    def __init__(self, config: VQ3DConfig, *, key: PRNGKeyArray):
        """**Arguments:** `config`: the sizes; `key`: PRNG key."""
        encoder_key, decoder_key, code_key = jax.random.split(key, 3)
        options = {
            "channels": 3,
            "widths": config.widths,
            "pools": config.pools,
            "embedding_dim": config.embedding_dim,
            "groups": config.groups,
            "shortcut": Shortcut.INPUT,
        }
        self.encoder = VQEncoder(**options, num_res_blocks=config.num_enc_res_blocks, key=encoder_key)
        self.decoder = VQDecoder(**options, num_res_blocks=config.num_dec_res_blocks, key=decoder_key)
        self.codebook = init_codebook(code_key, config.codebook_size, config.embedding_dim)
        self.config = config

    @property
    def shape(self) -> tuple[int, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Frames, height, width and channels of the clips."""
        return (*self.config.shape, 3)

    @property
    def codebook_size(self) -> int:
        """K, the number of codes."""
        return self.config.codebook_size

    @property
    def grid(self) -> tuple[int, ...]:
        """Tokens along time, height and width."""
        return tuple(s // f for s, f in zip(self.config.shape, self.config.downsampling, strict=True))

    @checked
    def latents(self, video: Float[Array, "frames height width 3"]) -> Float[Array, "steps rows columns embedding"]:
        """**Arguments:** `video`: pixels in [0, 1], sizes multiples of `config.downsampling`.

        **Returns:** what is then rounded to the nearest codes.

        **Raises:** `ValueError` for a size that does not divide.
        """
        check_divides("VQ3D.latents", video.shape[:-1], self.config.downsampling)
        return self.encoder(video.astype(self.codebook.dtype))

    @checked
    def reconstruct(self, ids: Int[Array, "steps rows columns"]) -> Float[Array, "frames height width 3"]:
        """**Arguments:** `ids` in [0, K). **Returns:** the network's output, float32, about [0, 1] but not clipped."""
        return self.decoder(look_up(self.codebook, ids)).astype(jnp.float32)

    @checked
    def encode(self, image: Float[Array, "frames height width 3"]) -> Int[Array, "steps rows columns"]:
        """**Arguments:** `image`: a clip, pixels in [−1, 1]. **Returns:** the nearest codes.

        **Raises:** `ValueError` for another shape.
        """
        check_shape("VQ3D.encode", "a video", image.shape, self.shape)
        return nearest_codes(self.latents((image + 1.0) / 2.0), self.codebook)

    @checked
    def decode(self, ids: Int[Array, "steps rows columns"]) -> Float[Array, "frames height width 3"]:
        """**Arguments:** `ids` in [0, K). **Returns:** the video.

        **Raises:** `ValueError` for another grid or an id out of range; where ids are traced, NaN stands for what
        they would have shown.
        """
        check_shape("VQ3D.decode", "ids", ids.shape, self.grid)
        check_ids("VQ3D.decode", ids, self.codebook_size)
        return 2.0 * jnp.clip(self.reconstruct(ids), 0.0, 1.0) - 1.0


def inflate(image_model: MaskGITVQGAN, config: VQ3DConfig) -> VQ3D:
    """Starts a 3D-VQ from an image VQGAN by central inflation (2212.05199, section 3.1): the middle slice of every
    kernel along time is the image kernel, the others are zero. On a video that stands still it is the image model.

    **Arguments:** `image_model`: of the same widths, blocks and codebook, with shortcuts from the input; `config`: of
    the 3D-VQ.

    **Returns:** the video tokenizer.

    **Raises:** `ValueError` if the two do not fit together, naming the first array that does not.
    """
    if image_model.config.shortcut != Shortcut.INPUT:
        raise ValueError(
            "`inflate` needs an image model with `shortcut=Shortcut.INPUT`: the 3D-VQ's blocks add their input, while "
            f"this one has {image_model.config.shortcut!r}."
        )
    video = eqx.filter_eval_shape(config.build, key=jax.random.key(0))
    flat, structure = jax.tree.flatten_with_path(video)
    sources = {_dotted(path): leaf for path, leaf in jax.tree.flatten_with_path(image_model)[0]}
    leaves = []
    for path, target in flat:
        source = sources.get(_dotted(path))
        kernel = target.ndim == 5
        expected = target.shape[1:] if kernel else target.shape
        if source is None or source.shape != expected:
            raise ValueError(
                f"`inflate`: {_dotted(path)} is of shape {None if source is None else source.shape} in the image model "
                f"and {target.shape} in the 3D-VQ. Use the same widths, blocks and codebook."
            )
        if kernel:
            source = jnp.zeros(target.shape, source.dtype).at[target.shape[0] // 2].set(source)
        leaves.append(source)
    if len(sources) != len(flat):
        raise ValueError("`inflate`: the image model has blocks that the 3D-VQ lacks. Use the same numbers of blocks.")
    return jax.tree.unflatten(structure, leaves)


def _dotted(path: tuple) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=".")
