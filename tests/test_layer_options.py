"""RMS norm, QK norm, SwiGLU and rotary positions: against their definitions, in layers, and in whole models."""

import dataclasses
import functools
import json
import math
import re

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_looped import randomize

from elt_zoo import ILSDLoss, load, save
from elt_zoo.data import Batch
from elt_zoo.families import DiTConfig, MaskGITConfig, config_from_dict, preset, preset_names
from elt_zoo.generator import Generator
from elt_zoo.nn import (
    AdaLNZeroLayer,
    AttentionKernel,
    LayerNorm,
    LayerOptions,
    Mlp,
    PostNormLayer,
    PreNormLayer,
    RMSNorm,
    Rotary,
    SelfAttention,
    SwiGLU,
    with_attention,
)
from elt_zoo.profile import profile, xla_forward_flops
from elt_zoo.sharding import RULES
from elt_zoo.training import OptimizerConfig, TrainState, decay_mask, make_optimizer, make_train_step

KEY = jax.random.key(0)
FIELDS = ("rms_norm", "qk_norm", "swiglu", "rotary")
ALL = dict.fromkeys(FIELDS, True)
MASKED = MaskGITConfig(
    dim=16, num_layers=2, max_loops=3, num_heads=2, num_classes=4, grid=(2, 3), codebook_size=5, **ALL
)
DIFFUSION = DiTConfig(dim=16, num_layers=2, max_loops=3, num_heads=2, num_classes=4, shape=(4, 6, 1), **ALL)
MODELS = pytest.mark.parametrize("config", [MASKED, DIFFUSION], ids=["maskgit", "dit"])


def rms(x, eps=1e-6):
    return x / np.sqrt(np.mean(np.square(x), axis=-1, keepdims=True) + eps)


def silu(x):
    return x / (1.0 + np.exp(-x))


def turned(rotary, heads):
    """The definition, token by token and axis by axis, with complex numbers."""
    heads = np.array(heads, np.float64)
    tokens, _, head_dim = heads.shape
    axes = len(rotary.grid)
    pairs = head_dim // (2 * axes)
    size = axes * pairs
    for token in range(rotary.prefix, tokens):
        place = np.unravel_index(token - rotary.prefix, rotary.grid)
        values = heads[token, :, :size] + 1j * heads[token, :, size : 2 * size]
        for axis in range(axes):
            for pair in range(pairs):
                angle = place[axis] * rotary.base ** (-pair / pairs)
                values[:, axis * pairs + pair] *= np.exp(1j * angle)
        heads[token, :, : 2 * size] = np.concatenate([values.real, values.imag], axis=1)
    return heads


def numpy_attention(module, x):
    """Attention with normalised and turned queries and keys, head by head."""
    parts = np.split(x @ np.asarray(module.qkv.weight).T + np.asarray(module.qkv.bias), 3, axis=1)
    query, key, value = (part.reshape(len(x), module.num_heads, -1) for part in parts)
    query, key = rms(query) * np.asarray(module.query_norm.weight), rms(key) * np.asarray(module.key_norm.weight)
    query, key = turned(module.rotary, query), turned(module.rotary, key)
    heads = []
    for head in range(module.num_heads):
        scores = query[:, head] @ key[:, head].T / math.sqrt(query.shape[2])
        weights = np.exp(scores - scores.max(1, keepdims=True))
        heads.append(weights / weights.sum(1, keepdims=True) @ value[:, head])
    return np.concatenate(heads, axis=1) @ np.asarray(module.out.weight).T + np.asarray(module.out.bias)


def numpy_swiglu(module, x):
    gate, value = np.split(x @ np.asarray(module.up.weight).T + np.asarray(module.up.bias), 2, axis=-1)
    return (silu(gate) * value) @ np.asarray(module.down.weight).T + np.asarray(module.down.bias)


@pytest.fixture(scope="module")
def x():
    return np.asarray(jax.random.normal(jax.random.key(1), (7, 16)))


