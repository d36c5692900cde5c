import dataclasses
import math
import os
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import numpy as np
from jax.typing import DTypeLike

from ..corruption import Prediction
from ..families import DiTConfig, NoiseSchedule
from ..generator import Generator
from ..nn import sincos_positions
from ..storage import Placement, Shardings, TensorFile, WeightsError, assemble, read_tensors
from ._diffusers import diffusers_settings, diffusers_weights
from ._dit_names import dit_diffusers_names, dit_names
from ._licence import LicenceWarning
from ._sizes import count_parts, sizes_of

# Attention heads of the published sizes (2212.09748, table 1), by width.
_HEADS = {384: 6, 768: 12, 1024: 16, 1152: 16}
# Width, layers and classes of the only weights that were released.
_RELEASED = (1152, 28, 1000)


@dataclasses.dataclass(frozen=True)
class Dialect:
    """How a kind of file names the tensors that tell a DiT's sizes.

    **Fields:** `patches`: the map from patches to tokens; `blocks`: the list of layers; `mlp`: the MLP's first map, in
    a layer; `labels`: the table of labels; `out`: the map from tokens to patches; `names`: the table of all names.
    """

    patches: str
    blocks: str
    mlp: str
    labels: str
    out: str
    names: Callable[[DiTConfig], list[Placement]]


_FACEBOOK = Dialect(
    patches="x_embedder.proj",
    blocks="blocks",
    mlp="mlp.fc1",
    labels="y_embedder.embedding_table",
    out="final_layer.linear",
    names=dit_names,
)
_DIFFUSERS = Dialect(
    patches="pos_embed.proj",
    blocks="transformer_blocks",
    mlp="ff.net.0.proj",
    labels="transformer_blocks.0.norm1.emb.class_embedder.embedding_table",
    out="proj_out_2",
    names=dit_diffusers_names,
)


def load_dit(
    path: str | os.PathLike,
    *,
    num_heads: int | None = None,
    latent_size: int | None = None,
    dtype: DTypeLike | None = None,
    sharding: Shardings | None = None,
) -> Generator:
    """Reads a DiT (2212.09748) as a looped model of one loop: facebookresearch/DiT's `.pt` files, training checkpoints
    (their EMA), the same tensors as safetensors, or a diffusers folder.

    Whatever the file, the model computes the original function: ε-prediction with learned variance on channels-last
    latents, label `num_classes` as the null class. diffusers' own differs slightly (timestep frequencies, one epsilon).
    Guidance of the original acts on the first three latent channels: `DiffusionSampler(guidance_channels=3)`.

    **Arguments:**

    - `path`: a file, or a folder with `config.json` and `diffusion_pytorch_model.safetensors` or `.bin`.
    - `num_heads`: attention heads, which no tensor tells; default that of the published model of this width, or what
      the folder's config says.
    - `latent_size`: height and width of the latents; default what the file's position table or the config says.
    - `dtype`: of the parameters, default float32.
    - `sharding`: where the parameters go, for all of them or as a function of a leaf's name and shape.

    **Returns:** model, config, no tokenizer, and the source as metadata.

    **Raises:** `FileNotFoundError` if there is no such file; [`WeightsError`][elt_zoo.storage.WeightsError] if it is
    damaged or not a DiT, naming every tensor that is missing, unused or of another shape; `ValueError` if an argument
    is needed or wrong. It warns with [`LicenceWarning`][elt_zoo.pretrained.LicenceWarning] for a DiT-XL/2 of 1,000
    classes, because the released ones are CC-BY-NC 4.0.
    """
    path = Path(path)
    if path.is_dir():
        settings, file = _diffusers_folder(path)
        num_heads = settings["num_attention_heads"] if num_heads is None else num_heads
        latent_size = settings["sample_size"] if latent_size is None else latent_size
        dialect, file = _DIFFUSERS, _without_copies(file)
        config = _config(file, dialect, num_heads, latent_size)
    else:
        dialect, file = _FACEBOOK, _state(read_tensors(path))
        if latent_size is None and "pos_embed" in file:
            patch_size = file.shape(f"{dialect.patches}.weight", axes=4)[-1]
            latent_size = math.isqrt(math.prod(file.shape("pos_embed")[:-1])) * patch_size
        config = _config(file, dialect, num_heads, latent_size)
        file = _without_positions(file, config)
    abstract = eqx.filter_eval_shape(config.build, key=jax.random.key(0))
    model = assemble(abstract, dialect.names(config), file, dtype=dtype, sharding=sharding)
    if (config.dim, config.num_layers, config.num_classes) == _RELEASED:
        warnings.warn(
            f"{file.path}: the released DiT-XL/2 weights are licensed CC-BY-NC 4.0, for non-commercial use only "
            "(https://github.com/facebookresearch/DiT). Silence this with a filter for `LicenceWarning` if these are "
            "your own.",
            LicenceWarning,
            stacklevel=2,
        )
    # DiT's own script guides three of its four channels.
    settings = dataclasses.replace(config.sampler_settings(), guidance_channels=min(3, config.shape[-1]))
    return Generator(model, config, settings=settings, metadata={"source": str(path)})


