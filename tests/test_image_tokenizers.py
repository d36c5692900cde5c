"""The convolutional tokenizers: what they compute, their published files, and the original networks' outputs."""

import dataclasses
import json
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from parity import relative_error
from weight_files import nested, write_msgpack, write_safetensors, write_torch_zip

from elt_zoo.pretrained import (
    autoencoder_kl_names,
    load_autoencoder_kl,
    load_maskgit_vqgan,
    load_vq3d,
    vq3d_flax_names,
    vqgan_flax_names,
    vqgan_torch_names,
)
from elt_zoo.storage import WeightsError, write_folder
from elt_zoo.tokenizers import (
    AutoencoderKLConfig,
    PatchCodebook,
    Shortcut,
    VQ3DConfig,
    VQGANConfig,
    inflate,
    load_tokenizer,
    save_tokenizer,
)

VQGAN = VQGANConfig(
    image_size=8,
    filters=32,
    channel_multipliers=(1, 2, 2),
    num_res_blocks=1,
    embedding_dim=4,
    codebook_size=9,
)
VIDEO = VQ3DConfig(
    shape=(4, 8, 8),
    filters=32,
    channel_multipliers=(1, 2, 2),
    temporal_downsample=(True, False),
    num_enc_res_blocks=1,
    num_dec_res_blocks=2,
    embedding_dim=4,
    codebook_size=9,
)
KL = AutoencoderKLConfig(block_out_channels=(4, 8, 8), layers_per_block=1, latent_channels=2, groups=2)


# One program for a whole network, which compiles sooner than its operations one by one.
run = eqx.filter_jit(lambda function, *arguments: function(*arguments))


def filled(config):
    """A network of random arrays, small enough that many layers stay in range."""
    rng = np.random.default_rng(7)
    return jax.tree.map(
        lambda leaf: jnp.asarray(0.1 * rng.standard_normal(leaf.shape), jnp.float32),
        eqx.filter_eval_shape(config.build, key=jax.random.key(0)),
    )


@pytest.fixture(scope="module")
def vqgan():
    return filled(VQGAN)


@pytest.fixture(scope="module")
def video_vq():
    return filled(VIDEO)


@pytest.fixture(scope="module")
def autoencoder():
    return filled(KL)


def dotted(tree):
    leaves = jax.tree.flatten_with_path(eqx.filter(tree, eqx.is_array))[0]
    return {jax.tree_util.keystr(path, simple=True, separator="."): np.asarray(leaf) for path, leaf in leaves}


def official(tree, rows):
    """A file's tensors from our leaves; convolutions are turned by hand, not by the table's own rule."""
    leaves, tensors = dotted(tree), {}
    for row in rows:
        value = leaves[row.target][row.region]
        tensors[row.source] = value.transpose(3, 2, 0, 1) if row.layout else value
    return tensors


def test_a_built_tokenizer_is_a_pytree_of_float32():
    model = VQGAN.build(key=jax.random.key(0))
    assert {leaf.dtype for leaf in jax.tree.leaves(model)} == {jnp.dtype(jnp.float32)}
    assert jax.tree.structure(model) == jax.tree.structure(filled(VQGAN))
    assert 0.3 < float(jnp.std(model.codebook)) < 0.7


def test_images_become_ids_and_ids_images(vqgan):
    image = jax.random.uniform(jax.random.key(1), (8, 8, 3), minval=-1.0)
    ids = run(vqgan.encode, image)
    assert ids.shape == vqgan.grid == (2, 2) and ids.dtype == jnp.int32 and vqgan.codebook_size == 9
    # The nearest code, by the definition.
    latents = np.asarray(run(vqgan.latents, (image + 1) / 2), np.float64)
    distances = ((latents[:, :, None] - np.asarray(vqgan.codebook, np.float64)) ** 2).sum(-1)
    np.testing.assert_array_equal(ids, distances.argmin(-1))
    decoded = run(vqgan.decode, ids)
    assert decoded.shape == (8, 8, 3) and float(jnp.max(jnp.abs(decoded))) <= 1
    np.testing.assert_allclose(decoded, 2 * jnp.clip(run(vqgan.reconstruct, ids), 0, 1) - 1, rtol=1e-5, atol=1e-5)


