import jax
import jax.numpy as jnp
import numpy as np
import pytest

from elt_zoo.corruption import (
    ArccosMaskSchedule,
    CosineMaskSchedule,
    LinearMaskSchedule,
    PowerMaskSchedule,
)

SCHEDULES = [
    CosineMaskSchedule(),
    ArccosMaskSchedule(),
    LinearMaskSchedule(),
    PowerMaskSchedule(2.0),
    PowerMaskSchedule(0.5),
]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_everything_is_masked_at_0_and_nothing_at_1_and_the_share_falls_between(schedule):
    shares = jax.vmap(schedule)(jnp.linspace(0.0, 1.0, 101))
    assert shares.dtype == jnp.float32
    assert shares[0] == 1.0 and shares[-1] == 0.0
    assert np.all(jnp.diff(shares) < 0)


def test_values_are_those_of_the_formulas():
    ratio = np.linspace(0, 1, 33)
    expected = [np.cos(np.pi * ratio / 2), np.arccos(ratio) * 2 / np.pi, 1 - ratio, 1 - ratio**2, 1 - np.sqrt(ratio)]
    for schedule, values in zip(SCHEDULES, expected, strict=True):
        np.testing.assert_allclose(jax.vmap(schedule)(jnp.asarray(ratio, jnp.float32)), values, atol=1e-6)


def test_arccos_is_the_inverse_of_cosine():
    ratio = jnp.linspace(0.05, 0.95, 19)
    np.testing.assert_allclose(
        jax.vmap(lambda r: ArccosMaskSchedule()(CosineMaskSchedule()(r)))(ratio), ratio, atol=1e-5
    )


@pytest.mark.parametrize(
    ("schedule", "name"),
    [
        (CosineMaskSchedule(), "cosine"),
        (LinearMaskSchedule(), "uniform"),
        (PowerMaskSchedule(2.0), "pow2"),
        (PowerMaskSchedule(0.5), "pow0.5"),
    ],
)
def test_rates_equal_maskgits(schedule, name, published):
    fixture = published.arrays("maskgit_transformer_flax", "decode.npz")
    shares = jax.vmap(schedule)(jnp.asarray(fixture["ratios"], jnp.float32))
    np.testing.assert_allclose(shares, fixture[f"mask_rate_{name}"], atol=1e-6)


def test_the_power_must_be_positive():
    with pytest.raises(ValueError, match=r"PowerMaskSchedule\(exponent=0.0\)` must be positive"):
        PowerMaskSchedule(0.0)
