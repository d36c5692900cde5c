import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from elt_zoo.families import MaskGITConfig, preset
from elt_zoo.training import (
    Decay,
    OptimizerConfig,
    OptimizerKind,
    Rewarming,
    decay_mask,
    ema_decay_at,
    make_optimizer,
    update_ema,
)


@pytest.mark.parametrize("name", ["digits-dit", "digits-maskgit"])
def test_only_weights_of_linear_maps_decay(name):
    model = eqx.filter_eval_shape(preset(name).build, key=jax.random.key(0))
    marked = [jax.tree_util.keystr(path) for path, decays in jax.tree.leaves_with_path(decay_mask(model)) if decays]
    assert marked and all(path.endswith(".weight") for path in marked)
    assert any(".attention.qkv.weight" in path for path in marked)
    assert not any(("embedding.weight" in path and "patch" not in path) or "norm" in path for path in marked)


def test_decay_moves_weights_and_leaves_stacked_biases_alone():
    config = MaskGITConfig(dim=8, num_layers=2, max_loops=2, num_heads=2, num_classes=4, grid=(2, 2), codebook_size=5)
    model = config.build(key=jax.random.key(0))
    model = jax.tree.map(lambda leaf: jnp.ones_like(leaf) if eqx.is_inexact_array(leaf) else leaf, model)
    params = eqx.filter(model, eqx.is_inexact_array)
    optimizer = make_optimizer(OptimizerConfig(learning_rate=0.1, total_steps=10, weight_decay=0.5))
    with jax.numpy_dtype_promotion("standard"):
        updates: Any = optimizer.update(jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params)[0]
    np.testing.assert_allclose(updates.trunk.layers.mlp.up.weight, -0.05, rtol=1e-6)
    np.testing.assert_array_equal(updates.trunk.layers.mlp.up.bias, 0.0)
    np.testing.assert_array_equal(updates.head.token_embedding, 0.0)


@pytest.mark.parametrize("other_parts", [False, True])
def test_muon_orthogonalises_each_matrix_of_the_trunk_and_leaves_the_rest_to_adamw(other_parts):
    config = MaskGITConfig(
        dim=8, num_layers=2, max_loops=2, num_heads=2, num_classes=4, grid=(2, 2), codebook_size=5, prelude=1
    )
    if other_parts:
        config = dataclasses.replace(config, rms_norm=True, qk_norm=True, swiglu=True, rotary=True)
    params = eqx.filter(config.build(key=jax.random.key(0)), eqx.is_inexact_array)
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    gradients = structure.unflatten(
        [jax.random.normal(key, leaf.shape) for key, leaf in zip(keys, leaves, strict=True)]
    )
    # A gradient of another size in one layer of the stack changes nothing: each matrix is taken by itself.
    gradients = eqx.tree_at(
        lambda model: model.trunk.layers.mlp.up.weight, gradients, replace_fn=lambda leaf: leaf.at[1].multiply(50.0)
    )

    def updates_of(kind: OptimizerKind) -> Any:
        optimizer = make_optimizer(OptimizerConfig(kind=kind, learning_rate=0.1, total_steps=10))
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            return jax.jit(lambda params: optimizer.update(gradients, optimizer.init(params), params)[0])(params)

    muon, adamw = updates_of(OptimizerKind.MUON), updates_of(OptimizerKind.ADAMW)
    for stacked in (muon.trunk.layers, muon.trunk.prelude):
        for matrix in (*stacked.attention.qkv.weight, *stacked.mlp.up.weight, *stacked.mlp.down.weight):
            values = np.linalg.svd(matrix, compute_uv=False)
            assert values.max() < 2.0 * values.min()
            assert np.sqrt(np.mean(np.square(matrix))) == pytest.approx(0.1 * 0.2, rel=0.25)
    for rest in (
        lambda model: model.head,
        lambda model: model.trunk.layers.attention_norm,
        lambda model: model.trunk.layers.mlp.up.bias,
        lambda model: (model.trunk.layers.attention.query_norm, model.trunk.prelude.attention.key_norm),
    ):
        assert eqx.tree_equal(rest(muon), rest(adamw))


def test_schedules_warm_up_and_decay():
    schedule = OptimizerConfig(learning_rate=1.0, total_steps=100, warmup_steps=10, decay=Decay.COSINE).schedule()
    with jax.numpy_dtype_promotion("standard"):
        values = [float(jnp.asarray(schedule(step))) for step in (0, 5, 10, 55, 100)]
    np.testing.assert_allclose(values, [0.0, 0.5, 1.0, 0.5, 0.0], atol=1e-6)
    constant = OptimizerConfig(learning_rate=1.0, total_steps=100).schedule()
    assert jnp.asarray(constant(99)) == 1.0


def test_a_second_warm_up_multiplies_the_schedule():
    plain = OptimizerConfig(learning_rate=1.0, total_steps=100, warmup_steps=10, decay=Decay.COSINE)
    again = dataclasses.replace(plain, rewarming=Rewarming(after=40, steps=4, start=0.2))
    steps = (0, 5, 39, 40, 41, 43, 44, 99)
    with jax.numpy_dtype_promotion("standard"):
        rates, expected = ([float(jnp.asarray(each.schedule()(step))) for step in steps] for each in (again, plain))
    assert rates[:3] == expected[:3] and rates[-2:] == expected[-2:]
    np.testing.assert_allclose(rates[3:6], np.array(expected[3:6]) * [0.2, 0.4, 0.8], rtol=1e-6)


def test_a_second_warm_up_is_within_the_run():
    for wrong in ({"after": 0, "steps": 1}, {"after": 1, "steps": 0}, {"after": 1, "steps": 1, "start": 1.5}):
        with pytest.raises(ValueError, match="both counts must be at least 1, and the factor in"):
            Rewarming(**wrong)
    with pytest.raises(ValueError, match=r"got rewarming=Rewarming\(after=10.*warm-ups within the 10 steps"):
        OptimizerConfig(learning_rate=1.0, total_steps=10, rewarming=Rewarming(after=10, steps=1))


def test_bad_values_are_listed():
    with pytest.raises(ValueError, match=r"got learning_rate=0\.0, b2=1\.0"):
        OptimizerConfig(learning_rate=0.0, total_steps=10, b2=1.0)
    with pytest.raises(ValueError, match=r"got learning_rate=inf, weight_decay=nan"):
        OptimizerConfig(learning_rate=float("inf"), total_steps=10, weight_decay=float("nan"))


def test_a_cosine_needs_a_step_after_the_warm_up():
    with pytest.raises(ValueError, match="leaves no step for the cosine"):
        OptimizerConfig(learning_rate=1.0, total_steps=10, warmup_steps=10, decay=Decay.COSINE)
    for warmup, decay in ((9, Decay.COSINE), (10, Decay.CONSTANT)):
        OptimizerConfig(learning_rate=1.0, total_steps=10, warmup_steps=warmup, decay=decay).schedule()


def test_ema_warms_up_and_matches_a_loop():
    assert float(ema_decay_at(jnp.asarray(0), 0.9)) == pytest.approx(0.1)
    assert float(ema_decay_at(jnp.asarray(10**6), 0.9)) == pytest.approx(0.9)
    expected, ema = 0.0, {"w": jnp.zeros(2)}
    for step in range(20):
        value = float(np.sin(step))
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * value
        ema = update_ema(ema, {"w": jnp.full(2, value)}, jnp.asarray(step), 0.9)
    np.testing.assert_allclose(ema["w"], expected, rtol=1e-5)
