from collections.abc import Mapping

import numpy as np

from ..families import MaskGITConfig
from ..storage import LINEAR, Placement, prefixed

_WORDS, _BIAS = "Embed_0/word_embeddings/embedding", "MlmLayer_0/mlm_bias/bias"
_CODES, _CLASSES, _CODE_BIAS = f"{_WORDS}[codes, mask]", f"{_WORDS}[classes, their mean]", f"{_BIAS}[codes]"


def split_vocabulary(
    tensors: Mapping[str, np.ndarray], codebook_size: int, num_classes: int
) -> dict[str, np.ndarray | None]:
    """Cuts MaskGIT's one vocabulary (K codes, then the classes, then the mask) into the tables that
    [`maskgit_names`][elt_zoo.pretrained.maskgit_names] lists.

    **Arguments:** `tensors`: those of the file, by name; `codebook_size`: K; `num_classes`: number of classes.

    **Returns:** the new tensors, and `None` for those that they replace.
    """
    words, bias = tensors[_WORDS], tensors[_BIAS]
    classes = words[codebook_size : codebook_size + num_classes]
    mean = classes.mean(axis=0, keepdims=True, dtype=np.float32).astype(words.dtype)
    return {
        _WORDS: None,
        _BIAS: None,
        _CODES: np.concatenate([words[:codebook_size], words[-1:]]),
        _CLASSES: np.concatenate([classes, mean]),
        _CODE_BIAS: bias[:codebook_size],
    }


def maskgit_names(config: MaskGITConfig) -> list[Placement]:
    """Names of google-research/maskgit's transformer (Flax), and where each tensor goes in our model.

    The vocabulary comes in the parts that [`split_vocabulary`][elt_zoo.pretrained.split_vocabulary] makes: codes and
    mask are one table here and classes another, whose last row, the null class, is the mean of the classes, as the
    released weights have none.
    """
    rows = [
        Placement(_CODES, "head.token_embedding"),
        Placement(_CLASSES, "head.label_embedding.weight"),
        Placement("Embed_0/position_embeddings/embedding", "head.position_embedding"),
        *_norm("Embed_0/embeddings_ln", "head.embedding_norm"),
        Placement("MlmLayer_0/mlm_dense/kernel", "head.hidden.weight", LINEAR),
        Placement("MlmLayer_0/mlm_dense/bias", "head.hidden.bias"),
        *_norm("MlmLayer_0/mlm_ln", "head.hidden_norm"),
        Placement(_CODE_BIAS, "head.bias"),
    ]
    heads = (("heads", config.num_heads),)
    for layer in range(config.num_layers):
        at: tuple[int | slice, ...] = (layer,)
        block = [
            Placement(
                "Attention_0/self_attention/out/kernel",
                "attention.out.weight",
                "heads head_dim outputs -> outputs (heads head_dim)",
                at,
                heads,
            ),
            Placement("Attention_0/self_attention/out/bias", "attention.out.bias", region=at),
            *_norm("Attention_0/attention_output_ln", "attention_norm", at),
            Placement("Mlp_0/intermediate_output/kernel", "mlp.up.weight", LINEAR, at),
            Placement("Mlp_0/intermediate_output/bias", "mlp.up.bias", region=at),
            Placement("Mlp_0/layer_output/kernel", "mlp.down.weight", LINEAR, at),
            Placement("Mlp_0/layer_output/bias", "mlp.down.bias", region=at),
            *_norm("Mlp_0/layer_output_ln", "mlp_norm", at),
        ]
        for index, name in enumerate(("query", "key", "value")):
            part = (layer, slice(index * config.dim, (index + 1) * config.dim))
            source = f"Attention_0/self_attention/{name}"
            block += [
                Placement(
                    f"{source}/kernel",
                    "attention.qkv.weight",
                    "inputs heads head_dim -> (heads head_dim) inputs",
                    part,
                    heads,
                ),
                Placement(f"{source}/bias", "attention.qkv.bias", "heads head_dim -> (heads head_dim)", part, heads),
            ]
        rows += prefixed(block, f"TransformerLayer_{layer}/", "trunk.layers.")
    return rows


def _norm(source: str, target: str, region: tuple[int | slice, ...] = ()) -> list[Placement]:
    return [
        Placement(f"{source}/scale", f"{target}.weight", region=region),
        Placement(f"{source}/bias", f"{target}.bias", region=region),
    ]
