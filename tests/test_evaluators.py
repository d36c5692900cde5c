"""The networks of the Fréchet Inception and video distances."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fixtures.rule import weights
from parity import relative_error
from weight_files import write_safetensors

from elt_zoo.metrics import (
    I3D,
    I3DExtractor,
    InceptionExtractor,
    InceptionResize,
    InceptionV3,
    VideoProtocol,
    resize_video,
)
from elt_zoo.metrics._inception import resize_as_tensorflow, resize_for_inception
from elt_zoo.pretrained import i3d_names, inception_names, load_i3d, load_inception
from elt_zoo.storage import WeightsError

NETWORKS = {"inception": (InceptionV3, inception_names), "i3d": (I3D, i3d_names)}


def shapes_of(name):
    """The file's shapes by name, from the table."""
    network, names = NETWORKS[name]
    abstract = eqx.filter_eval_shape(network, key=jax.random.key(0))
    leaves = {
        jax.tree_util.keystr(path, simple=True, separator="."): leaf
        for path, leaf in jax.tree.flatten_with_path(abstract)[0]
    }
    rows = names(abstract)
    assert sorted(row.target for row in rows) == sorted(leaves)
    return {row.source: row.source_shape(leaves[row.target].shape) for row in rows}


@pytest.fixture(scope="module")
def shapes():
    return shapes_of("inception")


def test_the_network_has_the_published_sizes(shapes):
    # Without its classifier the network is known to have 21,785,568 parameters.
    assert sum(name.endswith("conv.weight") for name in shapes) == 94
    trained = {name: shape for name, shape in shapes.items() if "running" not in name}
    assert sum(int(np.prod(shape)) for shape in trained.values()) == 21_785_568 + 1008 * (2048 + 1)
    assert shapes["fc.weight"] == (1008, 2048)


def test_another_network_is_refused(shapes, tmp_path):
    tensors = {name: np.zeros(shape, np.float32) for name, shape in shapes.items() if not name.startswith("Mixed")}
    tensors |= {"fc.weight": np.zeros((1000, 2048), np.float32), "fc.bias": np.zeros(1000, np.float32)}
    other = tmp_path / "torchvision.safetensors"
    write_safetensors(other, tensors)
    with pytest.raises(WeightsError, match=r"fc\.weight is of shape \(1000, 2048\), expected \(1008, 2048\)") as error:
        load_inception(other)
    assert "missing: Mixed_7c.branch_pool.conv.weight" in str(error.value)


@pytest.mark.slow
def test_the_original_activations(published):
    folder, io = published("inception_fid")
    model = load_inception(folder / "weights.safetensors")
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
def test_the_original_i3d(published):
    folder, io = published("i3d")
    settings = published.config("i3d")
    rng = np.random.default_rng(settings["input_seed"])
    video = rng.random(settings["input_shape"], dtype=np.float32) * 2 - 1
    features = eqx.filter_jit(lambda model, video: model(video))(
        load_i3d(folder / "weights.safetensors"), jnp.asarray(video[0].transpose(1, 2, 3, 0))
    )
    assert relative_error(features.pool, io["avg_pool"].reshape(-1)) < 1e-4
    assert relative_error(features.logits, io["logits"][0]) < 1e-4
    assert relative_error(jax.nn.softmax(features.logits), io["probabilities"][0]) < 1e-4


def resized_as_tensorflow_1(image, size):
    """Output pixel i looks at input position i · old / new."""
    rows, columns = (np.arange(size) * (length / size) for length in image.shape[:2])
    top, left = rows.astype(int), columns.astype(int)
    bottom, right = np.minimum(top + 1, len(image) - 1), np.minimum(left + 1, image.shape[1] - 1)
    x, y = (columns - left)[None, :, None], (rows - top)[:, None, None]
    above = image[top][:, left] * (1 - x) + image[top][:, right] * x
    below = image[bottom][:, left] * (1 - x) + image[bottom][:, right] * x
    return above * (1 - y) + below * y


@pytest.mark.parametrize(("height", "width"), [(32, 48), (512, 320), (299, 299)])
def test_tensorflows_resize_is_not_that_of_pytorch(height, width):
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3)).astype(np.float32)
    expected = resized_as_tensorflow_1(image, 299)
    np.testing.assert_allclose(resize_as_tensorflow(jnp.asarray(image)), expected / 128 - 1, atol=1e-4)
    half_pixel = 127.5 * (np.asarray(resize_for_inception(jnp.asarray(image))) + 1.0)
    assert (np.abs(half_pixel - expected).max() > 10.0) == (height != 299)
    clip = jnp.asarray(np.stack([image, image[::-1]]))
    expected = [resized_as_tensorflow_1(frame, 224) for frame in np.asarray(clip)]
    np.testing.assert_allclose(resize_video(clip, half_pixel=False), expected, atol=2e-2)


