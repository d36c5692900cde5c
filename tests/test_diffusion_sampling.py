import itertools

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

from elt_zoo.corruption import LinearBetaSchedule, Prediction, ShiftedCosineSchedule
from elt_zoo.sampling import (
    DDIM,
    DDPM,
    ConstantGuidance,
    DiffusionSampler,
    IntervalGuidance,
    LoopBudget,
    constant_budget,
    diffusion_steps,
    linear_budget,
)

SCHEDULES = {"cosine": ShiftedCosineSchedule(), "shifted": ShiftedCosineSchedule(0.5), "beta": LinearBetaSchedule()}
# Independent normal data, one mean and deviation for each of three channels; the last is a point.
MEAN, DEVIATION = np.asarray([1.5, -0.5, 0.7]), np.asarray([0.3, 2.0, 0.0])
KEY = jax.random.key(0)


def optimal_predict(schedule, prediction):
    """The best possible network for that data, in closed form: x0 is the mean of x0 given x_t."""

    def predict(x, time, labels, *, loops):
        alpha, sigma = schedule.alpha_sigma(time[0])
        mean, variance = jnp.asarray(MEAN, jnp.float32), jnp.asarray(DEVIATION**2, jnp.float32)
        gain = alpha * variance / (alpha**2 * variance + sigma**2)
        x0 = mean[None] + gain[None] * (x - alpha * mean[None])
        return prediction.target(x0, (x - alpha * x0) / sigma, alpha, sigma)

    return predict


def chain(schedule, steps):
    """ᾱ of the sampling run in float64, noisy to clean, 1 (clean) appended."""
    times = jnp.asarray(schedule.sampling_times(steps), jnp.float32)
    log_snr = np.asarray(jax.vmap(schedule.log_snr)(times), np.float64)
    return np.append(1 / (1 + np.exp(-log_snr)), 1.0)


def ddim_reference(schedule, steps, x):
    """DDIM on that data as its paper writes it, in float64."""
    for bar, next_bar in itertools.pairwise(chain(schedule, steps)):
        gain = np.sqrt(bar) * DEVIATION**2 / (bar * DEVIATION**2 + 1 - bar)
        x0 = MEAN + gain * (x - np.sqrt(bar) * MEAN)
        epsilon = (x - np.sqrt(bar) * x0) / np.sqrt(1 - bar)
        x = np.sqrt(next_bar) * x0 + np.sqrt(1 - next_bar) * epsilon
    return x


def ddpm_reference(schedule, steps, fraction):
    """Mean and deviation that DDPM reaches on that data, from its paper's posterior, in float64."""
    mean, variance = np.zeros(3), np.ones(3)
    bars = chain(schedule, steps)
    for bar, next_bar in itertools.pairwise(bars):
        beta = 1 - bar / next_bar
        small = beta * (1 - next_bar) / (1 - bar)
        gain = np.sqrt(bar) * DEVIATION**2 / (bar * DEVIATION**2 + 1 - bar)
        of_x0 = np.sqrt(next_bar) * beta / (1 - bar)
        of_x = np.sqrt(1 - beta) * (1 - next_bar) / (1 - bar)
        mean = of_x0 * (MEAN + gain * (mean - np.sqrt(bar) * MEAN)) + of_x * mean
        variance = (of_x0 * gain + of_x) ** 2 * variance
        if next_bar < 1:
            variance = variance + np.exp((1 - fraction) * np.log(small) + fraction * np.log(beta))
    return mean, np.sqrt(variance)


def gaussian_sampler(schedule, prediction=Prediction.V, **settings):
    return DiffusionSampler(shape=(3,), prediction=prediction, schedule=schedule, **settings)


def toy_predict(x, time, labels, *, loops):
    return 0.3 * x + jnp.cos(labels.astype(jnp.float32))[:, None] * time[:, None]