def test_the_released_shortcut_drops_the_input_and_the_intended_one_does_not(vqgan):
    """Whoever "fixes" the released behaviour breaks the released weights."""
    changing = vqgan.encoder.levels[1][0]
    assert changing.mode == Shortcut.BRANCH and changing.shortcut.weight.shape == (1, 1, 64, 64)
    x = jax.random.normal(jax.random.key(1), (4, 4, 32))
    branch = changing.conv2(jax.nn.silu(changing.norm2(changing.conv1(jax.nn.silu(changing.norm1(x))))))
    np.testing.assert_allclose(changing(x), branch + changing.shortcut(branch), rtol=1e-4, atol=1e-5)
    intended = dataclasses.replace(VQGAN, shortcut=Shortcut.INPUT).build(key=jax.random.key(0)).encoder.levels[1][0]
    assert intended.shortcut.weight.shape == (1, 1, 32, 64)
    # With a branch of zero the output is the shortcut of the input alone.
    silent = eqx.tree_at(lambda block: block.conv2.weight, intended, jnp.zeros((3, 3, 64, 64)))
    np.testing.assert_allclose(silent(x), intended.shortcut(x), rtol=1e-5, atol=1e-5)
    silent = eqx.tree_at(lambda block: block.conv2.weight, changing, jnp.zeros((3, 3, 64, 64)))
    np.testing.assert_array_equal(silent(x), jnp.zeros((4, 4, 64)))


def test_the_released_sizes_have_the_published_parameter_counts():
    model = eqx.filter_eval_shape(VQGANConfig().build, key=jax.random.key(0))

    def count(tree):
        return sum(leaf.size for leaf in jax.tree.leaves(tree) if hasattr(leaf, "size"))

    assert (count(model.encoder), count(model.decoder), count(model)) == (23_775_104, 30_478_339, 54_515_587)
    assert model.grid == (16, 16)
    # diffusers' AutoencoderKL of Stable Diffusion.
    assert count(eqx.filter_eval_shape(AutoencoderKLConfig().build, key=jax.random.key(0))) == 83_653_863
    assert eqx.filter_eval_shape(VQ3DConfig().build, key=jax.random.key(0)).grid == (4, 16, 16)


