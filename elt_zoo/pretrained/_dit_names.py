from ..families import DiTConfig
from ..storage import Placement, prefixed


def dit_names(config: DiTConfig) -> list[Placement]:
    """Names of the files that facebookresearch/DiT writes (`.pt`), and where each tensor goes in our model.

    Their `pos_embed` is not among them: it is the fixed table that [`sincos_positions`][elt_zoo.nn.sincos_positions]
    makes.
    """
    rows = [
        _patches("x_embedder.proj.weight", config),
        Placement("x_embedder.proj.bias", "head.patch_embedding.bias"),
        Placement("y_embedder.embedding_table.weight", "head.label_embedding.weight"),
        *_linear("t_embedder.mlp.0", "head.time_embedding.hidden"),
        *_linear("t_embedder.mlp.2", "head.time_embedding.out"),
        *_linear("final_layer.adaLN_modulation.1", "head.modulation"),
        *_linear("final_layer.linear", "head.out"),
    ]
    for layer in range(config.num_layers):
        block = [
            *_linear("attn.qkv", "attention.qkv", (layer,)),
            *_linear("attn.proj", "attention.out", (layer,)),
            *_linear("mlp.fc1", "mlp.up", (layer,)),
            *_linear("mlp.fc2", "mlp.down", (layer,)),
            *_linear("adaLN_modulation.1", "modulation", (layer,)),
        ]
        rows += prefixed(block, f"blocks.{layer}.", "trunk.layers.")
    return rows


def dit_diffusers_names(config: DiTConfig) -> list[Placement]:
    """Names of the files that diffusers' `DiTTransformer2DModel` writes, and where each tensor goes in our model.

    Every block there carries a copy of the timestep and class embeddings; those of block 0 are read.
    """
    embedding = "transformer_blocks.0.norm1.emb."
    rows = [
        _patches("pos_embed.proj.weight", config),
        Placement("pos_embed.proj.bias", "head.patch_embedding.bias"),
        Placement(f"{embedding}class_embedder.embedding_table.weight", "head.label_embedding.weight"),
        *_linear(f"{embedding}timestep_embedder.linear_1", "head.time_embedding.hidden"),
        *_linear(f"{embedding}timestep_embedder.linear_2", "head.time_embedding.out"),
        *_linear("proj_out_1", "head.modulation"),
        *_linear("proj_out_2", "head.out"),
    ]
    d = config.dim
    for layer in range(config.num_layers):
        block = [
            *_linear("attn1.to_q", "attention.qkv", (layer, slice(0, d))),
            *_linear("attn1.to_k", "attention.qkv", (layer, slice(d, 2 * d))),
            *_linear("attn1.to_v", "attention.qkv", (layer, slice(2 * d, 3 * d))),
            *_linear("attn1.to_out.0", "attention.out", (layer,)),
            *_linear("ff.net.0.proj", "mlp.up", (layer,)),
            *_linear("ff.net.2", "mlp.down", (layer,)),
            *_linear("norm1.linear", "modulation", (layer,)),
        ]
        rows += prefixed(block, f"transformer_blocks.{layer}.", "trunk.layers.")
    return rows


def _linear(source: str, target: str, region: tuple[int | slice, ...] = ()) -> list[Placement]:
    return [Placement(f"{source}.{part}", f"{target}.{part}", region=region) for part in ("weight", "bias")]


def _patches(source: str, config: DiTConfig) -> Placement:
    rows, columns = (config.patch_size,) * 2 if isinstance(config.patch_size, int) else config.patch_size
    return Placement(
        source,
        "head.patch_embedding.weight",
        "dim channels row column -> dim (row column channels)",
        sizes=(("row", rows), ("column", columns)),
    )
