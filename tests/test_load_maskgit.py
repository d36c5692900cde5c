"""MaskGIT's published transformer: the names, the function, and what is refused."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from parity import relative_error
from test_looped import randomize
from weight_files import nested, write_msgpack, write_npz

from elt_zoo.families import MaskGITConfig
from elt_zoo.pretrained import load_maskgit
from elt_zoo.storage import WeightsError

CONFIG = MaskGITConfig(
    dim=16,
    num_layers=2,
    max_loops=1,
    num_heads=2,
    num_classes=3,
    mlp_dim=20,
    grid=(3, 3),
    codebook_size=7,
    pre_norm=False,
    dropout=0.1,
)


@pytest.fixture(scope="module")
def model():
    model = randomize(CONFIG.build(key=jax.random.key(0)))
    labels = model.head.label_embedding.weight
    # The file has no null class, so that only its mean can come back.
    return eqx.tree_at(lambda m: m.head.label_embedding.weight, model, labels.at[-1].set(jnp.mean(labels[:-1], axis=0)))


def official(model):
    """The model's tensors under the names and in the axes of Flax, written out by hand."""
    head, tensors = model.head, {}

    def norm(name, module, at=()):
        tensors[f"{name}/scale"], tensors[f"{name}/bias"] = module.weight[at], module.bias[at]

    def dense(name, module, at=()):
        tensors[f"{name}/kernel"], tensors[f"{name}/bias"] = module.weight[at].T, module.bias[at]

    codes, labels = head.token_embedding, head.label_embedding.weight
    tensors["Embed_0/word_embeddings/embedding"] = jnp.concatenate([codes[:-1], labels[:-1], codes[-1:]])
    tensors["Embed_0/position_embeddings/embedding"] = head.position_embedding
    norm("Embed_0/embeddings_ln", head.embedding_norm)
    dense("MlmLayer_0/mlm_dense", head.hidden)
    norm("MlmLayer_0/mlm_ln", head.hidden_norm)
    tensors["MlmLayer_0/mlm_bias/bias"] = jnp.concatenate([head.bias, jnp.ones(4)])
    layers = model.trunk.layers
    for i in range(2):
        name = f"TransformerLayer_{i}"
        weights = jnp.split(layers.attention.qkv.weight[i], 3)
        biases = jnp.split(layers.attention.qkv.bias[i], 3)
        for part, weight, bias in zip(("query", "key", "value"), weights, biases, strict=True):
            tensors[f"{name}/Attention_0/self_attention/{part}/kernel"] = weight.T.reshape(16, 2, 8)
            tensors[f"{name}/Attention_0/self_attention/{part}/bias"] = bias.reshape(2, 8)
        tensors[f"{name}/Attention_0/self_attention/out/kernel"] = layers.attention.out.weight[i].T.reshape(2, 8, 16)
        tensors[f"{name}/Attention_0/self_attention/out/bias"] = layers.attention.out.bias[i]
        norm(f"{name}/Attention_0/attention_output_ln", layers.attention_norm, i)
        dense(f"{name}/Mlp_0/intermediate_output", layers.mlp.up, i)
        dense(f"{name}/Mlp_0/layer_output", layers.mlp.down, i)
        norm(f"{name}/Mlp_0/layer_output_ln", layers.mlp_norm, i)
    return {f"params/{name}": np.asarray(value) for name, value in tensors.items()}


def test_a_flax_file_comes_back(model, tmp_path):
    write_msgpack(tmp_path / "checkpoint", nested(official(model)))
    loaded = load_maskgit(tmp_path / "checkpoint", num_classes=3)
    assert loaded.config == CONFIG
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6),
        eqx.filter(loaded.model, eqx.is_array),
        eqx.filter(model, eqx.is_array),
    )
    optimizer = {"opt_state": {"mu": np.zeros(3, np.float32)}}
    write_msgpack(tmp_path / "checkpoint", {"target": nested(official(model)), **optimizer})
    assert eqx.tree_equal(load_maskgit(tmp_path / "checkpoint", num_classes=3).model, loaded.model)
    write_npz(tmp_path / "weights.npz", official(model))
    assert eqx.tree_equal(load_maskgit(tmp_path / "weights.npz", num_classes=3).model, loaded.model)


def test_what_is_no_maskgit_is_refused(model, tmp_path):
    path, tensors = tmp_path / "checkpoint", official(model)
    write_msgpack(path, nested(tensors))
    with pytest.raises(ValueError, match=r"num_classes=1000\)`: .* has a vocabulary of 11, which holds"):
        load_maskgit(path)
    bad = dict(tensors)
    name = "params/TransformerLayer_1/Mlp_0/layer_output/kernel"
    bad[name] = bad[name].T
    write_msgpack(path, nested(bad))
    with pytest.raises(WeightsError, match=r"TransformerLayer_1/Mlp_0/layer_output/kernel .* \(16, 20\).*transp"):
        load_maskgit(path, num_classes=3)
    bad = dict(tensors)
    bad["params/Embed_0/position_embeddings/embedding"] = np.zeros((9, 16), np.float32)
    write_msgpack(path, nested(bad))
    with pytest.raises(WeightsError, match=r"is not a MaskGIT: .* 9 positions \(expected a square and one\)"):
        load_maskgit(path, num_classes=3)
    write_msgpack(path, {"params": {"x": np.zeros(3, np.float32)}})
    with pytest.raises(WeightsError, match="has no tensor 'Embed_0/word_embeddings/embedding'"):
        load_maskgit(path)


@pytest.mark.parametrize("name", ["checkpoint.msgpack", "weights.npz"])
def test_the_original_function(name, published):
    folder, io = published("maskgit_transformer_flax")
    loaded: Any = load_maskgit(folder / name, num_classes=10)
    k, grid = loaded.config.codebook_size, loaded.config.grid
    sequence = io["sequence"]
    labels = jnp.asarray(sequence[:, 0] - k)
    ids = np.where(sequence[:, 1:] == -1, loaded.model.head.mask_id, sequence[:, 1:]).reshape(-1, *grid)
    ours = jax.vmap(lambda ids, label: loaded.model(ids, label, loops=1))(jnp.asarray(ids), labels)
    assert relative_error(ours.reshape(len(ids), -1, k), io["logits"][:, 1:, :k]) < 1e-4