def test_wrong_inputs_of_tokenizers_are_refused(vqgan, video_vq, autoencoder):
    with pytest.raises(ValueError, match=r"`MaskGITVQGAN.encode` got an image of shape \(4, 8, 3\) but works on \(8"):
        vqgan.encode(jnp.zeros((4, 8, 3)))
    with pytest.raises(ValueError, match=r"`MaskGITVQGAN.decode` got ids of shape \(1, 4\)"):
        vqgan.decode(jnp.zeros((1, 4), jnp.int32))
    with pytest.raises(ValueError, match="id outside the codebook, which has ids 0 to 8"):
        vqgan.decode(jnp.full((2, 2), 9))
    assert jnp.isnan(run(vqgan.decode, jnp.full((2, 2), 9))).all()
    with pytest.raises(ValueError, match=r"`VQ3D.encode` got a video of shape"):
        video_vq.encode(jnp.zeros((2, 8, 8, 3)))
    with pytest.raises(ValueError, match=r"`VQ3D.decode` got ids of shape"):
        video_vq.decode(jnp.zeros((4, 2, 2), jnp.int32))
    with pytest.raises(ValueError, match=r"`AutoencoderKL.encode` got 6 × 8 pixels, but .* by 4 × 4"):
        autoencoder.encode(jnp.zeros((6, 8, 3)))
    with pytest.raises(ValueError, match=r"latents of shape \(2, 2, 4\), but it has 2 latent channels"):
        autoencoder.decode(jnp.zeros((2, 2, 4)))
    with pytest.raises(ValueError, match=r"`MaskGITVQGAN.latents` got 6 × 8 pixels"):
        vqgan.latents(jnp.zeros((6, 8, 3)))
    with pytest.raises(ValueError, match=r"`VQ3D.latents` got 3 × 8 × 8 pixels, but .* by 2 × 4 × 4"):
        video_vq.latents(jnp.zeros((3, 8, 8, 3)))
    for config, changes in [
        (VQGAN, {"channel_multipliers": (1,)}),
        (VQGAN, {"num_res_blocks": 0}),
        (VIDEO, {"codebook_size": 0}),
        (KL, {"block_out_channels": ()}),
    ]:
        with pytest.raises(ValueError, match="needs two levels or more, and sizes of at least one"):
            dataclasses.replace(config, **changes)
    with pytest.raises(ValueError, match=r"not of Stable Diffusion's kind: \{'_class_name': 'AutoencoderTiny'\}"):
        AutoencoderKLConfig.from_diffusers(diffusers_config(_class_name="AutoencoderTiny"))
    assert AutoencoderKLConfig.from_diffusers(diffusers_config(up_block_types=("UpDecoderBlock2D",) * 3)) == KL
    with pytest.raises(ValueError, match=r"`VQGANConfig\(image_size=10\)` must be a multiple of 4"):
        dataclasses.replace(VQGAN, image_size=10)
    with pytest.raises(ValueError, match="needs one entry for each of the 2 levels"):
        dataclasses.replace(VIDEO, temporal_downsample=(True,))
    with pytest.raises(ValueError, match=r"must be a multiple of \(2, 4, 4\)"):
        dataclasses.replace(VIDEO, shape=(3, 8, 8))


def test_video_becomes_ids_and_ids_video(video_vq):
    video = jax.random.uniform(jax.random.key(1), (4, 8, 8, 3), minval=-1.0)
    ids = run(video_vq.encode, video)
    assert ids.shape == video_vq.grid == (2, 2, 2) and video_vq.codebook_size == 9
    assert run(video_vq.decode, ids).shape == video.shape


def test_an_inflated_image_model_is_that_model_on_still_video(vqgan):
    image_config = dataclasses.replace(VQGAN, shortcut=Shortcut.INPUT)
    image_model = filled(image_config)
    config = dataclasses.replace(VIDEO, num_dec_res_blocks=1)
    video_model = inflate(image_model, config)
    image = jax.random.uniform(jax.random.key(1), (8, 8, 3))
    latents = run(video_model.latents, jnp.stack([image] * 4))
    still = run(image_model.latents, image)
    np.testing.assert_allclose(latents, jnp.stack([still] * 2), rtol=1e-3, atol=1e-4)
    ids = jnp.asarray([[1, 2], [3, 8]])
    np.testing.assert_allclose(
        run(video_model.reconstruct, jnp.stack([ids] * 2)),
        jnp.stack([run(image_model.reconstruct, ids)] * 4),
        rtol=1e-3,
        atol=1e-4,
    )
    with pytest.raises(ValueError, match=r"needs an image model with `shortcut=Shortcut\.INPUT`"):
        inflate(vqgan, config)
    with pytest.raises(ValueError, match=r"decoder\.mid\.1\.norm1\.weight is of shape None in the image model"):
        inflate(image_model, VIDEO)
    with pytest.raises(ValueError, match=r"is of shape \(9, 4\) in the image model and \(7, 4\) in the 3D-VQ"):
        inflate(image_model, dataclasses.replace(config, codebook_size=7))


