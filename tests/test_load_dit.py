"""DiT's published files: the names, the function, and what is refused."""

import json
import math
import warnings
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from parity import relative_error
from test_looped import randomize
from weight_files import write_safetensors, write_torch_zip

from elt_zoo.corruption import Prediction
from elt_zoo.families import DiTConfig, NoiseSchedule
from elt_zoo.models import BatchedPredict
from elt_zoo.nn import Linear, sincos_positions
from elt_zoo.pretrained import LicenceWarning, dit_diffusers_names, dit_names, load_dit
from elt_zoo.sampling import apply_guidance
from elt_zoo.storage import WeightsError

CONFIG = DiTConfig(
    dim=24,
    num_layers=3,
    max_loops=1,
    num_heads=2,
    num_classes=5,
    mlp_dim=40,
    shape=(8, 8, 4),
    patch_size=2,
    prediction=Prediction.EPSILON,
    learned_variance=True,
    noise_schedule=NoiseSchedule.LINEAR_BETA,
)


@pytest.fixture(scope="module")
def model():
    return randomize(CONFIG.build(key=jax.random.key(0)))


def official(model, names):
    """The model's tensors under a file's names, arranged by hand for what the tables would do by rule."""
    leaves = {
        ".".join(entry.name for entry in path): np.asarray(leaf)
        for path, leaf in jax.tree.flatten_with_path(model)[0]
        if eqx.is_array(leaf)
    }
    tensors = {}
    for row in names(CONFIG):
        value = leaves[row.target][row.region]
        if row.target == "head.patch_embedding.weight":
            value = value.reshape(24, 2, 2, 4).transpose(0, 3, 1, 2)
        tensors[row.source] = value
    return tensors


def facebook_tensors(model):
    return official(model, dit_names) | {"pos_embed": sincos_positions((4, 4), 24)[None]}


def diffusers_tensors(model):
    tensors = official(model, dit_diffusers_names)
    first = "transformer_blocks.0.norm1.emb."
    copies = {name: value for name, value in tensors.items() if name.startswith(first)}
    for layer in (1, 2):
        tensors |= {name.replace("blocks.0", f"blocks.{layer}"): value for name, value in copies.items()}
    return tensors


SETTINGS = {
    "_class_name": "DiTTransformer2DModel",
    "norm_type": "ada_norm_zero",
    "num_attention_heads": 2,
    "sample_size": 8,
}


def write_diffusers(folder, tensors, settings=SETTINGS):
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(settings))
    write_safetensors(folder / "diffusion_pytorch_model.safetensors", tensors)
    return folder


def write_facebook(path, tensors):
    write = write_torch_zip if path.suffix == ".pt" else write_safetensors
    write(path, tensors)
    return path


@pytest.mark.parametrize("name", ["dit.pt", "dit.safetensors"])
def test_a_file_of_the_original_comes_back(model, name, tmp_path):
    loaded = load_dit(write_facebook(tmp_path / name, facebook_tensors(model)), num_heads=2)
    assert loaded.config == CONFIG and eqx.tree_equal(loaded.model, model)


def test_a_training_checkpoint_gives_its_average(model, tmp_path):
    tensors = facebook_tensors(model)
    scaled = {name: value if name == "pos_embed" else 2 * value for name, value in tensors.items()}
    tree = {"model": scaled, "ema": tensors, "opt": {"state": {0: {"exp_avg": tensors["pos_embed"]}}}}
    write_torch_zip(tmp_path / "0050000.pt", tree)
    assert eqx.tree_equal(load_dit(tmp_path / "0050000.pt", num_heads=2).model, model)


def test_a_diffusers_folder_comes_back(model, tmp_path):
    loaded = load_dit(write_diffusers(tmp_path / "transformer", diffusers_tensors(model)))
    assert loaded.config == CONFIG and eqx.tree_equal(loaded.model, model)
    assert eqx.tree_equal(load_dit(tmp_path).model, model)


def test_dtype_is_that_asked_for(model, tmp_path):
    path = write_facebook(tmp_path / "dit.pt", facebook_tensors(model))
    narrow = load_dit(path, num_heads=2, dtype=jnp.bfloat16).model
    assert {leaf.dtype for leaf in jax.tree.leaves(eqx.filter(narrow, eqx.is_array))} == {jnp.dtype(jnp.bfloat16)}
    x = jax.random.normal(jax.random.key(1), (8, 8, 4), jnp.bfloat16)
    output = narrow(x, jnp.asarray(0.25), jnp.asarray(2), loops=1)
    wide = model(x.astype(jnp.float32), jnp.asarray(0.25), jnp.asarray(2), loops=1)
    assert relative_error(output.astype(jnp.float32), wide) < 0.05


