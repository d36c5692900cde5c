from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from elt_zoo import ILSDLoss
from elt_zoo.corruption import (
    CosineMaskSchedule,
    DiffusionCorruption,
    DiffusionTarget,
    MaskedCorruption,
    MaskedTarget,
    Prediction,
    ShiftedCosineSchedule,
)
from elt_zoo.objectives import (
    DeepSupervisionLoss,
    ExitWeighting,
    MaskedCrossEntropy,
    RandomDepthLoss,
    SigmoidWeightedMSE,
    VanillaLoss,
)

KEY = jax.random.key(0)


def square(prediction, target):
    return jnp.sum(jnp.square(prediction - target))


def distance(student, teacher, target):
    return 3.0 * jnp.sum(jnp.square(student - teacher))


@pytest.fixture(scope="module")
def ilsd():
    return ILSDLoss(square, distance, max_loops=4)


def test_ilsd_is_the_papers_formula(ilsd):
    student, teacher, target = jnp.asarray([1.0, 2.0]), jnp.asarray([3.0, 5.0]), jnp.asarray([0.0, 1.0])
    for progress, weight in [(0.0, 1.0), (0.25, 0.75), (1.0, 0.0)]:
        loss, terms = ilsd(student, teacher, target=target, progress=jnp.asarray(progress))
        assert float(terms["lambda"]) == pytest.approx(weight)
        assert (float(terms["teacher"]), float(terms["student"]), float(terms["distillation"])) == (25.0, 2.0, 39.0)
        assert float(loss) == pytest.approx(25.0 + weight * 2.0 + (1 - weight) * 39.0)


def test_distillation_sends_no_gradient_through_the_teacher(ilsd):
    student, teacher, target = jnp.asarray([1.0, 2.0]), jnp.asarray([3.0, 5.0]), jnp.asarray([0.0, 1.0])

    def loss(student, teacher, progress):
        return ilsd(student, teacher, target=target, progress=progress)[0]

    for progress in (0.0, 0.5, 1.0):
        to_student, to_teacher = jax.grad(loss, (0, 1))(student, teacher, progress)
        weight = 1.0 - progress
        np.testing.assert_allclose(to_teacher, 2 * (teacher - target), rtol=1e-6)
        expected = weight * 2 * (student - target) + (1 - weight) * 6 * (student - teacher)
        np.testing.assert_allclose(to_student, expected, rtol=1e-6)


def test_distillation_vanishes_when_student_and_teacher_agree(ilsd):
    same = jnp.asarray([1.0, 2.0])
    assert float(ilsd(same, same, target=same, progress=0.5)[1]["distillation"]) == 0.0


def test_any_optax_schedule_is_a_curriculum():
    for schedule in (optax.cosine_decay_schedule(1.0, 1), optax.constant_schedule(0.3)):
        loss = ILSDLoss(square, distance, max_loops=2, curriculum=schedule)
        x = jnp.zeros(2)
        value = loss(x, x, target=x, progress=jnp.asarray(0.5))[1]["lambda"]
        assert float(value) == pytest.approx(float(jnp.asarray(schedule(0.5))))


def test_a_lighter_student_leaves_the_teachers_term_as_it_is():
    student, teacher, target = jax.random.normal(KEY, (3, 4))
    plain = ILSDLoss(square, distance, max_loops=4)
    light = ILSDLoss(square, distance, max_loops=4, student_weight=0.25)
    for progress in (0.0, 0.3, 1.0):
        whole, terms = plain(student, teacher, target=target, progress=progress)
        part = light(student, teacher, target=target, progress=progress)[0]
        np.testing.assert_allclose(part - terms["teacher"], 0.25 * (whole - terms["teacher"]), rtol=1e-5)
    for wrong in (0.0, -1.0, 1.5, float("nan")):
        with pytest.raises(ValueError, match="must be above 0 and at most 1"):
            ILSDLoss(square, distance, max_loops=4, student_weight=wrong)


def test_student_exits_are_uniform_and_never_the_teachers():
    loss = ILSDLoss(square, distance, max_loops=5, min_loops=2, per_example=True)
    draws = loss.sample_loops(KEY, 30_000)
    values, counts = np.unique(draws, return_counts=True)
    np.testing.assert_array_equal(values, [2, 3, 4])
    np.testing.assert_allclose(counts / 30_000, 1 / 3, atol=0.01)
    assert ILSDLoss(square, distance, max_loops=5).sample_loops(KEY, 30_000).shape == ()
    draws = RandomDepthLoss(square, max_loops=3, per_example=True).sample_loops(KEY, 1000)
    assert set(np.asarray(draws).tolist()) == {1, 2, 3}