def test_latents_are_drawn_from_the_encoder_s_gaussian(autoencoder):
    image = jax.random.uniform(jax.random.key(1), (8, 8, 3), minval=-1.0)
    mean, log_variance = run(autoencoder.encode, image)
    assert mean.shape == log_variance.shape == (2, 2, 2)
    keys = jax.random.split(jax.random.key(2), 4000)
    drawn = run(jax.vmap(lambda key: autoencoder.sample(image, key=key)), keys) / KL.scaling_factor
    np.testing.assert_allclose(jnp.mean(drawn, axis=0), mean, atol=0.1)
    np.testing.assert_allclose(jnp.std(drawn, axis=0), jnp.exp(0.5 * log_variance), rtol=0.1)
    assert run(autoencoder.decode, drawn[0]).shape == (8, 8, 3)
    extreme = eqx.tree_at(lambda a: a.quant_conv.bias, autoencoder, jnp.asarray([0.0, 0.0, 100.0, -100.0]))
    np.testing.assert_array_equal(run(extreme.encode, image)[1][0, 0], [20.0, -30.0])


@pytest.mark.parametrize("name", ["vqgan", "video_vq", "autoencoder"])
def test_bfloat16_parameters_give_near_the_same(name, request):
    model = request.getfixturevalue(name)
    narrow = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16) if eqx.is_inexact_array(leaf) else leaf, model)
    x = jax.random.uniform(jax.random.key(1), (4, 8, 8, 3) if name == "video_vq" else (8, 8, 3))
    call = (
        (lambda m: run(m.encode, x)[0]) if name == "autoencoder" else (lambda m: run(m.latents, x).astype(jnp.float32))
    )
    assert relative_error(call(narrow), call(model)) < 0.1
    back = jnp.ones((2, 2, 2)) if name == "autoencoder" else jnp.zeros(model.grid, jnp.int32)
    decoded = run(narrow.decode, back)
    assert decoded.dtype == jnp.float32 and bool(jnp.all(jnp.isfinite(decoded)))


CASES = {
    "vqgan-flax": ("vqgan", VQGAN, vqgan_flax_names),
    "vqgan-torch": ("vqgan", VQGAN, vqgan_torch_names),
    "vq3d-flax": ("video_vq", VIDEO, vq3d_flax_names),
    "kl": ("autoencoder", KL, autoencoder_kl_names),
    "kl-old": ("autoencoder", KL, lambda config: autoencoder_kl_names(config, old_attention=True)),
}


@pytest.mark.parametrize("case", CASES)
def test_the_tables_fill_every_leaf_once(case, request):
    name, config, names = CASES[case]
    count = {path: np.zeros(leaf.shape) for path, leaf in dotted(request.getfixturevalue(name)).items()}
    rows = names(config)
    assert len({row.source for row in rows}) == len(rows)
    for row in rows:
        count[row.target][row.region] += 1
    assert [path for path, leaf in count.items() if not np.all(leaf == 1)] == []


def test_vqgan_files_come_back(vqgan, tmp_path):
    flax = {f"params/{name}": value for name, value in official(vqgan, vqgan_flax_names(VQGAN)).items()}
    torch = official(vqgan, vqgan_torch_names(VQGAN))
    write_msgpack(tmp_path / "tokenizer_checkpoint", nested(flax))
    write_torch_zip(tmp_path / "vqgan.bin", torch)
    write_safetensors(tmp_path / "vqgan.safetensors", torch)
    for name in ("tokenizer_checkpoint", "vqgan.bin", "vqgan.safetensors"):
        assert eqx.tree_equal(load_maskgit_vqgan(tmp_path / name, image_size=8), vqgan)
    narrow = load_maskgit_vqgan(tmp_path / "vqgan.bin", image_size=8, dtype=jnp.bfloat16)
    assert narrow.codebook.dtype == jnp.bfloat16


