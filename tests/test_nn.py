import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from elt_zoo.nn import (
    AdaLNZeroLayer,
    LabelEmbedding,
    LayerNorm,
    Linear,
    Mlp,
    PostNormLayer,
    PreNormLayer,
    SelfAttention,
    TimestepEmbedding,
    dropout,
    look_up,
    sincos_positions,
)
from elt_zoo.nn._attention import _attend, _attend_on_cpu

KEY = jax.random.key(0)


def norm(x, eps):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + eps)


def numpy_attention(module, x):
    """Multi-head attention head by head, from the definition."""
    dim = x.shape[1]
    q, k, v = np.split(x @ np.asarray(module.qkv.weight).T + np.asarray(module.qkv.bias), 3, axis=1)
    head_dim = dim // module.num_heads
    heads = []
    for i in range(module.num_heads):
        part = slice(i * head_dim, (i + 1) * head_dim)
        scores = q[:, part] @ k[:, part].T / np.sqrt(head_dim)
        weights = np.exp(scores - scores.max(1, keepdims=True))
        heads.append(weights / weights.sum(1, keepdims=True) @ v[:, part])
    return np.concatenate(heads, axis=1) @ np.asarray(module.out.weight).T + np.asarray(module.out.bias)


def numpy_mlp(module, x):
    hidden = x @ np.asarray(module.up.weight).T + np.asarray(module.up.bias)
    gelu = 0.5 * hidden * (1 + np.tanh(np.sqrt(2 / np.pi) * (hidden + 0.044715 * hidden**3)))
    return gelu @ np.asarray(module.down.weight).T + np.asarray(module.down.bias)


@pytest.fixture(scope="module")
def x():
    return np.asarray(jax.random.normal(jax.random.key(1), (5, 12)))


@pytest.mark.numerical
def test_attention_and_mlp_match_their_definition(x):
    attention = SelfAttention(12, 3, key=KEY)
    np.testing.assert_allclose(attention(jnp.asarray(x)), numpy_attention(attention, x), rtol=1e-5, atol=1e-5)
    mlp = Mlp(12, 20, key=KEY)
    np.testing.assert_allclose(mlp(jnp.asarray(x)), numpy_mlp(mlp, x), rtol=1e-5, atol=1e-5)


@pytest.mark.numerical
def test_layers_match_their_definition(x):
    pre = PreNormLayer(12, 3, mlp_dim=24, key=KEY)
    y = x + numpy_attention(pre.attention, norm(x, 1e-6))
    np.testing.assert_allclose(pre(jnp.asarray(x)), y + numpy_mlp(pre.mlp, norm(y, 1e-6)), rtol=1e-4, atol=1e-5)

    post = PostNormLayer(12, 3, mlp_dim=24, key=KEY)
    y = norm(x + numpy_attention(post.attention, x), 1e-12)
    np.testing.assert_allclose(post(jnp.asarray(x)), norm(y + numpy_mlp(post.mlp, y), 1e-12), rtol=1e-4, atol=1e-5)

    ada = AdaLNZeroLayer(12, 3, mlp_dim=24, conditioning_dim=4, key=KEY)
    ada = jax.tree.map(lambda leaf: leaf + 0.1, ada)
    c = np.linspace(-1.0, 1.0, 4, dtype=np.float32)
    modulation = np.asarray(ada.modulation.weight) @ (c / (1 + np.exp(-c))) + np.asarray(ada.modulation.bias)
    shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = np.split(modulation, 6)
    y = x + gate_a * numpy_attention(ada.attention, norm(x, 1e-6) * (1 + scale_a) + shift_a)
    y = y + gate_m * numpy_mlp(ada.mlp, norm(y, 1e-6) * (1 + scale_m) + shift_m)
    np.testing.assert_allclose(ada(jnp.asarray(x), ada.condition(jnp.asarray(c))), y, rtol=1e-4, atol=1e-5)


def test_a_new_adaln_zero_layer_is_the_identity(x):
    layer = AdaLNZeroLayer(12, 3, mlp_dim=24, key=KEY)
    np.testing.assert_array_equal(layer(jnp.asarray(x), layer.condition(jnp.ones(12))), x)


@pytest.mark.numerical
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_attention_on_a_cpu_is_that_of_accelerators(dtype):
    query, key, value = (jax.random.normal(k, (5, 2, 8), dtype) for k in jax.random.split(KEY, 3))
    ours, theirs = _attend_on_cpu(query, key, value), _attend(query, key, value)
    assert ours.dtype == theirs.dtype == dtype
    tolerance = 1e-5 if dtype == jnp.float32 else 3e-2
    np.testing.assert_allclose(ours.astype(jnp.float32), theirs.astype(jnp.float32), rtol=tolerance, atol=tolerance)


