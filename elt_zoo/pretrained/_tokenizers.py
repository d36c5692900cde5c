import os
import re
from pathlib import Path
from typing import TypeVar

import equinox as eqx
import jax
from jax.typing import DTypeLike

from ..storage import Shardings, TensorFile, WeightsError, assemble, read_tensors
from ..tokenizers import VQ3D, AutoencoderKL, AutoencoderKLConfig, MaskGITVQGAN, Shortcut, VQ3DConfig, VQGANConfig
from ._autoencoder_kl_names import autoencoder_kl_names
from ._diffusers import diffusers_settings, diffusers_weights
from ._sizes import count_parts
from ._vq_names import vq3d_flax_names, vqgan_flax_names, vqgan_torch_names

_Config = TypeVar("_Config", VQGANConfig, VQ3DConfig, AutoencoderKLConfig)


def load_maskgit_vqgan(
    path: str | os.PathLike,
    *,
    image_size: int = 256,
    shortcut: Shortcut = Shortcut.BRANCH,
    dtype: DTypeLike | None = None,
    sharding: Shardings | None = None,
) -> MaskGITVQGAN:
    """Reads MaskGIT's VQGAN (2202.04200): google-research/maskgit's Flax msgpack, or the PyTorch port's file (`.bin`,
    `.pth`, safetensors).

    **Arguments:**

    - `path`: a file.
    - `image_size`: height and width of the images to encode; the weights serve any.
    - `shortcut`: as the weights were trained; the released ones need the default.
    - `dtype`, `sharding`: as for [`load_dit`][elt_zoo.pretrained.load_dit].

    **Returns:** the tokenizer.

    **Raises:** `FileNotFoundError` if there is no such file; [`WeightsError`][elt_zoo.storage.WeightsError] if it is
    damaged or not a VQGAN.
    """
    file = _parameters(read_tensors(path))
    flax = "quantizer/codebook" in file
    if flax:
        widths, blocks, _ = _flax_sizes(file, axes=4)
        codes = file.shape("quantizer/codebook", axes=2)
    else:
        codes = file.shape("quantize.embedding.weight", axes=2)
        level_count = count_parts(file, r"encoder\.down\.(\d+)\.")
        blocks = count_parts(file, r"encoder\.mid\.(\d+)\.")
        widths = [file.shape(f"encoder.down.{level}.block.0.conv1.weight", axes=4)[0] for level in range(level_count)]
        if level_count < 2 or blocks < 1:
            raise WeightsError(f"{file.path} is not a VQGAN: it has {level_count} levels with {blocks} blocks.")
    config = VQGANConfig(
        image_size=image_size,
        filters=widths[0],
        channel_multipliers=_multipliers(file, widths),
        num_res_blocks=blocks,
        embedding_dim=codes[1],
        codebook_size=codes[0],
        shortcut=shortcut,
    )
    rows = vqgan_flax_names(config) if flax else vqgan_torch_names(config)
    return assemble(_abstract(config, file), rows, file, dtype=dtype, sharding=sharding)


def load_vq3d(
    path: str | os.PathLike,
    *,
    shape: tuple[int, int, int] = (16, 128, 128),
    temporal_downsample: tuple[bool, ...] = (True, True, False),
    dtype: DTypeLike | None = None,
    sharding: Shardings | None = None,
) -> VQ3D:
    """Reads a 3D-VQ as google-research/magvit's code writes it (Flax msgpack; 2212.05199). Its authors released none:
    this is for those who train with that code.

    **Arguments:**

    - `path`: a file.
    - `shape`: frames, height and width of the clips; the weights serve any.
    - `temporal_downsample`: which levels halve the frames, which no tensor tells.
    - `dtype`, `sharding`: as for [`load_dit`][elt_zoo.pretrained.load_dit].

    **Returns:** the tokenizer.

    **Raises:** `FileNotFoundError` if there is no such file; [`WeightsError`][elt_zoo.storage.WeightsError] if it is
    damaged or not a 3D-VQ; `ValueError` if `temporal_downsample` or `shape` do not fit its levels.
    """
    file = _parameters(read_tensors(path))
    codes = file.shape("quantizer/codebook", axes=2)
    widths, encoder_blocks, decoder_blocks = _flax_sizes(file, axes=5)
    config = VQ3DConfig(
        shape=shape,
        filters=widths[0],
        channel_multipliers=_multipliers(file, widths),
        temporal_downsample=temporal_downsample,
        num_enc_res_blocks=encoder_blocks,
        num_dec_res_blocks=decoder_blocks,
        embedding_dim=codes[1],
        codebook_size=codes[0],
    )
    return assemble(_abstract(config, file), vq3d_flax_names(config), file, dtype=dtype, sharding=sharding)