def test_3d_vq_files_come_back(video_vq, tmp_path):
    tensors = {f"params/{name}": value for name, value in official(video_vq, vq3d_flax_names(VIDEO)).items()}
    write_msgpack(tmp_path / "checkpoint", nested(tensors))
    loaded = load_vq3d(tmp_path / "checkpoint", shape=(4, 8, 8), temporal_downsample=(True, False))
    assert eqx.tree_equal(loaded, video_vq)
    with pytest.raises(ValueError, match="needs one entry for each of the 2 levels"):
        load_vq3d(tmp_path / "checkpoint", shape=(4, 8, 8))


def diffusers_config(**changes):
    return {
        "_class_name": "AutoencoderKL",
        "block_out_channels": [4, 8, 8],
        "layers_per_block": 1,
        "latent_channels": 2,
        "norm_num_groups": 2,
        "down_block_types": ["DownEncoderBlock2D"] * 3,
        "up_block_types": ["UpDecoderBlock2D"] * 3,
    } | changes


def write_diffusers(folder, tensors, **changes):
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(diffusers_config(**changes)))
    write_safetensors(folder / "diffusion_pytorch_model.safetensors", tensors)
    return folder


def test_autoencoder_folders_of_both_generations_come_back(autoencoder, tmp_path):
    write_diffusers(tmp_path / "new", official(autoencoder, autoencoder_kl_names(KL)))
    old = official(autoencoder, autoencoder_kl_names(KL, old_attention=True))
    write_diffusers(tmp_path / "old", old)
    # The oldest have 1×1 convolutions for attention's linear maps.
    maps = {name for name in old if "attentions" in name and name.endswith("weight") and old[name].ndim == 2}
    assert len(maps) == 8
    oldest = {name: value[:, :, None, None] if name in maps else value for name, value in old.items()}
    write_diffusers(tmp_path / "vae", oldest)
    for path in ("new", "old", "vae", "."):
        assert eqx.tree_equal(load_autoencoder_kl(tmp_path / path), autoencoder)


def test_files_that_are_no_tokenizer_are_refused(vqgan, autoencoder, tmp_path):
    torch = official(vqgan, vqgan_torch_names(VQGAN))
    del torch["decoder.conv_out.bias"]
    name = "encoder.down.1.block.0.conv2.weight"
    torch[name] = torch[name].transpose(2, 3, 1, 0)
    write_torch_zip(tmp_path / "vqgan.bin", torch)
    with pytest.raises(WeightsError, match=r"vqgan\.bin does not hold") as error:
        load_maskgit_vqgan(tmp_path / "vqgan.bin", image_size=8)
    assert "missing: decoder.conv_out.bias (3,)" in str(error.value)
    assert f"different: {name} is of shape (3, 3, 64, 64), expected (64, 64, 3, 3)" in str(error.value)
    name = "encoder.down.0.block.0.conv1.weight"
    write_torch_zip(tmp_path / "vqgan.bin", torch | {name: torch[name].transpose(2, 3, 1, 0)})
    with pytest.raises(WeightsError, match=r"vqgan\.bin is not a VQGAN: its levels are"):
        load_maskgit_vqgan(tmp_path / "vqgan.bin", image_size=8)
    write_msgpack(tmp_path / "flax", {"params": {"quantizer": {"codebook": np.zeros((9, 4), np.float32)}}})
    with pytest.raises(WeightsError, match="is not a VQGAN: it has -1 levels"):
        load_maskgit_vqgan(tmp_path / "flax")
    tensors = official(autoencoder, autoencoder_kl_names(KL))
    write_diffusers(tmp_path / "kl", tensors, act_fn="relu", use_quant_conv=False)
    with pytest.raises(ValueError, match="'act_fn': 'relu', 'use_quant_conv': False"):
        load_autoencoder_kl(tmp_path / "kl")
    write_diffusers(tmp_path / "kl", tensors | {"extra": np.zeros(2, np.float32)})
    with pytest.raises(WeightsError, match=r"unused: extra \(2,\)"):
        load_autoencoder_kl(tmp_path / "kl")