@pytest.mark.numerical
def test_layer_norm_is_computed_in_float32():
    x = jnp.asarray([[1000.0, 1001.0, 1002.0, 1004.0]], jnp.bfloat16)
    expected = norm(np.asarray(x, np.float32), 1e-6)
    y = LayerNorm(4, eps=1e-6)(x)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(y, np.float32), expected, rtol=1e-2)


def test_linear_keeps_leading_axes_and_has_no_bias_on_request():
    linear = Linear(3, 2, use_bias=False, key=KEY)
    x = jnp.ones((4, 5, 3))
    np.testing.assert_allclose(linear(x), x @ linear.weight.T, rtol=1e-6)
    assert linear.bias is None


@pytest.mark.numerical
def test_positions_follow_dit():
    table = sincos_positions((2, 3), 8)
    # Token 5 is row 1, column 2; the first half of the channels encodes the column.
    omega = np.asarray([1.0, 0.01])
    expected = np.concatenate([np.sin(2 * omega), np.cos(2 * omega), np.sin(1 * omega), np.cos(1 * omega)])
    np.testing.assert_allclose(table[5], expected, rtol=1e-6)
    for grid, dim in [((5,), 6), ((2, 3, 4), 16), ((2, 3, 4), 14)]:
        table = sincos_positions(grid, dim)
        assert table.shape == (np.prod(grid), dim)
        assert len(np.unique(table.round(6), axis=0)) == np.prod(grid)
    with pytest.raises(ValueError, match="needs an even `dim` of at least 6"):
        sincos_positions((2, 2, 2), 4)


@pytest.mark.numerical
def test_timestep_sinusoids_follow_dit():
    embedding = TimestepEmbedding(8, num_frequencies=6, key=KEY)
    angles = 250.0 * 10_000.0 ** (-np.arange(3) / 3)
    np.testing.assert_allclose(
        embedding.sinusoids(jnp.asarray(0.25)), np.concatenate([np.cos(angles), np.sin(angles)]), rtol=1e-4, atol=1e-5
    )


def test_labels_out_of_range_are_refused():
    embedding = LabelEmbedding(10, 4, key=KEY)
    np.testing.assert_array_equal(embedding(jnp.asarray(10)), embedding.weight[10])
    for label in (-1, 11):
        with pytest.raises(ValueError, match="labels 0 to 9, and 10 for no class"):
            embedding(jnp.asarray(label))
        assert jnp.isnan(eqx.filter_jit(embedding)(jnp.asarray(label))).all()


def test_dropout_keeps_the_mean_and_needs_a_key():
    x = jnp.ones(10_000)
    assert dropout(x, 0.3, key=None) is x
    y = dropout(x, 0.3, key=KEY)
    assert abs(float(jnp.mean(y)) - 1.0) < 0.02
    np.testing.assert_allclose(np.unique(y), [0.0, 1 / 0.7], rtol=1e-5)


@pytest.mark.numerical
def test_each_entry_is_dropped_at_the_rate_and_by_itself():
    # An odd number of entries: the last one has half a random word.
    keys = jax.random.split(KEY, 20_000)
    kept = jax.vmap(lambda key: dropout(jnp.ones((1, 5)), 0.3, key=key))(keys)[:, 0] > 0
    # Four standard deviations of a share of 20,000, for each entry and each pair of entries.
    np.testing.assert_allclose(jnp.mean(kept, axis=0), 0.7, atol=4 * (0.7 * 0.3 / 20_000) ** 0.5)
    correlation = np.corrcoef(np.asarray(kept, np.float64).T)
    np.testing.assert_allclose(correlation, np.eye(5), atol=4 / 20_000**0.5)
    assert dropout(jnp.ones(3), 1e-9, key=KEY).tolist() == [1.0] * 3


def test_heads_must_divide_the_width():
    with pytest.raises(ValueError, match="Choose `num_heads` among the divisors of 12"):
        SelfAttention(12, 5, key=KEY)


def test_the_gradient_of_a_row_counts_every_token_that_looks_it_up_in_bfloat16_too():
    table, index = jnp.ones((3, 4), jnp.bfloat16), jnp.zeros(4096, jnp.int32)
    gradient = jax.grad(lambda table: jnp.sum(look_up(table, index), dtype=jnp.float32))(table)
    np.testing.assert_array_equal(np.asarray(gradient, np.float32), [[4096.0] * 4, [0.0] * 4, [0.0] * 4])
    assert look_up(table, index).dtype == jnp.bfloat16