def test_an_empty_student_range_is_refused():
    cases: list[dict[str, Any]] = [
        {"max_loops": 1},
        {"max_loops": 4, "min_loops": 4},
        {"max_loops": 4, "min_loops": 0},
    ]
    for options in cases:
        with pytest.raises(ValueError, match="leaves no exit for the student, which takes at least") as caught:
            ILSDLoss(square, distance, **options)
        assert "{" not in str(caught.value)
    with pytest.raises(ValueError, match="needs 1 <= min_loops <= max_loops"):
        RandomDepthLoss(square, max_loops=2, min_loops=3)
    with pytest.raises(ValueError, match="needs at least one loop"):
        VanillaLoss(square, max_loops=0)
    with pytest.raises(ValueError, match="has no early exit"):
        DeepSupervisionLoss(square, max_loops=1)


def test_alternatives_supervise_what_they_say():
    exits, target = jnp.asarray([[1.0], [2.0], [4.0]]), jnp.asarray([0.0])
    assert float(VanillaLoss(square, max_loops=3)(exits[2], target=target, progress=0.0)[0]) == 16.0
    assert float(RandomDepthLoss(square, max_loops=3)(exits[1], target=target, progress=0.0)[0]) == 4.0
    loss, terms = DeepSupervisionLoss(square, max_loops=3)(exits, target=target, progress=0.0)
    assert float(loss) == pytest.approx(0.5 * 1.0 + 0.5 * 4.0 + 16.0)
    assert [float(terms[f"exit_{i}"]) for i in (1, 2, 3)] == [1.0, 4.0, 16.0]


def test_exit_weights_of_looped_dit():
    np.testing.assert_allclose(ExitWeighting.FINAL_PLUS_MEAN.weights(4), [1 / 3, 1 / 3, 1 / 3, 1], rtol=1e-6)
    np.testing.assert_allclose(ExitWeighting.EXPONENTIAL.weights(4), np.asarray([1, 2, 4, 8]) * 2 / 15, rtol=1e-6)
    np.testing.assert_allclose(ExitWeighting.UNIFORM.weights(4), [0.5] * 4, rtol=1e-6)


def masked_example():
    logits = jax.random.normal(KEY, (2, 3, 5))
    ids = jnp.asarray([[0, 1, 2], [3, 4, 0]])
    mask = jnp.asarray([[True, False, True], [False, True, False]])
    return logits, MaskedTarget(ids, mask)


def test_masked_cross_entropy_matches_numpy():
    logits, target = masked_example()
    for smoothing in (0.0, 0.1):
        expected = 0.0
        for i, j in zip(*np.nonzero(target.mask), strict=True):
            p = np.exp(logits[i, j]) / np.exp(logits[i, j]).sum()
            soft = np.full(5, smoothing / 5)
            soft[target.ids[i, j]] += 1 - smoothing
            expected -= (soft * np.log(p)).sum()
        assert float(MaskedCrossEntropy(smoothing)(logits, target)) == pytest.approx(expected, rel=1e-5)
    with pytest.raises(ValueError, match=r"label_smoothing=1\.0"):
        MaskedCrossEntropy(1.0)


def test_masked_distillation_is_cross_entropy_against_the_teachers_softmax():
    logits, target = masked_example()
    teacher = jax.random.normal(jax.random.key(1), logits.shape)
    expected = 0.0
    for i, j in zip(*np.nonzero(target.mask), strict=True):
        p, q = (np.exp(v[i, j]) / np.exp(v[i, j]).sum() for v in (teacher, logits))
        expected -= (p * np.log(q)).sum()
    loss = MaskedCrossEntropy()
    assert float(loss.distillation(logits, teacher, target)) == pytest.approx(expected, rel=1e-5)
    # Against a one-hot teacher it is the hard loss.
    hard = 100.0 * jax.nn.one_hot(target.ids, 5)
    np.testing.assert_allclose(loss.distillation(logits, hard, target), loss(logits, target), rtol=1e-5)
    # At the teacher's own logits the gradient vanishes.
    np.testing.assert_allclose(jax.grad(loss.distillation)(logits, logits, target), np.zeros(logits.shape), atol=1e-6)


