import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from elt_zoo.data import digits_to_pixels, load_digits
from elt_zoo.tokenizers import GreyLevels, PatchCodebook, load_tokenizer, save_tokenizer

SHAPE = (4, 6, 2)
CODES = jnp.asarray(np.random.default_rng(0).uniform(-1.0, 1.0, (7, 8)), jnp.float32)


@pytest.fixture(scope="module")
def digits():
    return digits_to_pixels(load_digits("train").images)


@pytest.fixture(scope="module")
def fitted(digits):
    return PatchCodebook.fit(digits, codebook_size=32)


@given(st.integers(2, 20), st.integers(0, 2**32 - 1))
def test_grey_levels_lose_nothing_of_an_image_of_that_many_levels(levels, seed):
    tokenizer = GreyLevels((3, 5, 1), levels)
    ids = np.random.default_rng(seed).integers(0, levels, (3, 5))
    image = tokenizer.decode(jnp.asarray(ids, jnp.int32))
    np.testing.assert_allclose(image[..., 0], 2.0 * ids / (levels - 1) - 1.0, atol=1e-6)
    np.testing.assert_array_equal(tokenizer.encode(image), ids)


def test_17_levels_are_the_digits_own():
    digits = load_digits("heldout").images[:20]
    tokenizer = GreyLevels((8, 8, 1), 17)
    np.testing.assert_array_equal(jax.vmap(tokenizer.encode)(jnp.asarray(digits_to_pixels(digits))), digits[..., 0])


def test_a_pixel_out_of_range_takes_the_nearest_level():
    image = jnp.asarray([[-3.0, 3.0], [-0.4, 0.4]])[..., None]
    assert GreyLevels((2, 2, 1), 3).encode(image).tolist() == [[0, 2], [1, 1]]


def test_every_patch_takes_its_nearest_code_and_comes_back_in_its_place():
    tokenizer = PatchCodebook(CODES, SHAPE, 2)
    assert (tokenizer.codebook_size, tokenizer.grid) == (7, (2, 3))
    image = np.random.default_rng(1).uniform(-1.0, 1.0, SHAPE).astype(np.float32)
    ids, decoded = tokenizer.encode(jnp.asarray(image)), None
    for row in range(2):
        for column in range(3):
            patch = image[2 * row : 2 * row + 2, 2 * column : 2 * column + 2].reshape(-1)
            assert int(ids[row, column]) == np.argmin([np.sum((patch - code) ** 2) for code in CODES])
    decoded = tokenizer.decode(ids)
    np.testing.assert_array_equal(decoded[2:4, 2:4].reshape(-1), CODES[ids[1, 1]])
    np.testing.assert_array_equal(tokenizer.encode(decoded), ids)


def test_patches_of_clips_reach_over_frames(tmp_path):
    clips = np.random.default_rng(2).uniform(-1.0, 1.0, (3, 4, 4, 6, 3)).astype(np.float32)
    tokenizer = PatchCodebook.fit(clips, codebook_size=36, patch_frames=2)  # as many codes as patches: nothing is lost
    assert (tokenizer.shape, tokenizer.grid) == ((4, 4, 6, 3), (2, 2, 3))
    ids = jax.vmap(tokenizer.encode)(jnp.asarray(clips))
    np.testing.assert_allclose(jax.vmap(tokenizer.decode)(ids), clips, atol=1e-6)
    code = tokenizer.codebook[ids[1, 1, 0, 2]].reshape(2, 2, 2, 3)
    np.testing.assert_allclose(code, clips[1, 2:, :2, 4:], atol=1e-6)
    save_tokenizer(tmp_path / "saved", tokenizer)
    assert eqx.tree_equal(load_tokenizer(tmp_path / "saved"), tokenizer)
    with pytest.raises(ValueError, match="patches of 3 × 2 × 2 do not divide images of 4 × 4 × 6"):
        PatchCodebook.fit(clips, patch_frames=3)


def test_of_equally_near_codes_the_first_is_taken():
    assert PatchCodebook(jnp.asarray([[0.5], [0.5], [-1.0]]), (1, 1, 1), 1).encode(jnp.zeros((1, 1, 1))).item() == 0


def test_the_fit_is_deterministic_and_close_to_the_images(digits, fitted):
    np.testing.assert_array_equal(fitted.codebook, PatchCodebook.fit(digits, codebook_size=32).codebook)
    mean = PatchCodebook.fit(digits, codebook_size=1)

    def error(tokenizer):
        decoded = jax.vmap(lambda image: tokenizer.decode(tokenizer.encode(image)))(digits)
        return float(jnp.mean(jnp.square(decoded - digits)))

    # A single code leaves the patches' whole variance; 32 of them leave a small part of it.
    assert error(fitted) < 0.1 * error(mean)


def test_tokens_survive_jit_vmap_and_other_dtypes(fitted, digits):
    images = jnp.asarray(digits[:3])
    ids = jax.jit(jax.vmap(fitted.encode))(images)
    assert ids.shape == (3, 4, 4) and ids.dtype == jnp.int32
    np.testing.assert_array_equal(ids[1], fitted.encode(images[1]))
    assert jax.vmap(fitted.decode)(ids.astype(jnp.int16)).dtype == jnp.float32


@pytest.mark.parametrize("tokenizer", [GreyLevels((4, 4, 1), 5), PatchCodebook(CODES[:5, :4], (4, 4, 1), 2)])
def test_wrong_input_is_named(tokenizer):
    with pytest.raises(ValueError, match=r"got an image of shape \(5, 4, 1\) but works on \(4, 4, 1\)"):
        tokenizer.encode(jnp.zeros((5, 4, 1)))
    with pytest.raises(ValueError, match=r"got ids of shape \(3, 4\)"):
        tokenizer.decode(jnp.zeros((3, 4), jnp.int32))
    for bad in (-1, 5):
        with pytest.raises(ValueError, match="outside the codebook, which has ids 0 to 4"):
            tokenizer.decode(jnp.full(tokenizer.grid, bad))
        one_wrong = jnp.zeros(tokenizer.grid, jnp.int32).at[0, 0].set(bad)
        wrong = jnp.isnan(eqx.filter_jit(tokenizer.decode)(one_wrong))
        assert wrong[0, 0].all() and int(wrong.sum()) == wrong.size // one_wrong.size


@pytest.mark.parametrize(
    ("build", "text"),
    [
        (lambda: GreyLevels((4, 4, 3), 5), "one channel"),
        (lambda: GreyLevels((4, 4, 1), 1), "two levels"),
        (lambda: PatchCodebook(CODES, (5, 6, 2), 2), "patches must divide"),
        (lambda: PatchCodebook(CODES, SHAPE, 1), "a code is one patch"),
        (lambda: PatchCodebook.fit(np.zeros((2, 5, 4, 1), np.float32)), "do not divide images of 5 × 4"),
        (lambda: PatchCodebook.fit(np.zeros((2, 4, 4, 1), np.float32), codebook_size=9), "1 to 8 codes"),
    ],
)
def test_wrong_sizes_are_named(build, text):
    with pytest.raises(ValueError, match=text):
        build()
