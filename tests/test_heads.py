import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from elt_zoo import DiTHead, MaskGITHead
from elt_zoo.corruption import Prediction
from elt_zoo.nn import sincos_positions

KEY = jax.random.key(0)


def maskgit(grid=(2, 3), **options):
    return MaskGITHead(8, grid=grid, codebook_size=5, num_classes=4, key=KEY, **options)


@pytest.mark.parametrize("grid", [(6,), (2, 3), (2, 3, 4)])
@pytest.mark.parametrize("pre_norm", [True, False])
def test_maskgit_shapes(grid, pre_norm):
    head = maskgit(grid, pre_norm=pre_norm)
    ids = jnp.full(grid, head.mask_id)
    tokens, conditioning = head.embed(ids, jnp.asarray(head.null_label))
    assert tokens.shape == (1 + np.prod(grid), 8) and conditioning is None
    assert head(tokens).shape == (*grid, 5)


def test_maskgit_embeds_class_then_tokens_in_row_major_order():
    head = maskgit()
    ids = jnp.asarray([[0, 1, 2], [3, 4, 5]])
    tokens, _ = head.embed(ids, jnp.asarray(2))
    expected = jnp.concatenate([head.label_embedding.weight[2][None], head.token_embedding[jnp.arange(6)]])
    np.testing.assert_allclose(tokens, expected + head.position_embedding, rtol=1e-6)
    normalised, _ = maskgit(pre_norm=False).embed(ids, jnp.asarray(2))
    np.testing.assert_allclose(np.mean(normalised, axis=-1), np.zeros(7), atol=1e-6)


def test_maskgit_without_a_class_token_hands_the_class_to_the_layers():
    head = maskgit(class_token=False)
    ids = jnp.asarray([[0, 1, 2], [3, 4, 5]])
    tokens, conditioning = head.embed(ids, jnp.asarray(2))
    np.testing.assert_allclose(tokens, head.token_embedding[jnp.arange(6)] + head.position_embedding, rtol=1e-6)
    np.testing.assert_array_equal(conditioning, head.label_embedding.weight[2])
    # The logits of a position are the same function of its state, whether a class token stands before it or not.
    with_token = maskgit()
    state = jax.random.normal(KEY, (7, 8))
    same = eqx.tree_at(lambda h: (h.hidden, h.token_embedding), head, (with_token.hidden, with_token.token_embedding))
    np.testing.assert_array_equal(same(state[1:], conditioning), with_token(state))


def test_maskgit_output_is_tied_to_the_token_embedding():
    head = maskgit()
    state = jax.random.normal(KEY, (7, 8))
    logits = head(state)
    moved = eqx.tree_at(lambda h: h.token_embedding, head, head.token_embedding.at[3].add(jnp.arange(8.0)))
    changed = np.abs(np.asarray(moved(state) - logits)).max(axis=(0, 1))
    assert changed[3] > 1e-3 and (np.delete(changed, 3) == 0).all()
    # The mask's own row is an input only.
    moved = eqx.tree_at(lambda h: h.token_embedding, head, head.token_embedding.at[head.mask_id].add(1.0))
    np.testing.assert_array_equal(moved(state), logits)


def test_maskgit_refuses_bad_ids_labels_and_grids():
    head = maskgit()
    traced = eqx.filter_jit(lambda ids, label: head.embed(ids, label)[0])
    with pytest.raises(ValueError, match=r"got ids of shape \(3, 2\), but this head was built for the grid \(2, 3\)"):
        head.embed(jnp.zeros((3, 2), int), jnp.asarray(0))
    for bad in (-1, 6):
        with pytest.raises(ValueError, match="codes are 0 to 4 and the mask is 5"):
            head.embed(jnp.full((2, 3), bad), jnp.asarray(0))
        tokens = traced(jnp.zeros((2, 3), int).at[1, 0].set(bad), jnp.asarray(0))
        np.testing.assert_array_equal(jnp.isnan(tokens).all(axis=1), np.arange(7) == 4)
    with pytest.raises(ValueError, match="labels 0 to 3, and 4 for no class"):
        head.embed(jnp.zeros((2, 3), int), jnp.asarray(5))
    np.testing.assert_array_equal(
        jnp.isnan(traced(jnp.zeros((2, 3), int), jnp.asarray(-1))).all(axis=1), np.arange(7) == 0
    )
    with pytest.raises(ValueError, match="needs sizes of at least 1"):
        maskgit(grid=(0, 3))


