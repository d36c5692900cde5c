import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from elt_zoo.corruption import Prediction
from elt_zoo.sampling import (
    ConstantGuidance,
    CosineGuidance,
    DiffusionSampler,
    IntervalGuidance,
    LinearGuidance,
    LoopBudget,
    apply_guidance,
    average_loops,
    total_loops,
)

COND, UNCOND = jnp.asarray([[1.0, 2.0, 3.0]]), jnp.asarray([[0.5, 1.0, 7.0]])


def scales(guidance, steps=4):
    return guidance.scales(steps).tolist()


def test_scale_1_is_the_conditional_prediction_exactly_and_0_the_unconditional():
    np.testing.assert_array_equal(apply_guidance(COND, UNCOND, jnp.ones(())), COND)
    np.testing.assert_allclose(apply_guidance(COND, UNCOND, jnp.zeros(())), UNCOND)


def test_the_formula_in_both_ways_of_writing():
    guided = apply_guidance(COND, UNCOND, jnp.asarray(3.0))
    np.testing.assert_allclose(guided, UNCOND + 3 * (COND - UNCOND), rtol=1e-6)
    weight = 3.0 - 1.0
    np.testing.assert_allclose(guided, (1 + weight) * COND - weight * UNCOND, rtol=1e-6)


def test_only_the_asked_channels_are_guided():
    guided = apply_guidance(COND, UNCOND, jnp.asarray(2.0), channels=2)
    np.testing.assert_allclose(guided, [[1.5, 3.0, 3.0]])


def test_bfloat16_predictions_are_guided_in_float32():
    assert apply_guidance(COND.astype(jnp.bfloat16), UNCOND.astype(jnp.bfloat16), jnp.ones(())).dtype == jnp.float32


def test_schedules_at_progress_0_to_three_quarters():
    assert scales(ConstantGuidance(2.0)) == [2.0] * 4
    assert scales(LinearGuidance(1.0, 3.0)) == [1.0, 1.5, 2.0, 2.5]
    np.testing.assert_allclose(scales(CosineGuidance(3.0)), [1, 1 + (1 - 0.5**0.5), 2, 2 + 0.5**0.5], rtol=1e-6)
    late = scales(CosineGuidance(3.0, power=3.0))
    np.testing.assert_allclose(late[2], 1 + (1 - np.cos(np.pi / 8)), rtol=1e-5)
    assert scales(IntervalGuidance(LinearGuidance(1.0, 3.0), start=0.25, stop=0.75)) == [1.0, 1.5, 2.0, 1.0]


ROUND = [share / 20 for share in range(21)]


@pytest.mark.parametrize("steps", [8, 10, 12, 16, 20, 25, 50, 64, 100])
def test_an_interval_guides_exactly_its_steps_whatever_the_rounding(steps):
    for first, last in itertools.combinations(range(21), 2):
        wanted = [first * steps <= 20 * step < last * steps for step in range(steps)]
        # Three ways to write a share of twentieths, which differ in their last bits.
        for start, stop in ((first / 20, last / 20), (first * 0.05, last * 0.05), (1 - (20 - first) / 20, last / 20)):
            interval = IntervalGuidance(ConstantGuidance(3.0), start=start, stop=min(stop, 1.0))
            assert interval.guided(steps).tolist() == wanted
        assert np.array_equal(interval.scales(steps), np.where(wanted, 3.0, 1.0))


def test_step_15_of_25_is_at_progress_0_6():
    interval = IntervalGuidance(ConstantGuidance(2.0), start=0.6, stop=1.0)
    assert np.flatnonzero(interval.guided(25)).tolist() == list(range(15, 25))
    assert total_loops(LoopBudget(4, 1), 25, guidance=interval) == 110
    assert average_loops(2, 25, guidance=interval) == 2.0


def test_an_interval_within_an_interval():
    inner = IntervalGuidance(ConstantGuidance(2.0), start=0.0, stop=0.5)
    both = IntervalGuidance(inner, start=0.25, stop=1.0)
    assert scales(both) == [1.0, 2.0, 1.0, 1.0] and both.guided(4).tolist() == [False, True, False, False]


class RecordingPredict:
    """Records the size of the batch at every call on the host."""

    def __init__(self):
        self.sizes = []

    def __call__(self, x, time, labels, *, loops):
        jax.debug.callback(lambda size, time: self.sizes.append((float(time), int(size))), x.shape[0], time[0])
        return x * labels[:, None].astype(jnp.float32)


@pytest.mark.parametrize("steps", [5, 25])
def test_the_steps_that_a_run_guides_are_those_that_are_counted(steps):
    interval = IntervalGuidance(ConstantGuidance(2.0), start=0.6, stop=0.8)
    sampler = DiffusionSampler(shape=(2,), prediction=Prediction.X0, null_label=4, steps=steps, guidance=interval)
    predict = RecordingPredict()
    jax.block_until_ready(sampler(predict, jnp.arange(3), loops=1, key=jax.random.key(0)))
    jax.effects_barrier()
    sizes = [size for _, size in sorted(predict.sizes, reverse=True)]  # Time falls.
    assert sizes == np.where(interval.guided(steps), 6, 3).tolist()
    assert total_loops(1, steps, guidance=interval) == sum(sizes) // 3


def test_an_interval_without_a_step_in_it_guides_nothing():
    interval = IntervalGuidance(ConstantGuidance(2.0), start=0.3, stop=0.4)
    sampler = DiffusionSampler(shape=(2,), prediction=Prediction.X0, null_label=4, steps=2, guidance=interval)
    predict = RecordingPredict()
    jax.block_until_ready(sampler(predict, jnp.arange(3), loops=1, key=jax.random.key(0)))
    jax.effects_barrier()
    assert [size for _, size in predict.sizes] == [3, 3]


def test_other_scales_compile_nothing_and_may_be_traced():
    traces = []

    def predict(x, time, labels, *, loops):
        traces.append(None)
        return x * labels[:, None].astype(jnp.float32)

    def draw(scale):
        interval = IntervalGuidance(ConstantGuidance(scale), start=0.5, stop=1.0)
        sampler = DiffusionSampler(shape=(2,), prediction=Prediction.X0, null_label=4, steps=2, guidance=interval)
        return sampler(predict, jnp.arange(3), loops=1, key=jax.random.key(0))

    draw(2.0)
    once = len(traces)
    expected = draw(3.0)
    assert len(traces) == once
    np.testing.assert_allclose(jax.jit(draw)(jnp.asarray(3.0)), expected, rtol=1e-6)


def test_a_code_that_either_branch_bans_stays_banned():
    cond, uncond = jnp.asarray([-jnp.inf, -jnp.inf, 1.0, 1.0]), jnp.asarray([-jnp.inf, 2.0, -jnp.inf, 3.0])
    for scale in (0.0, 0.5, 3.0):
        guided = apply_guidance(cond, uncond, jnp.asarray(scale))
        np.testing.assert_allclose(guided, [-np.inf] * 3 + [3.0 + scale * (1.0 - 3.0)])
    np.testing.assert_array_equal(apply_guidance(cond, uncond, jnp.ones(())), cond)


@pytest.mark.parametrize(("start", "stop"), [(-0.1, 0.5), (0.5, 0.5), (0.2, 1.1)])
def test_an_interval_is_a_share_of_the_sampling(start, stop):
    with pytest.raises(ValueError, match="needs 0 <= start < stop <= 1"):
        IntervalGuidance(ConstantGuidance(2.0), start=start, stop=stop)