@pytest.mark.parametrize("names", [dit_names, dit_diffusers_names])
def test_the_tables_fill_every_leaf_once_from_tensors_of_their_own(names, model):
    rows = names(CONFIG)
    assert len({row.source for row in rows}) == len(rows)
    filled = jax.tree.map(lambda leaf: np.zeros(leaf.shape), eqx.filter(model, eqx.is_array))
    leaves = {".".join(entry.name for entry in path): leaf for path, leaf in jax.tree.flatten_with_path(filled)[0]}
    for row in rows:
        leaves[row.target][row.region] += 1
    assert all(np.all(leaf == 1) for leaf in leaves.values())


def test_every_difference_is_reported_at_once_with_both_names(model, tmp_path):
    tensors = facebook_tensors(model)
    del tensors["blocks.1.attn.qkv.bias"]
    tensors["extra.weight"] = np.zeros((2, 3), np.float32)
    tensors["blocks.2.mlp.fc2.weight"] = tensors["blocks.2.mlp.fc2.weight"].T
    tensors["final_layer.linear.bias"] = tensors["final_layer.linear.bias"].astype(np.int32)
    tensors["t_embedder.mlp.0.bias"] = tensors["t_embedder.mlp.0.bias"].astype(np.float64)
    with pytest.raises(WeightsError, match=r"dit\.pt does not hold the tensors of this network") as error:
        load_dit(write_facebook(tmp_path / "dit.pt", tensors), num_heads=2)
    for line in (
        "missing: blocks.1.attn.qkv.bias (72,) (for trunk.layers.attention.qkv.bias[1])",
        "unused: extra.weight (2, 3)",
        "different: blocks.2.mlp.fc2.weight is of shape (40, 24), expected (24, 40)",
        "(for trunk.layers.mlp.down.weight[2]), perhaps transposed",
        "different: final_layer.linear.bias is of type int32, expected float32 (for head.out.bias)",
        "different: t_embedder.mlp.0.bias is of type float64, expected float32",
    ):
        assert line in str(error.value)


def test_what_is_no_dit_is_refused(model, tmp_path):
    tensors = facebook_tensors(model)
    path = tmp_path / "dit.pt"
    write_facebook(path, tensors | {"pos_embed": tensors["pos_embed"] + 0.1})
    with pytest.raises(WeightsError, match=r"pos_embed of shape .* is not the fixed sine-cosine table of 4 × 4"):
        load_dit(path, num_heads=2)
    write_facebook(path, {"weight": np.zeros(3, np.float32)})
    with pytest.raises(WeightsError, match=r"has no tensor 'x_embedder\.proj\.weight'"):
        load_dit(path, num_heads=2)
    write_facebook(path, tensors)
    with pytest.raises(ValueError, match="a model of width 24 is not one of the published sizes"):
        load_dit(path)
    del tensors["pos_embed"]
    write_facebook(path, tensors)
    with pytest.raises(ValueError, match="has no positions; say `latent_size=`"):
        load_dit(path, num_heads=2)
    assert load_dit(path, num_heads=2, latent_size=8).config == CONFIG