def test_masked_losses_are_float32_for_bfloat16_logits():
    logits, target = masked_example()
    assert MaskedCrossEntropy()(logits.astype(jnp.bfloat16), target).dtype == jnp.float32


def test_sigmoid_weighting_does_not_depend_on_what_is_predicted():
    x0, epsilon, error = jax.random.normal(KEY, (3, 2, 2, 1))
    schedule, time = ShiftedCosineSchedule(), jnp.asarray(0.3)
    alpha, sigma = schedule.alpha_sigma(time)
    x_t = alpha * x0 + sigma * epsilon
    losses = []
    for prediction in Prediction:
        value = prediction.target(x0, epsilon, alpha, sigma)
        target = DiffusionTarget(value, schedule.log_snr(time), schedule.log_snr_rate(time))
        guess_x0 = x0 + 0.1 * error
        guess = prediction.target(guess_x0, (x_t - alpha * guess_x0) / sigma, alpha, sigma)
        loss = SigmoidWeightedMSE(prediction, bias=-1.0)
        losses.append(float(loss(guess, target)))
        np.testing.assert_allclose(loss.distillation(guess, value, target), losses[-1], rtol=1e-6)
    np.testing.assert_allclose(losses, losses[0], rtol=1e-4)
    log_snr, rate = float(schedule.log_snr(time)), float(schedule.log_snr_rate(time))
    in_x0 = rate / (1 + np.exp(log_snr + 1.0)) * np.exp(log_snr) * np.mean(np.square(0.1 * np.asarray(error)))
    assert losses[0] == pytest.approx(in_x0, rel=1e-4)


def test_variance_channels_get_no_gradient_from_the_mse():
    target = DiffusionTarget(jnp.ones((2, 2, 1)), jnp.asarray(0.0), jnp.asarray(1.0))
    gradient = jax.grad(SigmoidWeightedMSE(Prediction.EPSILON))(jnp.zeros((2, 2, 2)), target)
    assert gradient[..., 0].all() and not gradient[..., 1].any()


def test_masked_corruption_masks_what_it_says():
    corruption = MaskedCorruption(CosineMaskSchedule(), mask_id=9, null_label=4, label_drop=0.25)
    ids = jnp.asarray(np.random.default_rng(0).integers(0, 9, (400, 4, 4)))
    labels = jnp.asarray(np.arange(400) % 4)
    (masked, dropped), target, weight = eqx.filter_jit(corruption)(ids, labels, key=KEY)
    np.testing.assert_array_equal(target.ids, ids)
    np.testing.assert_array_equal(masked, np.where(target.mask, 9, ids))
    np.testing.assert_array_equal(weight, np.asarray(target.mask).sum((1, 2)))
    assert weight.min() >= 1 and weight.max() == 16
    # E[cos(π r / 2)] = 2/π, plus half a token for rounding up.
    assert np.mean(weight) / 16 == pytest.approx(2 / np.pi + 0.5 / 16, abs=0.01)
    assert np.mean(np.asarray(dropped) == 4) == pytest.approx(0.25, abs=0.06)
    # Positions are masked alike.
    np.testing.assert_allclose(np.asarray(target.mask).mean(0), 0.66, atol=0.1)


def test_diffusion_corruption_adds_the_noise_it_reports():
    schedule = ShiftedCosineSchedule()
    corruption = DiffusionCorruption(schedule, prediction=Prediction.EPSILON, null_label=4)
    x0 = jnp.full((64, 2, 2, 1), 0.5)
    (x_t, time, _), target, weight = eqx.filter_jit(corruption)(x0, jnp.zeros(64, jnp.int32), key=KEY)
    alpha, sigma = jax.vmap(schedule.alpha_sigma)(time)
    expected = alpha[:, None, None, None] * x0 + sigma[:, None, None, None] * target.value
    np.testing.assert_allclose(x_t, expected, atol=1e-5)
    np.testing.assert_array_equal(weight, np.ones(64))
    # Stratified: one time in each of the 64 intervals.
    np.testing.assert_array_equal(np.sort(np.floor(np.asarray(time) * 64)), np.arange(64))


def test_label_drop_must_be_a_share():
    with pytest.raises(ValueError, match=r"`MaskedCorruption\(label_drop=1.5\)`"):
        MaskedCorruption(CosineMaskSchedule(), mask_id=9, null_label=4, label_drop=1.5)