@pytest.mark.numerical
def test_an_rms_norm_divides_by_the_root_mean_square_in_float32(x):
    module = randomize(RMSNorm(16, eps=1e-3))
    np.testing.assert_allclose(module(jnp.asarray(x)), rms(x, 1e-3) * np.asarray(module.weight), rtol=1e-5)
    plain = RMSNorm(16, eps=1e-6, affine=False)
    assert not jax.tree.leaves(plain)
    np.testing.assert_allclose(plain(jnp.asarray(x)), rms(x), rtol=1e-5)
    # The squares of these overflow float16, and no mean is taken off.
    large = jnp.asarray([[1000.0, 1001.0, 1002.0, -1004.0]], jnp.float16)
    y = RMSNorm(4, eps=1e-6)(large)
    assert y.dtype == jnp.float16
    np.testing.assert_allclose(np.asarray(y, np.float32), rms(np.asarray(large, np.float32)), rtol=1e-3)


@pytest.mark.numerical
def test_a_gated_mlp_follows_its_definition_and_starts_as_three_matrices(x):
    module = randomize(SwiGLU(16, 20, key=KEY))
    np.testing.assert_allclose(module(jnp.asarray(x)), numpy_swiglu(module, x), rtol=1e-4, atol=1e-5)
    fresh = SwiGLU(16, 40, key=KEY)
    assert fresh.up.weight.shape == (80, 16) and fresh.down.weight.shape == (16, 40)
    # Glorot's bound is that of each half, which the two as one matrix would never reach.
    bound, of_both = math.sqrt(6 / (16 + 40)), math.sqrt(6 / (16 + 80))
    gate, value = jnp.split(fresh.up.weight, 2)
    for half in (gate, value):
        assert of_both < float(jnp.max(jnp.abs(half))) <= bound
    assert not np.allclose(gate, value)


@pytest.mark.numerical
@pytest.mark.parametrize(
    ("rotary", "head_dim"),
    [
        (Rotary((7,)), 8),
        (Rotary((7,), base=10_000.0), 9),  # one channel is left over
        (Rotary((3, 4)), 8),
        (Rotary((3, 4), prefix=1), 10),  # two are
        (Rotary((2, 3, 4), prefix=2), 12),
        (Rotary((2, 3, 4)), 16),  # four are
    ],
    ids=str,
)
def test_rotary_positions_multiply_by_complex_numbers(rotary, head_dim):
    tokens = rotary.prefix + math.prod(rotary.grid)
    heads = jax.random.normal(KEY, (tokens, 2, head_dim))
    ours = rotary(heads)
    np.testing.assert_allclose(ours, turned(rotary, heads), rtol=1e-5, atol=1e-5)
    # What stands nowhere, or at the origin, is left as it is, and so are channels that are left over.
    still = rotary.prefix + 1
    np.testing.assert_array_equal(ours[:still], heads[:still])
    used = head_dim // (2 * len(rotary.grid)) * 2 * len(rotary.grid)
    np.testing.assert_array_equal(ours[..., used:], heads[..., used:])
    assert not np.any(np.isclose(ours[-1, :, :used], heads[-1, :, :used], atol=1e-4))
    low = rotary(heads.astype(jnp.bfloat16))
    assert low.dtype == jnp.bfloat16
    # As close as bfloat16 can say it: the angles, and what is computed with them, are float32.
    expected = turned(rotary, heads.astype(jnp.bfloat16).astype(jnp.float32))
    np.testing.assert_allclose(low.astype(jnp.float32), expected, rtol=2**-8, atol=1e-5)


@pytest.mark.numerical
@pytest.mark.parametrize("grid", [(9,), (3, 4), (2, 3, 4)], ids=str)
def test_products_depend_on_the_distance_along_each_axis(grid):
    rotary, tokens = Rotary(grid), math.prod(grid)
    query, key = (jnp.broadcast_to(one, (tokens, 1, 12)) for one in jax.random.normal(KEY, (2, 1, 1, 12)))
    scores = np.asarray(jnp.einsum("mhd,nhd->mn", rotary(query), rotary(key)))
    places = np.stack(np.unravel_index(np.arange(tokens), grid), axis=1)
    by_distance = {}
    for m in range(tokens):
        for n in range(tokens):
            by_distance.setdefault(tuple(places[m] - places[n]), []).append(scores[m, n])
    for equal in by_distance.values():
        np.testing.assert_allclose(equal, equal[0], rtol=1e-4, atol=1e-5)
    origin = by_distance[(0,) * len(grid)][0]
    for axis in range(len(grid)):
        step = tuple(int(axis == other) for other in range(len(grid)))
        assert abs(by_distance[step][0] - origin) > 1e-2


