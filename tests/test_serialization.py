import json

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import elt_zoo
from elt_zoo.families import DiTConfig, MaskGITConfig
from elt_zoo.generator import Generator, bundled_names
from elt_zoo.storage import WeightsError
from elt_zoo.tokenizers import AbstractTokenizer, GreyLevels, PatchCodebook

MASKED = MaskGITConfig(dim=8, num_layers=2, max_loops=3, num_heads=2, num_classes=4, grid=(2, 2), codebook_size=5)
DIFFUSION = DiTConfig(dim=8, num_layers=1, max_loops=2, num_heads=2, num_classes=4, shape=(4, 4, 1))
CODEBOOK = PatchCodebook(jnp.linspace(-1.0, 1.0, 20).reshape(5, 4), (4, 4, 1), 2)


@pytest.fixture(scope="module")
def masked():
    return MASKED.build(key=jax.random.key(0))


@pytest.fixture
def saved(masked, tmp_path):
    return elt_zoo.save(tmp_path / "model", Generator(masked, MASKED, tokenizer=CODEBOOK, metadata={"steps": 7}))


def rewrite_config(folder, **changes):
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def rewrite_weights(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("config", "tokenizer"), [(MASKED, CODEBOOK), (MASKED, GreyLevels((2, 2, 1), 5)), (MASKED, None), (DIFFUSION, None)]
)
def test_what_is_saved_comes_back_bit_for_bit(config, tokenizer, tmp_path):
    model = config.build(key=jax.random.key(3))
    folder = elt_zoo.save(
        tmp_path / "new" / "model", Generator(model, config, tokenizer=tokenizer, metadata={"a": [1, "b"]})
    )
    loaded = elt_zoo.load(folder)
    assert eqx.tree_equal(loaded.model, model)
    assert eqx.tree_equal(loaded.tokenizer, tokenizer)
    assert loaded.config == config and loaded.metadata == {"a": [1, "b"]}
    assert sorted(file.name for file in folder.iterdir()) == ["config.json", "model.safetensors"]


def test_the_file_is_readable_elsewhere_by_the_names_of_attributes(saved, masked):
    tensors = load_file(saved / "model.safetensors")
    np.testing.assert_array_equal(
        tensors["model.trunk.layers.attention.qkv.weight"], masked.trunk.layers.attention.qkv.weight
    )
    np.testing.assert_array_equal(tensors["tokenizer.codebook"], CODEBOOK.codebook)
    described = json.loads((saved / "config.json").read_text())
    assert described["format_version"] == 1 and described["model"]["family"] == "maskgit"


def test_a_model_is_not_overwritten_unless_asked(saved, masked):
    before = (saved / "model.safetensors").read_bytes()
    other = jax.tree.map(lambda leaf: leaf + 1.0 if eqx.is_inexact_array(leaf) else leaf, masked)
    with pytest.raises(FileExistsError, match="already holds a model"):
        elt_zoo.save(saved, Generator(other, MASKED))
    assert (saved / "model.safetensors").read_bytes() == before
    elt_zoo.save(saved, Generator(other, MASKED), overwrite=True)
    assert eqx.tree_equal(elt_zoo.load(saved).model, other) and elt_zoo.load(saved).tokenizer is None


def test_a_failed_save_leaves_nothing_behind(masked, saved, tmp_path):
    class Mine(AbstractTokenizer):
        codebook_size = 5
        grid = (2, 2)
        shape = (2, 2, 1)

        def encode(self, image):
            return image

        def decode(self, ids):
            return ids

    fresh = tmp_path / "fresh"
    with pytest.raises(TypeError, match="A tokenizer of type Mine cannot be described"):
        elt_zoo.save(fresh, Generator(masked, MASKED, tokenizer=Mine()))
    with pytest.raises(TypeError, match="holds what JSON cannot"):
        elt_zoo.save(fresh, Generator(masked, MASKED, metadata={"score": jnp.ones(2)}))
    with pytest.raises(ValueError, match=r"does not build this model:\n  missing: head\.modulation\.bias"):
        elt_zoo.save(fresh, Generator(masked, DIFFUSION))
    assert not fresh.exists()
    with pytest.raises(TypeError):
        elt_zoo.save(saved, Generator(masked, MASKED, metadata={"score": jnp.ones(2)}), overwrite=True)
    assert elt_zoo.load(saved).metadata == {"steps": 7}