def test_what_is_no_diffusers_dit_is_refused(model, tmp_path):
    tensors = diffusers_tensors(model)
    name = "transformer_blocks.2.norm1.emb.timestep_embedder.linear_1.bias"
    write_diffusers(tmp_path, tensors | {name: tensors[name] + 1})
    with pytest.raises(WeightsError, match=rf"{name} differs from transformer_blocks\.0"):
        load_dit(tmp_path)
    write_diffusers(tmp_path, tensors, SETTINGS | {"_class_name": "AutoencoderKL"})
    with pytest.raises(WeightsError, match="is of AutoencoderKL, expected DiTTransformer2DModel"):
        load_dit(tmp_path)
    write_diffusers(tmp_path, tensors, SETTINGS | {"norm_type": "layer_norm"})
    with pytest.raises(WeightsError, match=r"is not of a DiT: it has \{'norm_type': 'layer_norm'\}"):
        load_dit(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(WeightsError, match="is damaged or not a config of diffusers"):
        load_dit(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"has no config\.json"):
        load_dit(tmp_path)
    write_diffusers(tmp_path, tensors)
    (tmp_path / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="has no weights"):
        load_dit(tmp_path)


def test_the_licence_of_the_released_weights_is_told(tmp_path, monkeypatch):
    """By the sizes of the only released models; the tensors themselves would be 2.7 GB."""
    import elt_zoo.pretrained._dit as module

    assert module._RELEASED == (1152, 28, 1000)
    monkeypatch.setattr(module, "_RELEASED", (24, 3, 5))
    path = write_facebook(tmp_path / "dit.pt", facebook_tensors(randomize(CONFIG.build(key=jax.random.key(0)))))
    with pytest.warns(LicenceWarning, match=r"CC-BY-NC 4\.0, for non-commercial use only"):
        load_dit(path, num_heads=2)
    monkeypatch.undo()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_dit(path, num_heads=2)


@pytest.mark.numerical
@pytest.mark.parametrize("name", ["dit.pt", "dit.safetensors"])
def test_the_original_function(name, published):
    folder, io = published("dit_facebook")
    model: Any = load_dit(folder / name, num_heads=4).model
    predict = eqx.filter_jit(lambda model, x, t, y: BatchedPredict(model)(x, t, y, loops=1))
    ours = predict(model, *inputs(io["x"], io["t"], io["y"]))
    assert relative_error(ours.transpose(0, 3, 1, 2), io["output"]) < 1e-4
    time = jax.vmap(model.head.time_embedding)(jnp.asarray(io["t"] / 1000, jnp.float32))
    assert relative_error(time, io["timestep_embedding"]) < 1e-4


@pytest.mark.numerical
def test_the_original_guidance_acts_on_three_channels(published):
    folder, io = published("dit_facebook")
    model = load_dit(folder / "dit.pt", num_heads=4).model
    half = len(io["cfg_x"]) // 2
    # Theirs evaluates the first half of the batch under both labels.
    x = np.concatenate([io["cfg_x"][:half]] * 2)
    output = BatchedPredict(model)(*inputs(x, io["cfg_t"], io["cfg_y"]), loops=1)
    scale = jnp.asarray(float(io["cfg_scale"]), jnp.float32)
    ours = apply_guidance(output[:half], output[half:], scale, channels=3)
    theirs = io["cfg_output"].transpose(0, 2, 3, 1)
    assert relative_error(ours, theirs[:half]) < 1e-4
    # Its unconditional half is guided in the same channels and keeps its own others.
    assert relative_error(ours[..., :3], theirs[half:, ..., :3]) < 1e-4


def test_a_training_checkpoint_of_the_original_gives_its_average(published):
    folder, _ = published("dit_facebook")
    loaded: Any = [load_dit(folder / name, num_heads=4).model for name in ("dit.pt", "train_checkpoint.pt")]
    model, average = loaded
    np.testing.assert_allclose(average.head.out.weight, 0.9 * model.head.out.weight, rtol=1e-6)


class DiffusersTimes(eqx.Module):
    """diffusers' timestep embedding: its frequencies end at 1/10000, the original's one step before."""

    hidden: Linear
    out: Linear

    def __call__(self, time):
        frequencies = jnp.exp(-math.log(10_000.0) * jnp.arange(128, dtype=jnp.float32) / 127)
        angles = 1000.0 * time * frequencies
        return self.out(jax.nn.silu(self.hidden(jnp.concatenate([jnp.cos(angles), jnp.sin(angles)]))))


def as_diffusers(model):
    """The model with the two things in which diffusers' function differs from the original."""
    embedding = model.head.time_embedding
    times = DiffusersTimes(embedding.hidden, embedding.out)
    model = eqx.tree_at(lambda m: m.head.time_embedding, model, times)
    return eqx.tree_at(lambda m: m.trunk.layers.mlp_norm, model, replace_eps(model.trunk.layers.mlp_norm, 1e-5))


@pytest.mark.numerical
def test_with_its_two_differences_it_is_the_function_of_diffusers(published):
    folder, io = published("dit_diffusers")
    model = load_dit(folder).model
    original = BatchedPredict(model)(*inputs(io["x"], io["t"], io["y"]), loops=1)
    model = as_diffusers(model)
    theirs = BatchedPredict(model)(*inputs(io["x"], io["t"], io["y"]), loops=1)
    expected = io["output"].transpose(0, 2, 3, 1)
    assert relative_error(theirs, expected) < 1e-4
    # And without them it is another, near one.
    assert 1e-4 < relative_error(original, expected) < 0.5


def replace_eps(norm, eps):
    norm = jax.tree.map(lambda leaf: leaf, norm)
    object.__setattr__(norm, "eps", eps)
    return norm


def inputs(x, t, y):
    return jnp.asarray(x.transpose(0, 2, 3, 1)), jnp.asarray(t / 1000, jnp.float32), jnp.asarray(y, jnp.int32)


def test_a_number_in_a_name_makes_no_large_network(model, tmp_path):
    tensors = facebook_tensors(model)
    tensors["blocks.99999999.mlp.fc1.bias"] = tensors["blocks.0.mlp.fc1.bias"]
    with pytest.raises(WeightsError, match=r"(?s)missing: blocks\.3\..*unused: blocks\.99999999\.mlp\.fc1\.bias"):
        load_dit(write_facebook(tmp_path / "dit.pt", tensors), num_heads=2)


@pytest.mark.parametrize("shape", [(), (0, 4, 2, 2), (24,), (7, 4, 2, 2), (24, 4, 0, 0)])
def test_a_file_of_other_sizes_is_no_dit(model, shape, tmp_path):
    tensors = facebook_tensors(model) | {"x_embedder.proj.weight": np.ones(shape, np.float32)}
    with pytest.raises(WeightsError, match=r"dit\.pt"):
        load_dit(write_facebook(tmp_path / "dit.pt", tensors), num_heads=2, latent_size=8)