def test_rotary_positions_are_equal_by_value_and_refuse_what_cannot_be():
    assert Rotary((2, 3), prefix=1) == Rotary((2, 3), prefix=1) and len({Rotary((2,)), Rotary((2,))}) == 1
    for wrong in ({"grid": ()}, {"grid": (2, 0)}, {"prefix": -1}, {"base": 1.0}, {"base": math.nan}):
        with pytest.raises(ValueError, match="needs a grid of one or more axes"):
            dataclasses.replace(Rotary((2,)), **wrong)
    with pytest.raises(ValueError, match=r"prefix=1, base=100.0\)` turns 7 tokens and got 6"):
        Rotary((2, 3), prefix=1)(jnp.zeros((6, 1, 8)))
    with pytest.raises(ValueError, match=r"each of its 3 axes, but a head has 4\. Use fewer heads.*6 channels or more"):
        SelfAttention(8, 2, rotary=Rotary((2, 2, 2)), key=KEY)


@pytest.mark.numerical
def test_attention_normalises_then_turns_queries_and_keys(x):
    module = randomize(SelfAttention(16, 2, qk_norm=True, rotary=Rotary((2, 3), prefix=1), key=KEY))
    assert module.query_norm.weight.shape == module.key_norm.weight.shape == (8,)
    expected = numpy_attention(module, x)
    np.testing.assert_allclose(module(jnp.asarray(x)), expected, rtol=1e-4, atol=1e-5)
    # However large the queries are, the products of normalised ones are not.
    larger = eqx.tree_at(lambda module: module.qkv.weight, module, module.qkv.weight.at[:32].multiply(1000.0))
    larger = eqx.tree_at(lambda module: module.qkv.bias, larger, larger.qkv.bias.at[:32].multiply(1000.0))
    np.testing.assert_allclose(larger(jnp.asarray(x)), expected, rtol=1e-3, atol=1e-4)
    low = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), with_attention(module, AttentionKernel.XLA))
    y = low(jnp.asarray(x, jnp.bfloat16))
    assert y.dtype == jnp.bfloat16
    np.testing.assert_allclose(y.astype(jnp.float32), expected, rtol=0.1, atol=0.05)


OPTIONS = LayerOptions(rms_norm=True, qk_norm=True, swiglu=True, rotary=Rotary((2, 3), prefix=1))


@pytest.mark.numerical
def test_layers_with_all_options_follow_their_definitions(x):
    def norm(module, x, eps):
        return rms(x, eps) * (1.0 if module.weight is None else np.asarray(module.weight))

    pre = randomize(make_layer(PreNormLayer))
    y = x + numpy_attention(pre.attention, norm(pre.attention_norm, x, 1e-6))
    y = y + numpy_swiglu(pre.mlp, norm(pre.mlp_norm, y, 1e-6))
    np.testing.assert_allclose(pre(jnp.asarray(x)), y, rtol=1e-4, atol=1e-5)
    post = randomize(make_layer(PostNormLayer))
    y = norm(post.attention_norm, x + numpy_attention(post.attention, x), 1e-12)
    y = norm(post.mlp_norm, y + numpy_swiglu(post.mlp, y), 1e-12)
    np.testing.assert_allclose(post(jnp.asarray(x)), y, rtol=1e-4, atol=1e-5)
    ada = randomize(make_layer(AdaLNZeroLayer))
    modulation = jax.random.normal(KEY, (2, 3, 16))
    (shift, scale, gate), (mlp_shift, mlp_scale, mlp_gate) = np.asarray(modulation)
    y = x + gate * numpy_attention(ada.attention, rms(x) * (1 + scale) + shift)
    y = y + mlp_gate * numpy_swiglu(ada.mlp, rms(y) * (1 + mlp_scale) + mlp_shift)
    np.testing.assert_allclose(ada(jnp.asarray(x), modulation), y, rtol=1e-4, atol=1e-5)


def make_layer(layer, **options):
    return layer(16, 2, mlp_dim=24, key=KEY, **({"options": OPTIONS} | options))


