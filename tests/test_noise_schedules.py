import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from elt_zoo.corruption import LinearBetaSchedule, Prediction, ShiftedCosineSchedule

SCHEDULES = [
    ShiftedCosineSchedule(),
    ShiftedCosineSchedule(0.25, log_snr_min=-15.0, log_snr_max=12.0),
    LinearBetaSchedule(),
    LinearBetaSchedule(20, beta_end=0.3),
]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_log_snr_falls_and_its_rate_is_its_derivative(schedule):
    time = jnp.linspace(0.0011, 0.9989, 40)
    log_snr, slope = jax.vmap(jax.value_and_grad(schedule.log_snr))(time)
    assert np.all(jnp.diff(log_snr) < 0)
    np.testing.assert_allclose(jax.vmap(schedule.log_snr_rate)(time), -slope, rtol=2e-4)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_signal_and_noise_have_unit_variance_and_the_stated_ratio(schedule):
    time = jnp.linspace(0.0, 1.0, 21)
    alpha, sigma = jax.vmap(schedule.alpha_sigma)(time)
    np.testing.assert_allclose(alpha**2 + sigma**2, 1.0, rtol=1e-6)
    np.testing.assert_allclose(2 * jnp.log(alpha / sigma), jax.vmap(schedule.log_snr)(time), rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("shift", [1.0, 0.25])
def test_shifted_cosine_ends_exactly_and_follows_its_formula(shift):
    schedule = ShiftedCosineSchedule(shift)
    np.testing.assert_allclose(schedule.log_snr(jnp.zeros(())), 10.0, rtol=1e-6)
    np.testing.assert_allclose(schedule.log_snr(jnp.ones(())), -10.0, rtol=1e-6)
    # In float64, from scratch: θ linear between the angles of the two ends.
    time = np.linspace(0, 1, 17)
    first, last = (math.atan(math.exp((2 * math.log(shift) - end) / 2)) for end in (10, -10))
    expected = -2 * np.log(np.tan(first + (last - first) * time)) + 2 * np.log(shift)
    np.testing.assert_allclose(
        jax.vmap(schedule.log_snr)(jnp.asarray(time, jnp.float32)), expected, rtol=2e-6, atol=2e-6
    )


def test_wide_shifted_cosine_is_the_plain_formula():
    schedule = ShiftedCosineSchedule(0.5, log_snr_min=-30.0, log_snr_max=30.0)
    log_snr = schedule.log_snr(jnp.asarray(0.3))
    np.testing.assert_allclose(log_snr, -2 * math.log(math.tan(math.pi * 0.15)) + 2 * math.log(0.5), rtol=1e-5)


def test_linear_beta_is_the_ddpm_table_at_its_indices():
    schedule = LinearBetaSchedule()
    alpha_bar = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    time = jnp.arange(1000, dtype=jnp.float32) / 1000
    alpha, sigma = jax.vmap(schedule.alpha_sigma)(time)
    np.testing.assert_allclose(alpha**2, alpha_bar, rtol=1e-5)
    np.testing.assert_allclose(sigma**2, 1 - alpha_bar, rtol=1e-5)


def test_respacing_is_that_of_improved_diffusion():
    assert LinearBetaSchedule().sampling_times(4).tolist() == [0.999, 0.666, 0.333, 0.0]
    np.testing.assert_array_equal(np.rint(LinearBetaSchedule().sampling_times(1000) * 1000), np.arange(999, -1, -1))
    for steps in (25, 50, 128, 250):  # The original's loop, with Python's rounding.
        position, indices = 0.0, []
        for _ in range(steps):
            indices.append(round(position))
            position += 999 / (steps - 1)
        np.testing.assert_array_equal(np.rint(LinearBetaSchedule().sampling_times(steps) * 1000), indices[::-1])
    assert LinearBetaSchedule().sampling_times(1).tolist() == [0.999]
    assert ShiftedCosineSchedule().sampling_times(4).tolist() == [1.0, 0.75, 0.5, 0.25]


@pytest.mark.parametrize("prediction", list(Prediction))
def test_every_prediction_gives_back_x0_and_epsilon(prediction):
    x0_key, epsilon_key = jax.random.split(jax.random.key(0))
    x0, epsilon = jax.random.normal(x0_key, (2, 3)), jax.random.normal(epsilon_key, (2, 3))
    alpha, sigma = ShiftedCosineSchedule().alpha_sigma(jnp.asarray(0.4))
    x_t = alpha * x0 + sigma * epsilon
    output = prediction.target(x0, epsilon, alpha, sigma)
    np.testing.assert_allclose(prediction.to_x0(output, x_t, alpha, sigma), x0, atol=1e-5)
    np.testing.assert_allclose(prediction.to_epsilon(output, x_t, alpha, sigma), epsilon, atol=1e-5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ShiftedCosineSchedule(0.0), r"shift=0.0\)` must be positive"),
        (lambda: ShiftedCosineSchedule(log_snr_min=10.0), "needs min < max"),
        (lambda: LinearBetaSchedule(1), "at least 2 noise levels"),
        (lambda: LinearBetaSchedule(beta_end=1.0), r"must both be in \(0, 1\)"),
        (lambda: LinearBetaSchedule(20).sampling_times(21), "more than the 20 noise levels"),
        (lambda: ShiftedCosineSchedule().sampling_times(0), "at least one step"),
    ],
)
def test_errors_say_what_is_wrong(make, message):
    with pytest.raises(ValueError, match=message):
        make()