def _config(file: TensorFile, dialect: Dialect, num_heads: int | None, latent_size: int | None) -> DiTConfig:
    """The sizes, read off the shapes of tensors."""
    dim, channels, patch_size, _ = file.shape(f"{dialect.patches}.weight", axes=4)
    if num_heads is None and dim not in _HEADS:
        raise ValueError(
            f"`load_dit({str(file.path)!r})`: a model of width {dim} is not one of the published sizes "
            f"{sorted(_HEADS)}, so say how many attention heads it has with `num_heads=`."
        )
    if latent_size is None:
        raise ValueError(f"`load_dit({str(file.path)!r})`: the file has no positions; say `latent_size=`, such as 32.")
    rows_out, _ = file.shape(f"{dialect.out}.weight", axes=2)
    with sizes_of(file):
        return DiTConfig(
            dim=dim,
            num_layers=count_parts(file, rf"{re.escape(dialect.blocks)}\.(\d+)\."),
            max_loops=1,
            num_heads=_HEADS[dim] if num_heads is None else num_heads,
            num_classes=file.shape(f"{dialect.labels}.weight", axes=2)[0] - 1,
            mlp_dim=file.shape(f"{dialect.blocks}.0.{dialect.mlp}.weight", axes=2)[0],
            shape=(latent_size, latent_size, channels),
            patch_size=patch_size,
            prediction=Prediction.EPSILON,
            learned_variance=rows_out == 2 * channels * patch_size**2,
            noise_schedule=NoiseSchedule.LINEAR_BETA,
        )


def _state(file: TensorFile) -> TensorFile:
    """The averaged weights of a training checkpoint, or the file itself."""
    average, model = file.under("ema/"), file.under("model/")
    if len(average) and "pos_embed" in model:
        # A constant has no average of its own.
        return average.replacing({"pos_embed": model["pos_embed"]})
    return average if len(average) else model if len(model) else file


def _without_positions(file: TensorFile, config: DiTConfig) -> TensorFile:
    if "pos_embed" not in file:
        return file
    side = math.isqrt(config.num_tokens)
    table = sincos_positions((side, side), config.dim)[None]
    stored = file["pos_embed"]
    if stored.shape != table.shape or not np.allclose(stored.astype(np.float32), table, atol=1e-3):
        raise WeightsError(
            f"{file.path}: pos_embed of shape {stored.shape} is not the fixed sine-cosine table of {side} × {side} "
            "patches that DiT has."
        )
    return file.replacing({"pos_embed": None})


def _without_copies(file: TensorFile) -> TensorFile:
    """Drops what every block repeats of block 0, after a look that it does."""
    copies: dict[str, None] = {}
    for name in file:
        match = re.match(r"transformer_blocks\.(\d+)\.(norm1\.emb\..*)", name)
        if match and match[1] != "0":
            first = f"transformer_blocks.0.{match[2]}"
            if first not in file or not np.array_equal(file[name], file[first]):
                raise WeightsError(f"{file.path}: {name} differs from {first}, but a DiT has one embedding for all.")
            copies[name] = None
    return file.replacing(copies)


def _diffusers_folder(folder: Path) -> tuple[dict[str, Any], TensorFile]:
    folder = folder / "transformer" if (folder / "transformer").is_dir() else folder
    settings = diffusers_settings(folder, "DiTTransformer2DModel", "Transformer2DModel")
    wanted = {"norm_type": "ada_norm_zero", "activation_fn": "gelu-approximate", "attention_bias": True}
    wrong = {key: settings[key] for key, value in wanted.items() if settings.get(key, value) != value}
    lacking = {"num_attention_heads", "sample_size"} - settings.keys()
    if wrong or lacking:
        raise WeightsError(f"{folder / 'config.json'} is not of a DiT: it has {wrong} and lacks {sorted(lacking)}.")
    return settings, diffusers_weights(folder)