@pytest.mark.parametrize("layer", [PreNormLayer, PostNormLayer, AdaLNZeroLayer])
def test_layers_without_options_are_as_they_were(layer):
    plain, off = layer(16, 2, mlp_dim=24, key=KEY), make_layer(layer, options=LayerOptions())
    assert eqx.tree_equal(plain, off)
    assert isinstance(plain.attention_norm, LayerNorm) and isinstance(plain.mlp, Mlp)
    assert plain.attention.query_norm is plain.attention.key_norm is plain.attention.rotary is None
    # Each option leaves the parameters of the others' parts as they are.
    everything = make_layer(layer)
    assert eqx.tree_equal(everything.attention.qkv, plain.attention.qkv)
    assert eqx.tree_equal(make_layer(layer, options=LayerOptions(qk_norm=True)).mlp, plain.mlp)


def names(tree):
    return [
        jax.tree_util.keystr(path, simple=True, separator=".")
        for path, leaf in jax.tree.leaves_with_path(tree)
        if hasattr(leaf, "shape")
    ]


def test_models_without_options_have_the_parameters_that_files_hold():
    linear = ["weight", "bias"]
    parts = {"modulation": linear, "attention": ["qkv.weight", "qkv.bias", "out.weight", "out.bias"]}
    parts["mlp"] = ["up.weight", "up.bias", "down.weight", "down.bias"]
    model = eqx.filter_eval_shape(preset("digits-dit").build, key=KEY)
    assert names(model.trunk) == [f"layers.{part}.{name}" for part, each in parts.items() for name in each]
    parts = {"attention_norm": linear, "attention": parts["attention"], "mlp_norm": linear, "mlp": parts["mlp"]}
    model = eqx.filter_eval_shape(preset("digits-maskgit").build, key=KEY)
    assert names(model.trunk) == [f"layers.{part}.{name}" for part, each in parts.items() for name in each]


def test_presets_have_none_of_the_options():
    assert {getattr(preset(name), field) for name in preset_names() for field in FIELDS} == {False}


@MODELS
def test_configs_say_the_options_and_old_ones_load(config):
    values = json.loads(json.dumps(config.to_dict()))
    assert config_from_dict(values) == config
    old = config_from_dict({name: value for name, value in values.items() if name not in FIELDS})
    assert old == dataclasses.replace(config, **dict.fromkeys(FIELDS, False))
    grid = Rotary((2, 3), prefix=int(config is MASKED))
    assert config.layer_options == LayerOptions(rms_norm=True, qk_norm=True, swiglu=True, rotary=grid)
    assert old.layer_options == LayerOptions()
    assert config.unlooped().layer_options == config.unique_depth().layer_options == config.layer_options
    layers = config.build(key=KEY).trunk.layers
    assert isinstance(layers.attention_norm, RMSNorm) and isinstance(layers.mlp, SwiGLU)
    assert layers.attention.rotary == grid and layers.attention.query_norm.weight.shape == (2, 8)