@pytest.mark.parametrize("name", ["vqgan", "video_vq", "autoencoder"])
def test_tokenizers_are_saved_and_loaded(name, request, tmp_path):
    tokenizer = request.getfixturevalue(name)
    folder = save_tokenizer(tmp_path / "saved", tokenizer, metadata={"steps": 3})
    assert eqx.tree_equal(load_tokenizer(folder), tokenizer)
    with pytest.raises(FileExistsError, match="already holds a model"):
        save_tokenizer(folder, tokenizer)
    save_tokenizer(folder, tokenizer, overwrite=True)
    loaded: Any = load_tokenizer(folder, dtype=jnp.bfloat16)
    assert loaded.config == tokenizer.config


def test_folders_that_hold_no_tokenizer_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="No tokenizer at"):
        load_tokenizer(tmp_path)
    folder = save_tokenizer(tmp_path / "saved", PatchCodebook(jnp.zeros((5, 4)), (4, 4, 1), 2))
    write_folder(folder, {}, {"tokenizer": {"kind": "gan"}})
    with pytest.raises(WeightsError, match="unknown tokenizer 'gan'"):
        load_tokenizer(folder)
    write_folder(folder, {}, {"model": {}, "tokenizer": None})
    with pytest.raises(WeightsError, match="holds a model, not a tokenizer alone"):
        load_tokenizer(folder)


@pytest.mark.slow
@pytest.mark.numerical
@pytest.mark.parametrize(
    ("name", "file"),
    [("maskgit_vqgan_flax", "checkpoint.msgpack"), ("maskgit_vqgan_torch", "pytorch_model.bin")],
)
def test_the_original_vqgan(name, file, published):
    folder, io = published(name)
    model = load_maskgit_vqgan(folder / file, image_size=64)
    last = name.endswith("flax")
    image, latents, decoded = (io[key] if last else io[key].transpose(0, 2, 3, 1) for key in VQ_KEYS["image"])
    ids = io["ids"].reshape(len(image), *model.grid)
    assert relative_error(run(jax.vmap(model.latents), image), latents) < 1e-4
    np.testing.assert_array_equal(run(jax.vmap(model.encode), 2 * image - 1), ids)
    assert relative_error(run(jax.vmap(model.reconstruct), jnp.asarray(ids, jnp.int32)), decoded) < 1e-4


VQ_KEYS = {kind: (kind, "encoder_output", "decoded") for kind in ("image", "video")}


@pytest.mark.slow
@pytest.mark.numerical
def test_the_original_3d_vq(published):
    folder, io = published("magvit_vq3d_flax")
    model = load_vq3d(folder / "checkpoint.msgpack", shape=io["video"].shape[1:4])
    video, latents, decoded = (io[key] for key in VQ_KEYS["video"])
    assert relative_error(run(jax.vmap(model.latents), video), latents) < 1e-4
    np.testing.assert_array_equal(run(jax.vmap(model.encode), 2 * video - 1), io["ids"])
    assert relative_error(run(jax.vmap(model.reconstruct), io["ids"]), decoded) < 1e-4


@pytest.mark.slow
@pytest.mark.numerical
@pytest.mark.parametrize("old", [False, True])
def test_the_original_autoencoder(old, tmp_path, published):
    folder, io = published("autoencoder_kl_diffusers")
    if old:
        (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
        weights = (folder / "old_attention_names.safetensors").read_bytes()
        (tmp_path / "diffusion_pytorch_model.safetensors").write_bytes(weights)
        folder = tmp_path
    model = load_autoencoder_kl(folder)
    io = {key: value.transpose(0, 2, 3, 1) for key, value in io.items()}
    mean, log_variance = run(jax.vmap(model.encode), io["image"])
    assert relative_error(mean, io["mean"]) < 1e-4
    assert relative_error(log_variance, io["logvar"]) < 1e-4
    decoded = run(jax.vmap(model.decode), model.config.scaling_factor * io["latent"])
    assert relative_error(decoded, io["decoded"]) < 1e-4