def loops_predict(x, time, labels, *, loops):
    """x0 is the loop count of the conditional branch, a tenth of it without a class."""
    value = jnp.where(labels == 10, 0.1, 1.0) * jnp.asarray(loops, jnp.float32)
    return jnp.broadcast_to(value[:, None], x.shape)


def toy_sampler(steps=4, prediction=Prediction.X0, **settings):
    return DiffusionSampler(shape=(2,), prediction=prediction, null_label=10, steps=steps, **settings)


LABELS = jnp.arange(3)
# Long chains are slow in programs that compile fast.
LONG = (pytest.mark.slow, pytest.mark.optimized)


@pytest.mark.numerical
@pytest.mark.parametrize("prediction", list(Prediction))
@pytest.mark.parametrize("name", SCHEDULES)
def test_ddim_equals_its_papers_formula_on_gaussian_data(name, prediction):
    schedule = SCHEDULES[name]
    noise = jax.random.normal(KEY, (4, 3))
    sampler = gaussian_sampler(schedule, prediction, steps=6, update=DDIM())
    drawn = sampler(optimal_predict(schedule, prediction), jnp.zeros(4, jnp.int32), loops=1, key=KEY, initial=noise)
    np.testing.assert_allclose(drawn, ddim_reference(schedule, 6, np.asarray(noise, np.float64)), atol=2e-4)


@pytest.mark.numerical
@pytest.mark.parametrize("prediction", list(Prediction))
@pytest.mark.parametrize("name", SCHEDULES)
def test_ddim_reaches_mean_and_deviation_of_gaussian_data(name, prediction):
    schedule = SCHEDULES[name]
    sampler = gaussian_sampler(schedule, prediction, steps=500, update=DDIM())
    # The map from noise to data is affine: two points of noise tell it without sampling error.
    noise = jnp.asarray([[0.0, 0.0, 0.0], [1.0, 1.0, 1.0]])
    predict = optimal_predict(schedule, prediction)
    low, high = sampler(predict, jnp.zeros(2, jnp.int32), loops=1, key=KEY, initial=noise)
    np.testing.assert_allclose(low, MEAN, atol=0.03)
    np.testing.assert_allclose(high - low, DEVIATION, atol=0.03)
    # The point mass is met exactly.
    np.testing.assert_allclose(jnp.stack([low, high])[:, 2], MEAN[2], atol=1e-5)


@pytest.mark.numerical
@pytest.mark.parametrize(
    ("steps", "name", "prediction", "fraction"),
    [
        (8, "cosine", "x0", 0.0),
        (8, "shifted", "v", 1.0),
        (8, "beta", "epsilon", 0.3),
        pytest.param(500, "cosine", "epsilon", 1.0, marks=LONG),
        pytest.param(500, "shifted", "x0", 0.3, marks=LONG),
        pytest.param(500, "beta", "v", 0.0, marks=LONG),
    ],
)
def test_ddpm_reaches_mean_and_deviation_of_gaussian_data(steps, name, prediction, fraction):
    schedule, prediction = SCHEDULES[name], Prediction(prediction)
    sampler = gaussian_sampler(schedule, prediction, steps=steps, update=DDPM(variance=fraction))
    drawn = sampler(optimal_predict(schedule, prediction), jnp.zeros(20_000, jnp.int32), loops=1, key=KEY)
    mean, deviation = ddpm_reference(schedule, steps, fraction)
    np.testing.assert_allclose(jnp.mean(drawn, axis=0), mean, atol=0.03)
    np.testing.assert_allclose(jnp.std(drawn, axis=0), deviation, rtol=0.02, atol=1e-5)
    if steps == 500:  # What is left is the step size's: the posterior's variance is that of data without spread.
        np.testing.assert_allclose(jnp.mean(drawn, axis=0), MEAN, atol=0.05)
        np.testing.assert_allclose(jnp.std(drawn, axis=0), DEVIATION, rtol=0.04, atol=1e-5)