def test_every_difference_of_the_weights_is_named_at_once(saved):
    def change(tensors):
        del tensors["model.head.bias"]
        tensors["model.extra"] = np.zeros(3, np.float32)
        tensors["model.head.hidden.weight"] = tensors["model.head.hidden.weight"][:4]
        tensors["model.head.hidden.bias"] = tensors["model.head.hidden.bias"].astype(np.int32)

    rewrite_weights(saved, change)
    with pytest.raises(WeightsError, match="does not hold the tensors of this network") as error:
        elt_zoo.load(saved)
    for line in (
        "missing: model.head.bias (5,)",
        "unused: model.extra (3,)",
        "different: model.head.hidden.weight is of shape (4, 8), expected (8, 8)",
        "different: model.head.hidden.bias is of type int32, expected float32",
    ):
        assert line in str(error.value)


def test_a_model_is_read_into_another_dtype_and_onto_a_sharding(saved, masked):
    loaded = elt_zoo.load(saved, dtype=jnp.bfloat16)
    narrowed = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16) if eqx.is_array(leaf) else leaf, masked)
    assert eqx.tree_equal(loaded.model, narrowed)
    mesh = jax.sharding.Mesh(np.asarray(jax.devices()[:2]), ("model",))

    def rows(name, shape):
        spec = ("model",) if name.endswith("up.weight") and shape[0] % 2 == 0 else ()
        return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*spec))

    sharded = elt_zoo.load(saved, sharding=rows).model
    assert sharded.trunk.layers.mlp.up.weight.sharding.spec == jax.sharding.PartitionSpec("model")
    assert len(sharded.head.hidden.weight.sharding.device_set) == 2
    assert eqx.tree_equal(jax.device_get(sharded), jax.device_get(masked))
    second = elt_zoo.load(saved, sharding=jax.sharding.SingleDeviceSharding(jax.devices()[1])).model
    assert second.head.bias.devices() == {jax.devices()[1]}


def test_weights_in_half_precision_are_widened_and_in_double_refused(saved):
    def narrow(tensors):
        tensors["model.head.hidden.bias"] = np.linspace(0, 1, 8).astype(np.float16)

    rewrite_weights(saved, narrow)
    bias = elt_zoo.load(saved).model.head.hidden.bias
    assert bias.dtype == jnp.float32
    np.testing.assert_array_equal(bias, np.linspace(0, 1, 8).astype(np.float16).astype(np.float32))

    def widen(tensors):
        tensors["model.head.hidden.bias"] = np.zeros(8)

    rewrite_weights(saved, widen)
    with pytest.raises(WeightsError, match=r"head\.hidden\.bias is of type float64, expected float32"):
        elt_zoo.load(saved)


@pytest.mark.parametrize("size", [0, 5, 200, -1])
def test_truncated_weights_are_refused(saved, size):
    file = saved / "model.safetensors"
    file.write_bytes(file.read_bytes()[:size])
    with pytest.raises(WeightsError, match=r"model\.safetensors (is|has) .*(truncated|damaged)"):
        elt_zoo.load(saved)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"format_version": "one"}', '{"format_version": null}'])
def test_a_damaged_config_is_refused(saved, text):
    (saved / "config.json").write_text(text)
    with pytest.raises(WeightsError, match=r"config\.json is damaged or not a config of elt_zoo"):
        elt_zoo.load(saved)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"format_version": 2}, "format version 2; this elt_zoo reads up to 1. Install a newer"),
        ({"model": {"family": "gan"}}, "of the family 'gan'; known are"),
        ({"model": MASKED.to_dict() | {"depth": 3}}, "unknown: depth"),
        ({"model": MASKED.to_dict() | {"num_heads": 3}}, "heads must divide the width"),
        ({"tokenizer": {"kind": "gan", "shape": [4, 4, 1]}}, "unknown tokenizer 'gan'"),
        ({"tokenizer": {"kind": "grey_levels"}}, "cannot be used"),
    ],
)
def test_a_config_of_another_kind_is_refused(saved, changes, text):
    rewrite_config(saved, **changes)
    with pytest.raises(WeightsError, match=text):
        elt_zoo.load(saved)


def test_an_unknown_place_is_named_with_what_there_is(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"No model at 'digits-gan'.*bundled model"):
        elt_zoo.load("digits-gan")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors"):
        elt_zoo.load(tmp_path)


def test_the_bundled_models_load_and_are_small():
    assert set(bundled_names()) >= {"digits-dit", "digits-maskgit"}
    for name in ("digits-dit", "digits-maskgit"):
        loaded = elt_zoo.load(name)
        assert loaded.config == elt_zoo.families.preset(name) and loaded.metadata["objective"] == "ilsd"
        assert sum(leaf.nbytes for leaf in jax.tree.leaves(eqx.filter(loaded.model, eqx.is_array))) < 1_000_000
