"""Convolutions and group normalisation, against NumPy."""

import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from parity import relative_error

from elt_zoo.nn import Conv, GroupNorm, UpsampleConv
from elt_zoo.nn._conv import convolve
from elt_zoo.nn._winograd import winograd, winograd_pays


def reference_conv(x, weight, bias, stride, padding):
    """The sum of shifted products, tap by tap."""
    kernel = weight.shape[:-2]
    x = np.pad(np.asarray(x, np.float64), [*padding, (0, 0)])
    sizes = [(size - taps) // stride + 1 for size, taps in zip(x.shape[:-1], kernel, strict=True)]
    y = np.zeros((*sizes, weight.shape[-1]))
    for taps in itertools.product(*map(range, kernel)):
        window = tuple(slice(t, t + (n - 1) * stride + 1, stride) for t, n in zip(taps, sizes, strict=True))
        y += x[window] @ np.asarray(weight, np.float64)[taps]
    return y if bias is None else y + np.asarray(bias, np.float64)


@given(
    axes=st.integers(1, 3),
    kernel_size=st.sampled_from([1, 3]),
    stride=st.integers(1, 2),
    use_bias=st.booleans(),
    data=st.data(),
)
def test_conv_is_the_sum_over_its_taps(axes, kernel_size, stride, use_bias, data):
    grid = [data.draw(st.integers(3, 5)) for _ in range(axes)]
    padding = tuple((data.draw(st.integers(0, 1)), data.draw(st.integers(0, 1))) for _ in range(axes))
    padding = padding if kernel_size == 3 else ((0, 0),) * axes
    conv = Conv(2, 3, kernel_size, axes=axes, stride=stride, padding=padding, use_bias=use_bias, key=jax.random.key(0))
    if use_bias:
        conv = eqx.tree_at(lambda conv: conv.bias, conv, jnp.arange(3.0))
    x = np.random.default_rng(1).standard_normal((*grid, 2)).astype(np.float32)
    expected = reference_conv(x, conv.weight, conv.bias, stride, padding)
    np.testing.assert_allclose(conv(jnp.asarray(x)), expected, rtol=1e-4, atol=1e-5)


def test_same_padding_keeps_the_grid():
    conv = Conv(2, 3, 3, key=jax.random.key(0))
    x = np.random.default_rng(1).standard_normal((4, 5, 2)).astype(np.float32)
    expected = reference_conv(x, conv.weight, conv.bias, 1, ((1, 1), (1, 1)))
    np.testing.assert_allclose(conv(jnp.asarray(x)), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("factors", [(2,), (2, 2), (1, 2), (2, 2, 2), (1, 2, 2), (1, 1)])
def test_upsampling_by_phases_is_repeating_then_convolving(factors):
    layer = UpsampleConv(3, factors=factors, key=jax.random.key(0))
    layer = eqx.tree_at(lambda layer: layer.conv.bias, layer, jnp.arange(3.0))
    x = jax.random.normal(jax.random.key(1), (*(3, 4, 2)[: len(factors)], 3))
    large = x
    for axis, factor in enumerate(factors):
        large = jnp.repeat(large, factor, axis=axis)
    np.testing.assert_allclose(layer(x), layer.conv(large), rtol=1e-4, atol=1e-5)


def test_wide_layers_take_winograd_s_way_to_the_same_result():
    conv = Conv(256, 256, 3, key=jax.random.key(0))
    x = jax.random.normal(jax.random.key(1), (2, 64, 68, 256))
    assert winograd_pays(x.shape[1:-1], conv.weight) and not winograd_pays((64, 66), conv.weight)
    assert not winograd_pays((32, 64), conv.weight) and not winograd_pays((64, 64), conv.weight[:, :, :128])
    plain = jax.jit(jax.vmap(lambda x: convolve(x, conv.weight, 1, "SAME")))(x)
    assert relative_error(jax.jit(jax.vmap(conv))(x), plain) < 1e-5
    small = jax.random.normal(jax.random.key(2), (8, 12, 3))
    weight = jax.random.normal(jax.random.key(3), (3, 3, 3, 5))
    expected = reference_conv(small, weight, None, 1, ((1, 1), (1, 1)))
    assert relative_error(winograd(small, weight), expected) < 1e-5


@given(groups=st.sampled_from([1, 2, 4]), axes=st.integers(1, 3))
def test_group_norm_is_the_textbook_formula(groups, axes):
    rng = np.random.default_rng(0)
    norm = GroupNorm(8, groups=groups, eps=1e-3)
    weight, bias = rng.standard_normal((2, 8)).astype(np.float32)
    norm = eqx.tree_at(lambda norm: (norm.weight, norm.bias), norm, (jnp.asarray(weight), jnp.asarray(bias)))
    x = (3 + rng.standard_normal((*(3, 4, 2)[:axes], 8))).astype(np.float32)
    parts = np.split(x.astype(np.float64), groups, axis=-1)
    normal = np.concatenate([(part - part.mean()) / np.sqrt(part.var() + 1e-3) for part in parts], axis=-1)
    np.testing.assert_allclose(norm(jnp.asarray(x)), normal * weight + bias, rtol=1e-4, atol=1e-5)


def test_bfloat16_is_kept_and_normalised_in_float32():
    x = (300 + jax.random.normal(jax.random.key(0), (8, 8, 4))).astype(jnp.bfloat16)
    y = GroupNorm(4, groups=2)(x)
    assert y.dtype == jnp.bfloat16 and abs(float(jnp.std(y.astype(jnp.float32))) - 1) < 0.05
    conv = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), Conv(4, 4, 3, key=jax.random.key(0)))
    assert conv(x).dtype == jnp.bfloat16
    up = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), UpsampleConv(4, factors=(2, 2), key=jax.random.key(0)))
    assert up(x).dtype == jnp.bfloat16


def test_groups_must_divide_the_channels():
    with pytest.raises(ValueError, match=r"`GroupNorm\(8, groups=3\)`: the groups must divide"):
        GroupNorm(8, groups=3)