def load_autoencoder_kl(
    path: str | os.PathLike, *, dtype: DTypeLike | None = None, sharding: Shardings | None = None
) -> AutoencoderKL:
    """Reads a Stable Diffusion autoencoder (2112.10752) from a diffusers folder, such as sd-vae-ft-mse or the `vae`
    folder of v1.4, with attention under the names of either generation.

    **Arguments:**

    - `path`: a folder with `config.json` and `diffusion_pytorch_model.safetensors` or `.bin`, or one with such a folder
      named `vae` in it.
    - `dtype`, `sharding`: as for [`load_dit`][elt_zoo.pretrained.load_dit]. Not float16, which overflows.

    **Returns:** the autoencoder.

    **Raises:** `FileNotFoundError` if a file is missing; [`WeightsError`][elt_zoo.storage.WeightsError] if one is
    damaged or of another network; `ValueError` if the config asks for a variant that we do not have.
    """
    folder = Path(path)
    folder = folder / "vae" if (folder / "vae").is_dir() else folder
    config = AutoencoderKLConfig.from_diffusers(diffusers_settings(folder, "AutoencoderKL"))
    file = diffusers_weights(folder)
    old = "encoder.mid_block.attentions.0.query.weight" in file
    # The oldest files hold attention's linear maps as 1×1 convolutions.
    maps = re.compile(r"\w+\.mid_block\.attentions\.0\.\w+(\.0)?\.weight")
    flat = {name: file[name] for name in file if maps.fullmatch(name) and file.shape(name)[2:] == (1, 1)}
    file = file.replacing({name: tensor[:, :, 0, 0] for name, tensor in flat.items()})
    rows = autoencoder_kl_names(config, old_attention=old)
    return assemble(_abstract(config, file), rows, file, dtype=dtype, sharding=sharding)


def _abstract(config: _Config, file: TensorFile):
    try:
        return eqx.filter_eval_shape(config.build, key=jax.random.key(0))
    except (ValueError, TypeError, ArithmeticError) as error:
        raise WeightsError(f"{file.path}: no network has the sizes of its tensors ({config}): {error}") from error


def _parameters(file: TensorFile) -> TensorFile:
    inside = file.under("params/")
    return inside if len(inside) else file


def _multipliers(file: TensorFile, widths: list[int]) -> tuple[int, ...]:
    """The widths of the levels as multiples of the first."""
    if any(width % widths[0] for width in widths) or len(widths) > 16:
        raise WeightsError(f"{file.path} is not a VQGAN: its levels are {widths[:16]} wide, expected multiples.")
    return tuple(width // widths[0] for width in widths)


def _flax_sizes(file: TensorFile, *, axes: int) -> tuple[list[int], int, int]:
    """Widths of the levels and residual blocks of each, of the encoder and of the decoder."""
    levels = count_parts(file, r"decoder/Conv_(\d+)/") - 1
    blocks = [count_parts(file, rf"{half}/ResBlock_(\d+)/") for half in ("encoder", "decoder")]
    if levels < 2 or any(count < 1 or count % (levels + 1) for count in blocks):
        raise WeightsError(
            f"{file.path} is not a VQGAN: it has {levels} levels with {blocks[0]} blocks in the encoder and "
            f"{blocks[1]} in the decoder."
        )
    each = [count // (levels + 1) for count in blocks]
    widths = [file.shape(f"encoder/ResBlock_{level * each[0]}/Conv_0/kernel", axes=axes)[-1] for level in range(levels)]
    return widths, each[0], each[1]