@pytest.mark.numerical
@pytest.mark.parametrize("name", ["shifted", "beta"])
def test_ddim_with_eta_1_is_ddpm(name):
    schedule, predict = SCHEDULES[name], optimal_predict(SCHEDULES[name], Prediction.V)
    labels = jnp.zeros(4, jnp.int32)
    ddim = gaussian_sampler(schedule, steps=7, update=DDIM(eta=1.0))(predict, labels, loops=1, key=KEY)
    ddpm = gaussian_sampler(schedule, steps=7)(predict, labels, loops=1, key=KEY)
    np.testing.assert_allclose(ddim, ddpm, atol=1e-4)


def test_one_step_is_the_predicted_x0():
    sampler = toy_sampler(steps=1)
    noise = jax.random.normal(KEY, (3, 2))
    drawn = sampler(toy_predict, LABELS, loops=1, key=KEY, initial=noise)
    np.testing.assert_allclose(drawn, toy_predict(noise, jnp.ones(3), LABELS, loops=1), rtol=1e-6)


@pytest.mark.numerical
class TestOriginalDiT:
    """Against the tables and steps of facebookresearch/DiT, 25 steps of 1000, learned variance."""

    update = DDPM(learned_variance=True)
    sampler = DiffusionSampler(
        shape=(8, 8, 4), prediction=Prediction.EPSILON, schedule=LinearBetaSchedule(), steps=25, update=update
    )

    @pytest.fixture
    def fixture(self, published):
        return published.arrays("dit_facebook", "diffusion.npz")

    def test_tables(self, fixture):
        steps = diffusion_steps(self.sampler.schedule, 25)
        np.testing.assert_array_equal(np.rint(np.asarray(steps.time) * 1000)[::-1], fixture["respaced_timestep_map"])
        bars = np.asarray(jax.nn.sigmoid(steps.log_snr))[::-1]
        np.testing.assert_allclose(bars, fixture["respaced_alphas_cumprod"], rtol=1e-5)
        log_large, log_small = np.asarray(steps.log_large)[::-1], np.asarray(steps.log_small)[::-1]
        np.testing.assert_allclose(log_large, np.log(fixture["respaced_betas"]), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(log_small, fixture["posterior_log_variance_clipped"], rtol=1e-5, atol=1e-6)

    def test_posterior_coefficients(self, fixture):
        one, zero = jnp.ones((1, 1)), jnp.zeros((1, 1))
        steps = diffusion_steps(self.sampler.schedule, 25)
        of_x0 = jax.vmap(lambda step: DDPM().posterior(zero, one, step)[0][0, 0])(steps)
        of_x = jax.vmap(lambda step: DDPM().posterior(one, zero, step)[0][0, 0])(steps)
        np.testing.assert_allclose(np.asarray(of_x0)[::-1], fixture["posterior_mean_coef1"], rtol=1e-5)
        np.testing.assert_allclose(np.asarray(of_x)[::-1], fixture["posterior_mean_coef2"], rtol=1e-5, atol=1e-7)

    @pytest.mark.parametrize("example", range(4))
    def test_steps(self, example, fixture):
        channels_last = lambda array: jnp.moveaxis(jnp.asarray(array), 1, -1)[example][None]  # noqa: E731
        index = 24 - int(fixture["t"][example])
        step = jax.tree.map(lambda table: table[index], diffusion_steps(self.sampler.schedule, 25))
        x = channels_last(fixture["x"])
        output, variance = self.sampler._split(channels_last(fixture["model_output"]))
        x0, epsilon = self.sampler._clean_and_noise(output, x, step)
        mean, log_variance = self.update.posterior(x, x0, step, variance=variance)
        ddim = DDIM()(x, x0, epsilon, step)
        for name, value in (
            ("pred_xstart", x0),
            ("p_mean", mean),
            ("p_log_variance", log_variance),
            ("ddim_sample", ddim),
        ):
            original = channels_last(fixture[name])
            error = jnp.linalg.norm(jnp.ravel(value - original)) / jnp.linalg.norm(jnp.ravel(original))
            assert error < 1e-5, (name, float(error))


@pytest.mark.numerical
def test_learned_variance_is_what_the_channels_say():
    schedule = LinearBetaSchedule()
    step = jax.tree.map(lambda table: table[3], diffusion_steps(schedule, 10))
    x = jnp.zeros((1, 2))
    for channel, fixed in ((-1.0, 0.0), (1.0, 1.0), (0.0, 0.5)):
        learned = DDPM(learned_variance=True).posterior(x, x, step, variance=jnp.full((1, 2), channel))[1]
        np.testing.assert_allclose(learned, DDPM(variance=fixed).posterior(x, x, step)[1] * jnp.ones((1, 2)), rtol=1e-6)


def test_the_network_gets_the_original_index_over_the_chains_length():
    times = []

    def predict(x, time, labels, *, loops):
        jax.debug.callback(lambda time: times.append(float(time)), time[1])
        return toy_predict(x, time, labels, loops=loops)

    jax.block_until_ready(toy_sampler(schedule=LinearBetaSchedule())(predict, LABELS, loops=1, key=KEY))
    jax.effects_barrier()
    np.testing.assert_allclose(sorted(times), [0.0, 0.333, 0.666, 0.999], rtol=1e-6)


def test_clipping_bounds_x0_and_keeps_epsilon_consistent():

    def predict(x, time, labels, *, loops):
        return jnp.full_like(x, 5.0)

    noise = jax.random.normal(KEY, (3, 2))
    trajectory = toy_sampler(clip_x0=1.0, update=DDIM()).trajectory(predict, LABELS, loops=1, key=KEY, initial=noise)
    np.testing.assert_array_equal(trajectory[-1], 1.0)
    # As if the network had said 1.

    def ones(x, time, labels, *, loops):
        return jnp.ones_like(x)

    expected = toy_sampler(update=DDIM()).trajectory(ones, LABELS, loops=1, key=KEY, initial=noise)
    np.testing.assert_allclose(trajectory, expected, atol=1e-6)


def test_same_key_same_numbers_and_the_trajectory_ends_in_the_answer():
    sampler = toy_sampler()
    drawn = sampler(toy_predict, LABELS, loops=1, key=KEY)
    trajectory = sampler.trajectory(toy_predict, LABELS, loops=1, key=KEY)
    assert drawn.shape == (3, 2) and drawn.dtype == jnp.float32 and trajectory.shape == (4, 3, 2)
    np.testing.assert_array_equal(trajectory[-1], drawn)
    np.testing.assert_array_equal(sampler(toy_predict, LABELS, loops=1, key=KEY), drawn)
    assert np.any(np.asarray(sampler(toy_predict, LABELS, loops=1, key=jax.random.key(5))) != np.asarray(drawn))


def test_every_form_of_a_budget_draws_the_same():
    sampler = toy_sampler(guidance=ConstantGuidance(2.0))
    expected = sampler(toy_predict, LABELS, loops=3, key=KEY)
    for loops in (jnp.asarray(3), constant_budget(3, 4), LoopBudget(3, 3), LoopBudget(3, jnp.asarray(3))):
        np.testing.assert_allclose(sampler(toy_predict, LABELS, loops=loops, key=KEY), expected, atol=1e-6)


def test_the_loops_of_each_step_and_branch_reach_predict():
    trajectory = toy_sampler(update=DDIM()).trajectory(loops_predict, LABELS, loops=linear_budget(1, 4, 4), key=KEY)
    np.testing.assert_allclose(trajectory[-1], 4.0)
    sampler = toy_sampler(guidance=ConstantGuidance(3.0))
    drawn = sampler(loops_predict, LABELS, loops=LoopBudget(linear_budget(1, 4, 4), 2), key=KEY)
    # The last step: 0.2 + 3·(4 − 0.2).
    np.testing.assert_allclose(drawn, 11.6, rtol=1e-6)
    drawn = sampler(loops_predict, LABELS, loops=LoopBudget(2, linear_budget(1, 3, 4)), key=KEY)
    np.testing.assert_allclose(drawn, 0.3 + 3 * (2 - 0.3), rtol=1e-6)


def test_guidance_at_scale_1_is_no_guidance():
    expected = toy_sampler()(toy_predict, LABELS, loops=2, key=KEY)
    for loops in (2, LoopBudget(2, 1)):
        guided = toy_sampler(guidance=ConstantGuidance(1.0))(toy_predict, LABELS, loops=loops, key=KEY)
        np.testing.assert_allclose(guided, expected, atol=1e-6)


def test_interval_guidance_is_guidance_inside_and_none_outside():
    sampler = toy_sampler(update=DDIM())
    guided = toy_sampler(update=DDIM(), guidance=ConstantGuidance(3.0))
    interval = toy_sampler(update=DDIM(), guidance=IntervalGuidance(ConstantGuidance(3.0), start=0.5, stop=1.0))
    draw = lambda sampler: np.asarray(sampler.trajectory(toy_predict, LABELS, loops=1, key=KEY))  # noqa: E731
    np.testing.assert_allclose(draw(interval)[:2], draw(sampler)[:2], atol=1e-6)
    assert np.all(np.abs(draw(interval)[2:] - draw(sampler)[2:]) > 1e-3)
    assert np.all(np.abs(draw(guided)[0] - draw(sampler)[0]) > 1e-3)


def test_only_the_asked_channels_and_never_the_variance_are_guided():
    def predict(x, time, labels, *, loops):
        value = jnp.where(labels == 10, 0.0, 1.0)[:, None]
        return jnp.concatenate([jnp.broadcast_to(value, x.shape), jnp.broadcast_to(value * 0.5, x.shape)], axis=1)

    sampler = toy_sampler(steps=1, guidance=ConstantGuidance(3.0), guidance_channels=1)
    np.testing.assert_allclose(sampler(predict, LABELS, loops=1, key=KEY), [[3.0, 1.0]] * 3, rtol=1e-6)
    # The variance of the guided run is that of the conditional one.
    key, noise = jax.random.key(3), jnp.zeros((3, 2))
    settings = {"steps": 2, "update": DDPM(learned_variance=True)}

    def ones(x, time, labels, *, loops):
        return predict(x, time, jnp.zeros_like(labels), loops=loops)

    plain = toy_sampler(**settings).trajectory(ones, LABELS, loops=1, key=key, initial=noise)
    guided = toy_sampler(guidance=ConstantGuidance(3.0), **settings).trajectory(
        predict, LABELS, loops=1, key=key, initial=noise
    )
    # x_s = a·x_T + b·x0 + deviation·noise with x_T = 0: three times x0, the same noise.
    shift = guided[0] - plain[0]
    np.testing.assert_allclose(shift, jnp.broadcast_to(shift[0, 0], shift.shape), rtol=1e-4)


def test_other_values_of_anything_traced_compile_nothing():
    traces = []

    def predict(x, time, labels, *, loops):
        traces.append(None)
        return toy_predict(x, time, labels, loops=loops) * loops.astype(jnp.float32)

    toy_sampler(guidance=ConstantGuidance(2.0))(predict, LABELS, loops=jnp.asarray(1), key=KEY)
    once = len(traces)
    for count, loops in enumerate((jnp.asarray(4), linear_budget(1, 5, 4))):
        sampler = toy_sampler(guidance=ConstantGuidance(3.0 + count))
        sampler(predict, LABELS + count, loops=loops, key=jax.random.key(count))
    assert len(traces) == once


@pytest.mark.numerical
def test_nan_in_a_prediction_stays_nan():
    def predict(x, time, labels, *, loops):
        return jnp.where(labels[:, None] == 1, jnp.nan, x)

    for guidance in (None, ConstantGuidance(2.0)):
        drawn = toy_sampler(guidance=guidance)(predict, LABELS, loops=1, key=KEY)
        np.testing.assert_array_equal(np.isnan(drawn), np.asarray([[False], [True], [False]]) | np.zeros((3, 2), bool))


def test_a_traced_count_below_one_gives_nan_and_no_host_callback():
    sampler = toy_sampler()
    draw = jax.jit(lambda loops: sampler(toy_predict, LABELS, loops=loops, key=KEY))
    assert np.all(np.isfinite(draw(jnp.asarray(1)))) and np.all(np.isnan(draw(jnp.asarray(0))))
    assert "callback" not in draw.lower(jnp.asarray(1)).as_text()


def test_a_callback_hears_of_every_step_in_order():
    heard = []
    callback = lambda step, steps: heard.append((step, steps))  # noqa: E731
    drawn = toy_sampler()(toy_predict, LABELS, loops=1, key=KEY, callback=callback)
    jax.effects_barrier()
    assert heard == [(1, 4), (2, 4), (3, 4), (4, 4)]
    np.testing.assert_allclose(drawn, toy_sampler()(toy_predict, LABELS, loops=1, key=KEY), rtol=1e-6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: toy_sampler(steps=0), "at least one step"),
        (lambda: toy_sampler(steps=11, schedule=LinearBetaSchedule(10)), "more than the 10 noise levels"),
        (lambda: toy_sampler(clip_x0=0.0), r"clip_x0=0.0\)` must be positive"),
        (lambda: toy_sampler(guidance_channels=3), "must be from 1 to the 2 channels"),
        (lambda: DiffusionSampler(shape=(), prediction=Prediction.V), "needs the shape of one example"),
        (
            lambda: DiffusionSampler(shape=(2,), prediction=Prediction.V, guidance=ConstantGuidance(2.0)),
            "also needs `null_label`",
        ),
        (lambda: DDIM(eta=1.5), r"eta=1.5\)` must be in \[0, 1\]"),
        (lambda: DDPM(variance=-0.1), r"variance=-0.1\)` must be in \[0, 1\]"),
        (lambda: DDPM(variance=0.5, learned_variance=True), "sets the variance twice"),
    ],
)
def test_bad_settings_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_bad_calls_are_refused():
    with pytest.raises(ValueError, match=r"returned shape \(3, 5\); `DiffusionSampler` expects \(3, 2\), or \(3, 4\)"):
        toy_sampler()(lambda x, time, labels, *, loops: jnp.zeros((3, 5)), LABELS, loops=1, key=KEY)
    with pytest.raises(ValueError, match="needs variance channels, but `predict` returned none"):
        toy_sampler(update=DDPM(learned_variance=True))(toy_predict, LABELS, loops=1, key=KEY)
    with pytest.raises(ValueError, match=r"`initial` has shape \(3, 5\).*of shape \(3, 2\)"):
        toy_sampler()(toy_predict, LABELS, loops=1, key=KEY, initial=jnp.zeros((3, 5)))
    with pytest.raises(ValueError, match="this sampler has no guidance"):
        toy_sampler()(toy_predict, LABELS, loops=LoopBudget(2, 1), key=KEY)
    step = jax.tree.map(lambda table: table[0], diffusion_steps(ShiftedCosineSchedule(), 2))
    with pytest.raises(ValueError, match=r"`initial` has .* dtype int32"):
        toy_sampler()(toy_predict, LABELS, loops=1, key=KEY, initial=jnp.zeros((3, 2), jnp.int32))
    for update in (DDPM(), DDIM(eta=0.5)):
        with pytest.raises(ValueError, match="is stochastic: pass `noise`"):
            update(jnp.zeros((1, 2)), jnp.zeros((1, 2)), jnp.zeros((1, 2)), step)
    with pytest.raises(ValueError, match="pass `variance`"):
        DDPM(learned_variance=True).posterior(jnp.zeros((1, 2)), jnp.zeros((1, 2)), step)
    for labels in (jnp.zeros(3), jnp.zeros((3, 1), jnp.int32)):
        with pytest.raises(jaxtyping.TypeCheckError, match="labels"):
            toy_sampler()(toy_predict, labels, loops=1, key=KEY)
