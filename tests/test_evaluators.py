"""The networks of the Fréchet Inception and video distances."""

import json
import zlib

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from parity import fixture, relative_error
from weight_files import write_safetensors

from elt_zoo.metrics import (
    I3D,
    InceptionV3,
    i3d_names,
    inception_names,
    load_i3d,
    load_inception,
    resize_video,
)
from elt_zoo.metrics._inception import resize_for_inception
from elt_zoo.pretrained import WeightsError

NETWORKS = {"inception": (InceptionV3, inception_names), "i3d": (I3D, i3d_names)}


def shapes_of(name):
    """The file's shapes by name, from the table."""
    network, names = NETWORKS[name]
    abstract = eqx.filter_eval_shape(network, key=jax.random.key(0))
    leaves = {
        jax.tree_util.keystr(path, simple=True, separator="."): leaf
        for path, leaf in jax.tree.flatten_with_path(abstract)[0]
    }
    rows = names()
    assert sorted(row.target for row in rows) == sorted(leaves)
    return {row.source: row.source_shape(leaves[row.target].shape) for row in rows}


@pytest.fixture(scope="module")
def shapes():
    return shapes_of("inception")


def by_rule(shapes, seed, gain):
    """Weights that follow from their names, as the fixture's do."""
    tensors = {}
    for name, shape in shapes.items():
        rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
        if name.endswith("running_var"):
            value = 1 + np.float32(0.3) * rng.random(shape, np.float32)
        elif name.endswith("running_mean"):
            value = np.float32(0.1) * rng.standard_normal(shape, np.float32)
        elif name.endswith("bias"):
            value = np.float32(0.05) * rng.standard_normal(shape, np.float32)
        elif len(shape) == 1:
            value = 1 + np.float32(0.1) * rng.standard_normal(shape, np.float32)
        else:
            value = rng.standard_normal(shape, np.float32) * np.float32(gain / np.sqrt(np.prod(shape[1:])))
        tensors[name] = value
    return tensors


@pytest.fixture(scope="module")
def path(shapes, tmp_path_factory):
    path = tmp_path_factory.mktemp("inception") / "inception.safetensors"
    counters = {"Mixed_7c.branch_pool.bn.num_batches_tracked": np.asarray(0, np.int64)}
    write_safetensors(path, by_rule(shapes, 9, 1.2) | counters)
    return path


def test_the_network_has_the_published_sizes(shapes):
    # Without its classifier the network is known to have 21,785,568 parameters.
    assert sum(name.endswith("conv.weight") for name in shapes) == 94
    trained = {name: shape for name, shape in shapes.items() if "running" not in name}
    assert sum(int(np.prod(shape)) for shape in trained.values()) == 21_785_568 + 1008 * (2048 + 1)
    assert shapes["fc.weight"] == (1008, 2048)


def test_another_network_is_refused(shapes, path):
    tensors = {name: np.zeros(shape, np.float32) for name, shape in shapes.items() if not name.startswith("Mixed")}
    tensors["fc.weight"], tensors["fc.bias"] = np.zeros((1000, 2048), np.float32), np.zeros(1000, np.float32)
    other = path.with_name("torchvision.safetensors")
    write_safetensors(other, tensors)
    with pytest.raises(WeightsError, match=r"fc\.weight is of shape \(1000, 2048\), expected \(1008, 2048\)") as error:
        load_inception(other)
    assert "missing: Mixed_7c.branch_pool.conv.weight" in str(error.value)


@pytest.mark.slow
def test_the_original_activations(path):
    _, io = fixture("inception_fid")
    model = load_inception(path)
    images = jnp.asarray(io["image_uint8"].transpose(0, 2, 3, 1))
    features = eqx.filter_jit(lambda m, x: jax.vmap(lambda x: (m(x), m.activations(x)))(x))(model, images)
    (pool, logits, spatial), blocks = features
    assert spatial.shape == (3, 17 * 17 * 7)
    assert relative_error(pool, io["pool3"]) < 1e-4
    assert relative_error(logits, io["logits"]) < 1e-4
    resized = jax.vmap(resize_for_inception)(images.astype(jnp.float32))[:, ::8, ::8]
    theirs = io["resized"].transpose(0, 2, 3, 1)
    assert relative_error((resized + 1) / 2, theirs) < 1e-5
    for index in range(3):
        assert relative_error(blocks[index].mean((1, 2)), io[f"block{index}_mean"]) < 1e-4


def test_clips_of_another_size_are_refused():
    model = eqx.filter_eval_shape(I3D, key=jax.random.key(0))
    with pytest.raises(ValueError, match=r"`I3D` got a clip of shape \(16, 64, 64, 3\): it needs 9 frames or more"):
        model(jnp.zeros((16, 64, 64, 3)))
    assert resize_video(jnp.zeros((2, 64, 48, 3))).shape == (2, 224, 224, 3)


@pytest.mark.slow
def test_the_original_i3d(tmp_path):
    folder, io = fixture("i3d")
    settings = json.loads((folder / "config.json").read_text())
    write_safetensors(tmp_path / "i3d", by_rule(shapes_of("i3d"), settings["weight_rule_seed"], settings["gain"]))
    rng = np.random.default_rng(settings["input_seed"])
    video = rng.random(settings["input_shape"], dtype=np.float32) * 2 - 1
    features = eqx.filter_jit(lambda model, video: model(video))(
        load_i3d(tmp_path / "i3d"), jnp.asarray(video[0].transpose(1, 2, 3, 0))
    )
    assert relative_error(features.pool, io["avg_pool"].reshape(-1)) < 1e-4
    assert relative_error(features.logits, io["logits"][0]) < 1e-4
    assert relative_error(jax.nn.softmax(features.logits), io["probabilities"][0]) < 1e-4
