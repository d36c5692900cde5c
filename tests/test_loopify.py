"""A deep model turned into a looped one."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_looped import randomize

from elt_zoo.families import DiTConfig, MaskGITConfig, Retrofit, loopify

DEEP = DiTConfig(dim=16, num_layers=6, max_loops=1, num_heads=2, num_classes=3, shape=(4, 4, 1))
MASKED = MaskGITConfig(
    dim=16, num_layers=6, max_loops=1, num_heads=2, num_classes=3, grid=(2, 2), codebook_size=8, pre_norm=False
)
OTHER_PARTS = dataclasses.replace(MASKED, pre_norm=True, rms_norm=True, qk_norm=True, swiglu=True, rotary=True)
INPUTS = (jnp.linspace(-1, 1, 16).reshape(4, 4, 1), jnp.asarray(0.3), jnp.asarray(1))
MASKED_INPUTS = (jnp.asarray([[1, 8], [8, 7]]), jnp.asarray(2))


def deep(config=DEEP, seed=7):
    return randomize(config.build(key=jax.random.key(0)), seed)


def copies_of_two_layers(config):
    """A deep model whose layers repeat with period two, so that it is a looped model written out."""
    model = deep(config)
    layers = jax.tree.map(
        lambda leaf: jnp.concatenate([leaf[:2]] * 3) if eqx.is_array(leaf) else leaf, model.trunk.layers
    )
    return eqx.tree_at(lambda m: m.trunk.layers, model, layers)


@pytest.mark.parametrize(
    ("config", "inputs"),
    [(DEEP, INPUTS), (MASKED, MASKED_INPUTS), (OTHER_PARTS, MASKED_INPUTS)],
    ids=["dit", "maskgit", "other parts"],
)
def test_a_looped_model_written_out_is_recovered(config, inputs):
    model = copies_of_two_layers(config)
    looped, looped_config = loopify(model, config, num_layers=2, retrofit=Retrofit.STRIDED_AVERAGE)
    assert (looped_config.num_layers, looped_config.max_loops) == (2, 3)
    assert looped.max_loops == 3 and looped.trunk.num_layers == 2
    np.testing.assert_allclose(looped(*inputs, loops=3), model(*inputs, loops=1), rtol=1e-4, atol=1e-4)


def test_groups_of_each_kind():
    weight = deep().trunk.layers.mlp.up.weight
    expected = {
        Retrofit.AVERAGE: [weight[:3].mean(0), weight[3:].mean(0)],
        Retrofit.STRIDED_AVERAGE: [weight[::2].mean(0), weight[1::2].mean(0)],
        Retrofit.PICK: [weight[1], weight[4]],
    }
    for retrofit, layers in expected.items():
        looped, _ = loopify(deep(), DEEP, num_layers=2, retrofit=retrofit)
        np.testing.assert_allclose(looped.trunk.layers.mlp.up.weight, jnp.stack(layers), rtol=1e-5, atol=1e-6)


def test_the_config_builds_the_model_and_one_layer_per_loop_is_the_deep_model():
    looped, config = loopify(deep(), DEEP, num_layers=3)
    built = eqx.filter_eval_shape(config.build, key=jax.random.key(0))
    assert eqx.tree_equal(
        jax.tree.map(jnp.shape, eqx.filter(looped, eqx.is_array)),
        jax.tree.map(lambda leaf: leaf.shape, eqx.filter(built, lambda leaf: hasattr(leaf, "dtype"))),
    )
    same, config = loopify(deep(), DEEP, num_layers=6)
    assert config == DEEP and eqx.tree_equal(same, deep())


def test_what_cannot_be_looped_is_refused():
    with pytest.raises(ValueError, match=r"cannot share 6 layers evenly. Choose one of \[1, 2, 3, 6\]"):
        loopify(deep(), DEEP, num_layers=4)
    with pytest.raises(ValueError, match="takes a model of unique layers alone, but this config has max_loops=2"):
        loopify(deep(), dataclasses.replace(DEEP, max_loops=2), num_layers=2)
    with pytest.raises(ValueError, match="a model of 6 layers with a config of 3"):
        loopify(deep(), dataclasses.replace(DEEP, num_layers=3), num_layers=1)