ONE = jax.sharding.Mesh(np.asarray(jax.devices()[:1]), ("data",))


def empty(network):
    """A network of zeros, which nothing has to be computed for."""
    abstract = eqx.filter_eval_shape(network, key=jax.random.key(0))
    return jax.tree.map(lambda leaf: jnp.asarray(np.zeros(leaf.shape, leaf.dtype)), abstract)


def test_extractors_are_named_after_their_weights_and_preprocessing():
    network = empty(InceptionV3)
    changed = eqx.tree_at(lambda n: n.fc.bias, network, network.fc.bias + 1.0)
    adm, other = (InceptionExtractor(weights, mesh=ONE) for weights in (network, changed))
    fid = InceptionExtractor(network, resize=InceptionResize.PYTORCH_FID, mesh=ONE)
    assert adm.name.startswith("inception-v3-2015, tensorflow resize, weights ")
    assert len({adm.name, other.name, fid.name}) == 3 and adm.num_features == 2048
    assert (adm.distance, adm.score, adm.description) == ("FID", "Inception score", None)
    with pytest.raises(ValueError, match="pixels are not finite"):
        adm(np.full((1, 8, 8, 3), np.nan, np.float32))
    with pytest.raises(ValueError, match=r"`batch_size=2` cannot be shared by 4 device"):
        InceptionExtractor(network, batch_size=2)


def test_video_protocols_say_what_clips_must_be():
    network = empty(I3D)
    protocols = [VideoProtocol.magvit(), VideoProtocol.stylegan_v()]
    magvit, stylegan_v = (I3DExtractor(network, protocol, mesh=ONE) for protocol in protocols)
    assert magvit.name.startswith("i3d-kinetics-400 logits, magvit protocol, weights ")
    assert stylegan_v.name == magvit.name.replace("magvit", "stylegan-v")
    assert magvit.num_features == 400 and magvit.distance == "FVD" and magvit.score is None
    # How many clips a protocol asks for is not how many are measured: the evaluation says that.
    assert stylegan_v.description == {
        "name": "stylegan-v",
        "frames": 16,
        "stride": 1,
        "resolution": 256,
        "half_pixel": True,
        "round_to_bytes": True,
    }
    with pytest.raises(ValueError, match=r"'magvit' compares clips of shape \(16, 128, 128, 3\); got \(17, 128,"):
        magvit(np.zeros((1, 17, 128, 128, 3), np.uint8))
    with pytest.raises(ValueError, match="pixels are not finite"):
        magvit(np.full((1, 16, 128, 128, 3), np.nan, np.float32))


@pytest.mark.slow
def test_features_of_images_are_those_of_their_bytes(published):
    folder, io = published("inception_fid")
    network, images = load_inception(folder / "weights.safetensors"), io["image_uint8"].transpose(0, 2, 3, 1)
    extractor = InceptionExtractor(network, resize=InceptionResize.PYTORCH_FID, batch_size=4)
    features = extractor(images)
    assert relative_error(features.pool, io["pool3"]) < 1e-4
    # With random weights all images look nearly alike; what sets them apart must agree too.
    assert relative_error(features.pool - features.pool.mean(0), io["pool3"] - io["pool3"].mean(0)) < 1e-2
    # The Inception score of ADM and torch-fidelity takes logits without the bias.
    assert relative_error(features.logits, io["logits"] - np.asarray(network.fc.bias)) < 1e-4
    near = (images / 127.5 - 1.0).astype(np.float32) + 0.003
    np.testing.assert_array_equal(extractor(near).pool, features.pool)
    other = InceptionExtractor(network, batch_size=4)(images)
    assert 1e-4 < relative_error(other.pool, features.pool) < 1e-2


@pytest.mark.slow
def test_features_of_clips_follow_the_protocol(tmp_path):
    write_safetensors(tmp_path / "i3d", weights(shapes_of("i3d"), 3, 1.2))
    network = load_i3d(tmp_path / "i3d")
    protocol = dataclasses.replace(VideoProtocol.magvit(), name="ours", frames=9, resolution=32)
    clips = np.random.default_rng(0).integers(0, 256, (1, 9, 32, 32, 3)).astype(np.uint8)
    features = I3DExtractor(network, protocol, batch_size=1, mesh=ONE)(clips).pool
    prepared = np.stack([resized_as_tensorflow_1(frame, 224) for frame in clips[0] / 127.5 - 1.0])
    expected = eqx.filter_jit(network)(jnp.asarray(prepared, jnp.float32)).logits
    assert relative_error(features[0], expected) < 1e-4


def test_missing_weights_are_said_where_to_get(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"Download pt_inception-2015-12-05-6726825d\.pth from https://github.com"
    ):
        load_inception(tmp_path / "none.pth")
    with pytest.raises(FileNotFoundError, match=r"Download model_rgb\.pth from https://github.com/hassony2"):
        load_i3d(tmp_path / "none.pth")
