import math
import os

import equinox as eqx
import jax
from jax.typing import DTypeLike

from ..families import MaskGITConfig
from ..generator import Generator
from ..storage import Shardings, TensorFile, WeightsError, assemble, read_tensors
from ._maskgit_names import maskgit_names, split_vocabulary
from ._sizes import count_parts, sizes_of


def load_maskgit(
    path: str | os.PathLike,
    *,
    num_classes: int = 1000,
    dtype: DTypeLike | None = None,
    sharding: Shardings | None = None,
) -> Generator:
    """Reads google-research/maskgit's transformer (2202.04200; Flax msgpack, or npz of the same names) as a looped
    model of one loop.

    The released weights know no null class. Ours is the mean of the classes, a start for fine-tuning with dropped
    labels; without that, guidance with it means nothing, so sample with `guidance=None`.

    **Arguments:**

    - `path`: a file.
    - `num_classes`: classes in its vocabulary, which also holds the codes and the mask.
    - `dtype`, `sharding`: as for [`load_dit`][elt_zoo.pretrained.load_dit].

    **Returns:** model, config, no tokenizer, and the source as metadata.

    **Raises:** `FileNotFoundError` if there is no such file; [`WeightsError`][elt_zoo.storage.WeightsError] if it is
    damaged or not a MaskGIT; `ValueError` if its vocabulary cannot hold so many classes.
    """
    file = read_tensors(path)
    for prefix in ("target/params/", "params/"):
        if any(name.startswith(prefix) for name in file):
            file = file.under(prefix)
            break
    config = _config(file, num_classes)
    file = file.replacing(split_vocabulary(file, config.codebook_size, num_classes))
    abstract = eqx.filter_eval_shape(config.build, key=jax.random.key(0))
    model = assemble(abstract, maskgit_names(config), file, dtype=dtype, sharding=sharding)
    return Generator(model, config, metadata={"source": str(path)})


def _config(file: TensorFile, num_classes: int) -> MaskGITConfig:
    """The sizes, read off the shapes of tensors."""
    vocabulary, _ = file.shape("Embed_0/word_embeddings/embedding", axes=2)
    bias = file.shape("MlmLayer_0/mlm_bias/bias")
    query = file.shape("TransformerLayer_0/Attention_0/self_attention/query/kernel", axes=3)
    positions, _ = file.shape("Embed_0/position_embeddings/embedding", axes=2)
    side = math.isqrt(positions - 1)
    if bias != (vocabulary,) or side * side != positions - 1:
        raise WeightsError(
            f"{file.path} is not a MaskGIT: a vocabulary of {vocabulary} with a bias of {bias}, "
            f"{positions} positions (expected a square and one)."
        )
    if not 1 <= num_classes < vocabulary - 1:
        raise ValueError(
            f"`load_maskgit(num_classes={num_classes})`: {file.path} has a vocabulary of {vocabulary}, which holds "
            "codes, classes and one mask."
        )
    with sizes_of(file):
        return MaskGITConfig(
            dim=query[0],
            num_layers=count_parts(file, r"TransformerLayer_(\d+)/"),
            max_loops=1,
            num_heads=query[1],
            num_classes=num_classes,
            mlp_dim=file.shape("TransformerLayer_0/Mlp_0/intermediate_output/kernel", axes=2)[-1],
            grid=(side, side),
            codebook_size=vocabulary - 1 - num_classes,
            pre_norm=False,
            dropout=0.1,
        )
