"""Our networks and readers beside diffusers and PyTorch themselves, where those are installed (`elt_zoo[parity]`)."""

import importlib
import warnings

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from parity import relative_error
from test_load_dit import as_diffusers

from elt_zoo.models import BatchedPredict
from elt_zoo.pretrained import load_autoencoder_kl, load_dit
from elt_zoo.storage import read_tensors

torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install 'elt_zoo[parity]'")
with warnings.catch_warnings():
    # What their imports say of each other is not ours to mend.
    warnings.simplefilter("ignore")
    importlib.import_module("fixtures.torchvision_import").import_torchvision()
    models = pytest.importorskip("diffusers.models", reason="diffusers is not installed: pip install 'elt_zoo[parity]'")

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")


def randomized(module):
    """Every parameter random, so that nothing is hidden by zeros."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            scale = 0.1 if parameter.ndim == 1 else 0.8 / parameter[0].numel() ** 0.5
            centre = float("norm" in name and name.endswith("weight") and parameter.ndim == 1)
            parameter.copy_(centre + scale * torch.randn(parameter.shape, generator=generator))
    return module.eval()


def channels_first(array):
    return torch.from_numpy(np.ascontiguousarray(np.asarray(array).transpose(0, 3, 1, 2)))


def channels_last(tensor):
    return tensor.detach().numpy().transpose(0, 2, 3, 1)


@pytest.mark.parametrize("safe", [True, False], ids=["safetensors", "bin"])
def test_the_autoencoder_is_that_of_diffusers(safe, tmp_path):
    theirs = randomized(
        models.AutoencoderKL(
            block_out_channels=(8, 16, 16),
            layers_per_block=1,
            norm_num_groups=4,
            down_block_types=("DownEncoderBlock2D",) * 3,
            up_block_types=("UpDecoderBlock2D",) * 3,
        )
    )
    theirs.save_pretrained(tmp_path, safe_serialization=safe)
    ours = load_autoencoder_kl(tmp_path)
    image = jax.random.uniform(jax.random.key(0), (2, 16, 24, 3), minval=-1.0)
    mean, log_variance = eqx.filter_jit(jax.vmap(ours.encode))(image)
    posterior = theirs.encode(channels_first(image)).latent_dist
    assert relative_error(mean, channels_last(posterior.mean)) < 1e-4
    assert relative_error(log_variance, channels_last(posterior.logvar)) < 1e-4
    decoded = eqx.filter_jit(jax.vmap(ours.decode))(ours.config.scaling_factor * mean)
    assert relative_error(decoded, channels_last(theirs.decode(channels_first(mean)).sample)) < 1e-4


def test_the_transformer_with_its_two_differences_is_that_of_diffusers(tmp_path):
    theirs = models.DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=2,
        in_channels=4,
        out_channels=8,
        sample_size=8,
        patch_size=2,
        num_embeds_ada_norm=10,
    )
    theirs = randomized(theirs)
    embedding = theirs.transformer_blocks[0].norm1.emb.state_dict()
    for block in theirs.transformer_blocks:
        block.norm1.emb.load_state_dict(embedding)
    theirs.save_pretrained(tmp_path)
    ours = BatchedPredict(as_diffusers(load_dit(tmp_path).model))
    x = jax.random.normal(jax.random.key(0), (3, 8, 8, 4))
    time, labels = np.asarray([0, 500, 999]), np.asarray([0, 3, 10])
    output = ours(x, jnp.asarray(time / 1000, jnp.float32), jnp.asarray(labels, jnp.int32), loops=1)
    expected = theirs(channels_first(x), timestep=torch.from_numpy(time), class_labels=torch.from_numpy(labels)).sample
    assert relative_error(output, channels_last(expected)) < 1e-4


def test_files_of_pytorch_are_read_as_pytorch_reads_them(tmp_path):
    whole = torch.arange(24.0).reshape(4, 6)
    state = {
        "whole": whole,
        "rows": whole[1:3],
        "transposed": whole.T,
        "strided": whole[:, ::2],
        "half": whole.half(),
        "bfloat16": whole.bfloat16(),
        "counts": torch.arange(5),
        "scalar": torch.tensor(3.5),
        "parameter": torch.nn.Parameter(whole + 1),
        "nested": {"inside": whole.double()},
    }
    torch.save(state, tmp_path / "file.pt")
    file = read_tensors(tmp_path / "file.pt")
    assert len(file) == len(state)
    for name, tensor in (state | {"nested/inside": state["nested"]["inside"]}).items():
        if name != "nested":
            expected = tensor.detach()
            np.testing.assert_array_equal(file[name].astype(np.float64), expected.double().numpy(), err_msg=name)
            assert str(expected.dtype) == f"torch.{file[name].dtype.name}"