def test_rotary_positions_of_video_have_three_axes_and_need_wider_heads():
    clips = dataclasses.replace(preset("tiny-ucf101"), rotary=True)
    assert clips.layer_options.rotary == Rotary((4, 4, 4), prefix=1)
    noise = DiTConfig(
        dim=16, num_layers=1, max_loops=1, num_heads=2, num_classes=2, shape=(4, 8, 6, 3), patch_size=(1, 2, 2)
    )
    assert dataclasses.replace(noise, rotary=True).layer_options.rotary == Rotary((4, 4, 3))
    for config in (clips, noise):
        with pytest.raises(ValueError, match="each of its 3 axes, but a head has 4"):
            dataclasses.replace(config, rotary=True, num_heads=config.dim // 4)
        dataclasses.replace(config, rotary=False, num_heads=config.dim // 4)


@pytest.mark.parametrize("dim", [16, 64, 128, 768, 2048])
def test_gated_mlps_have_about_as_many_parameters(dim):
    config = DiTConfig(dim=dim, num_layers=1, max_loops=1, num_heads=1, num_classes=2, shape=(4, 4, 1))
    gated = dataclasses.replace(config, swiglu=True)
    assert config.hidden_dim == 4 * dim and gated.hidden_dim % 8 == 0
    assert 0 <= gated.hidden_dim - 8 * dim / 3 < 8
    assert dataclasses.replace(gated, mlp_dim=20).hidden_dim == 20
    # What rounding up adds matters in small models alone.
    assert profile(gated).parameters == pytest.approx(profile(config).parameters, rel=0.05 if dim < 64 else 0.015)


@MODELS
def test_models_with_all_options_train_and_come_back_from_files(config, tmp_path):
    optimizer = make_optimizer(OptimizerConfig(learning_rate=1e-2, total_steps=10))
    loss = config.loss()
    objective = ILSDLoss(loss, loss.distillation, max_loops=config.max_loops)
    step = make_train_step(optimizer, objective, config.corruption(), total_steps=10)
    start = randomize(config.build(key=KEY))
    state = TrainState.create(start, optimizer, key=KEY)
    examples = jnp.ones((4, *config.example.shape), config.example.dtype)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        state, metrics = eqx.filter_jit(step)(state, Batch(examples, jnp.zeros(4, jnp.int32)))
    assert np.isfinite(metrics["loss"])
    # Every parameter of the layers learns.
    for name, before, after in zip(
        names(start.trunk), jax.tree.leaves(start.trunk), jax.tree.leaves(state.model.trunk), strict=True
    ):
        assert not np.array_equal(before, after), name
    save(tmp_path / "model", Generator(state.model, config))
    again = load(tmp_path / "model")
    assert again.config == config and eqx.tree_equal(again.model, jax.device_put(state.model, jax.devices()[0]))


@MODELS
def test_exits_agree_and_each_option_changes_the_prediction(config):
    model = randomize(config.build(key=KEY))
    inputs = [
        jnp.full(leaf.shape, 0.4 if jnp.issubdtype(leaf.dtype, jnp.floating) else 1, leaf.dtype)
        for leaf in config.example_inputs()
    ]
    exits = model.trajectory(*inputs, loops=3)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4)
    close(model(*inputs, loops=jnp.asarray(2)), exits[1])
    close(eqx.tree_at(lambda model: model.trunk, model, model.trunk.unstacked())(*inputs, loops=3), exits[2])
    close(with_attention(model, AttentionKernel.XLA)(*inputs, loops=2), exits[1])
    # The rotary positions are no parameters: the same ones without them say something else.
    still = dataclasses.replace(config, rotary=False).build(key=KEY)
    still = jax.tree.unflatten(jax.tree.structure(still), jax.tree.leaves(model))
    assert not np.allclose(still(*inputs, loops=3), exits[2], atol=1e-3)


@pytest.mark.parametrize("on", [*FIELDS, None])
@MODELS
def test_what_options_cost_is_counted(config, on):
    given = ALL if on is None else {on: True}
    off = dataclasses.replace(config, dim=64, num_layers=1, **dict.fromkeys(FIELDS, False))
    config = dataclasses.replace(off, **given)
    costs, plain = profile(config, loops=2), profile(off, loops=2)
    size = sum(leaf.size for leaf in jax.tree.leaves(config.build(key=KEY)))
    assert costs.parameters == size
    np.testing.assert_allclose(
        xla_forward_flops(config, loops=2), costs.forward_flops + costs.forward_elementwise, rtol=0.03
    )
    if on == "rotary":
        assert costs.layer.macs == plain.layer.macs and costs.layer.elementwise > plain.layer.elementwise
        # Its tables are constants: no example and no layer saves them.
        assert costs.layer.saved_bytes == plain.layer.saved_bytes
    if on == "rms_norm":
        assert costs.layer.elementwise < plain.layer.elementwise


@MODELS
def test_the_rules_of_optimiser_and_devices_know_the_new_parts(config):
    model = eqx.filter_eval_shape(dataclasses.replace(config, prelude=1).build, key=KEY)
    decays = dict(zip(names(model), jax.tree.leaves(decay_mask(model)), strict=True))
    for part in ("attention.query_norm.weight", "attention.key_norm.weight"):
        assert not decays[f"trunk.layers.{part}"] and not decays[f"trunk.prelude.{part}"]
    assert decays["trunk.layers.mlp.up.weight"] and decays["trunk.layers.attention.qkv.weight"]
    assert not any(decay for name, decay in decays.items() if "norm" in name or name.endswith(".bias"))
    # A rule says how each matrix is split, so that none is split by its longest axis.
    matrices = [name for name, leaf in zip(names(model.trunk), jax.tree.leaves(model.trunk), strict=True)]
    matrices = [name for name in matrices if decays[f"trunk.{name}"]]
    assert len(matrices) == 2 * (4 + (config is DIFFUSION))
    assert all(any(re.search(rule.path, f".{name}") for rule in RULES) for name in matrices)