def dit(shape=(4, 6, 3), patch_size=2, **options):
    return DiTHead(12, shape=shape, patch_size=patch_size, num_classes=4, key=KEY, **options)


def test_dit_patches_are_row_major_with_channels_last():
    head = dit()
    identity = eqx.tree_at(lambda h: h.patch_embedding.weight, head, jnp.eye(12))
    x = jax.random.normal(KEY, (4, 6, 3))
    tokens, conditioning = identity.embed(x, jnp.asarray(0.3), jnp.asarray(1))
    patches = np.asarray(tokens) - sincos_positions((2, 3), 12)
    np.testing.assert_allclose(patches[4], np.asarray(x[2:4, 2:4]).reshape(-1), atol=1e-5)
    assert conditioning.shape == (12,)
    expected = head.time_embedding(jnp.asarray(0.3)) + head.label_embedding.weight[1]
    np.testing.assert_allclose(conditioning, expected, rtol=1e-6)


@pytest.mark.parametrize(("shape", "patch_size"), [((4, 6, 3), 2), ((2, 4, 6, 1), (1, 2, 3))])
def test_dit_unpatchify_inverts_patchify(shape, patch_size):
    head = dit(shape, patch_size, conditioning_dim=5)
    size = head.out.weight.shape[0]
    # With identity maps, no norm and no positions, head(embed(x)) must be x itself.
    x = jax.random.normal(KEY, shape)
    to_values = eqx.tree_at(
        lambda h: (h.patch_embedding.weight, h.out.weight, h.state_norm),
        head,
        (jnp.eye(12, size), jnp.eye(size, 12), lambda state: state),
    )
    tokens, conditioning = to_values.embed(x, jnp.asarray(0.0), jnp.asarray(0))
    tokens = tokens - sincos_positions(head.grid, 12)
    np.testing.assert_allclose(to_values(tokens, conditioning), x, atol=1e-5)


def test_dit_starts_by_predicting_zero_and_may_learn_the_variance():
    head = dit(learned_variance=True, prediction=Prediction.EPSILON)
    tokens, conditioning = head.embed(jnp.ones((4, 6, 3)), jnp.asarray(0.5), jnp.asarray(0))
    output = head(tokens, conditioning)
    assert output.shape == (4, 6, 6) and not output.any()


def test_dit_refuses_bad_shapes():
    with pytest.raises(ValueError, match="patches must divide the array"):
        dit(patch_size=5)
    with pytest.raises(ValueError, match=r"needs \(height, width, channels\)"):
        dit(shape=(4, 3))
    with pytest.raises(ValueError, match=r"shape \(6, 4, 3\), but this head was built for \(4, 6, 3\)"):
        dit().embed(jnp.ones((6, 4, 3)), jnp.asarray(0.5), jnp.asarray(0))
    with pytest.raises(ValueError, match="labels 0 to 3"):
        dit().embed(jnp.ones((4, 6, 3)), jnp.asarray(0.5), jnp.asarray(9))


@pytest.mark.numerical
@pytest.mark.parametrize("prediction", list(Prediction))
def test_predictions_convert_into_each_other(prediction):
    x0, epsilon = jax.random.normal(KEY, (2, 7))
    alpha, sigma = jnp.asarray(0.6), jnp.asarray(0.8)
    x_t = alpha * x0 + sigma * epsilon
    output = prediction.target(x0, epsilon, alpha, sigma)
    np.testing.assert_allclose(prediction.to_x0(output, x_t, alpha, sigma), x0, atol=1e-5)
    np.testing.assert_allclose(prediction.to_epsilon(output, x_t, alpha, sigma), epsilon, atol=1e-5)
