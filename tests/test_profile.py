import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from elt_zoo import Remat
from elt_zoo.models import DiTConfig, MaskGITConfig, preset, preset_names
from elt_zoo.profile import profile

MASKED = MaskGITConfig(dim=64, num_layers=2, max_loops=3, num_heads=4, num_classes=10, grid=(8, 8), codebook_size=64)
DIFFUSION = DiTConfig(dim=64, num_layers=2, max_loops=3, num_heads=4, num_classes=10, shape=(16, 16, 3), patch_size=2)


def test_the_operations_of_a_layer_are_those_on_paper():
    tokens, dim = 65, 64
    costs = profile(MASKED)
    layer = 12 * tokens * dim**2 + 2 * tokens**2 * dim
    assert costs.loop_macs == 2 * layer
    # Hidden map and logits of the 64 tokens of the grid.
    assert costs.head_macs == 64 * (dim**2 + dim * 64)
    assert costs.embed_macs == costs.condition_macs == 0
    assert profile(DIFFUSION).condition_macs == 2 * 6 * dim**2


@pytest.mark.parametrize("config", [MASKED, DIFFUSION])
def test_the_count_is_close_to_xlas_own(config):
    # XLA counts the body of a loop once, so the loops are unrolled; it also counts norms and activations.
    config = dataclasses.replace(config, unroll_loops=True)
    model = eqx.filter_eval_shape(config.build, key=jax.random.key(0))
    masked = isinstance(config, MaskGITConfig)
    inputs = (jnp.zeros(config.grid, jnp.int32),) if masked else (jnp.zeros(config.shape), jnp.asarray(0.5))
    inputs += (jnp.asarray(1),)
    arrays, static = eqx.partition(model, lambda leaf: hasattr(leaf, "dtype"))
    forward = jax.jit(lambda arrays, *inputs: eqx.combine(arrays, static)(*inputs, loops=3))
    theirs = forward.lower(arrays, *inputs).compile().cost_analysis()["flops"]
    ours = profile(config).forward_flops
    assert ours <= theirs <= 1.10 * ours


def test_parameters_and_depth_are_the_models():
    for config in (MASKED, DIFFUSION):
        model = config.build(key=jax.random.key(0))
        size = sum(leaf.size for leaf in jax.tree.leaves(eqx.filter(model, eqx.is_array)))
        costs = profile(config, loops=5)
        assert costs.parameters == size and costs.effective_depth == 10
        assert costs.effective_parameters == size + 4 * costs.trunk_parameters
        assert costs.parameter_bytes == 4 * size and costs.training_state_bytes == 20 * size


def test_a_sample_is_its_forward_passes():
    costs = profile(MASKED, loops=2, steps=12, guidance=True)
    assert costs.forward_macs == costs.loop_macs * 2 + costs.head_macs
    assert costs.sample_macs == 24 * costs.forward_macs and costs.sample_flops == 48 * costs.forward_macs
    # Affine in the loops.
    assert profile(MASKED, loops=4).forward_macs - profile(MASKED, loops=3).forward_macs == costs.loop_macs


def test_figures_of_published_models():
    # DiT-XL/2's 118.6 Gflops, MAGVIT-L's and ELT's 4.3 k GFLOPs a clip of 12 steps are multiply-accumulates.
    np.testing.assert_allclose(profile(preset("dit-XL-2")).forward_macs, 118.64e9, rtol=1e-3)
    for name in ("elt-ucf101-6Nx4L", "magvit-L-24"):
        np.testing.assert_allclose(profile(preset(name), steps=12).sample_macs, 4.3e12, rtol=0.02)
    # MaskGIT-L's 3.7 k GFLOPs of 24 steps count both operations of each.
    for name in ("elt-L-8Nx3L", "elt-L-12Nx2L", "maskgit-L-24"):
        np.testing.assert_allclose(profile(preset(name), steps=24).sample_flops, 3.7e12, rtol=0.06)


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_can_be_profiled_without_allocating_it(name):
    live = sum(array.nbytes for array in jax.live_arrays())
    text = str(profile(preset(name), batch=8, steps=4))
    assert "unique parameters" in text and "FLOPs" in text
    assert sum(array.nbytes for array in jax.live_arrays()) - live < 2**20


def test_memory_follows_the_formulas_and_rematerialisation_saves_it():
    costs = profile(DIFFUSION, batch=4, loops=3)
    by = {remat: costs.training_activation_bytes(remat) for remat in Remat}
    assert by[Remat.LAYER] < by[Remat.NONE] and by[Remat.LOOP] < by[Remat.NONE]
    assert by[Remat.NONE] == costs.training_activation_bytes()
    more = profile(DIFFUSION, batch=4, loops=4)
    assert more.training_activation_bytes() - by[Remat.NONE] == 4 * 2 * costs.layer_bytes
    assert more.inference_activation_bytes == costs.inference_activation_bytes
    half = profile(DIFFUSION, batch=4, loops=3, dtype=jnp.bfloat16)
    assert half.state_bytes * 2 == costs.state_bytes and half.parameters == costs.parameters


def test_the_memory_estimate_is_near_what_xla_allocates():
    model = DIFFUSION.build(key=jax.random.key(0))
    batch = 16
    inputs = (jnp.zeros((batch, *DIFFUSION.shape)), jnp.full(batch, 0.5), jnp.zeros(batch, jnp.int32))

    def loss(model):
        return jnp.sum(jnp.square(jax.vmap(lambda *example: model(*example, loops=3))(*inputs)))

    arrays, static = eqx.partition(model, eqx.is_inexact_array)
    gradient = jax.jit(jax.grad(lambda arrays: loss(eqx.combine(arrays, static))))
    theirs = gradient.lower(arrays).compile().memory_analysis().temp_size_in_bytes
    ours = profile(DIFFUSION, batch=batch).training_activation_bytes()
    assert 0.5 * theirs < ours < 2.0 * theirs


def test_wrong_counts_are_named():
    with pytest.raises(ValueError, match=r"loops=0, batch=1, steps=1\)`: each must be at least 1"):
        profile(MASKED, loops=0)
