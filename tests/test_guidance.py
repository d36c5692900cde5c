import jax
import jax.numpy as jnp
import numpy as np
import pytest

from elt_zoo.sampling import (
    ConstantGuidance,
    CosineGuidance,
    IntervalGuidance,
    LinearGuidance,
    apply_guidance,
    scale_from_weight,
    weight_from_scale,
)
from elt_zoo.sampling._guidance import guided_steps, predict_guided

COND, UNCOND = jnp.asarray([[1.0, 2.0, 3.0]]), jnp.asarray([[0.5, 1.0, 7.0]])


def scales(guidance, steps=5):
    return jax.vmap(guidance)(jnp.linspace(0.0, 1.0, steps)).tolist()


def test_scale_1_is_the_conditional_prediction_exactly_and_0_the_unconditional():
    np.testing.assert_array_equal(apply_guidance(COND, UNCOND, jnp.ones(())), COND)
    np.testing.assert_allclose(apply_guidance(COND, UNCOND, jnp.zeros(())), UNCOND)


def test_the_formula_in_both_ways_of_writing():
    guided = apply_guidance(COND, UNCOND, jnp.asarray(3.0))
    np.testing.assert_allclose(guided, UNCOND + 3 * (COND - UNCOND), rtol=1e-6)
    weight = weight_from_scale(3.0)
    np.testing.assert_allclose(guided, (1 + weight) * COND - weight * UNCOND, rtol=1e-6)
    assert scale_from_weight(weight) == 3.0


def test_only_the_asked_channels_are_guided():
    guided = apply_guidance(COND, UNCOND, jnp.asarray(2.0), channels=2)
    np.testing.assert_allclose(guided, [[1.5, 3.0, 3.0]])


def test_bfloat16_predictions_are_guided_in_float32():
    assert apply_guidance(COND.astype(jnp.bfloat16), UNCOND.astype(jnp.bfloat16), jnp.ones(())).dtype == jnp.float32


def test_schedules():
    assert scales(ConstantGuidance(2.0)) == [2.0] * 5
    assert scales(LinearGuidance(1.0, 3.0)) == [1.0, 1.5, 2.0, 2.5, 3.0]
    np.testing.assert_allclose(scales(CosineGuidance(3.0)), [1, 1 + (1 - 0.5**0.5), 2, 2 + 0.5**0.5, 3], rtol=1e-6)
    late = scales(CosineGuidance(3.0, power=3.0))
    np.testing.assert_allclose(late[2], 1 + (1 - np.cos(np.pi / 8)), rtol=1e-5)
    assert scales(IntervalGuidance(LinearGuidance(1.0, 3.0), start=0.25, stop=0.75)) == [1.0, 1.5, 2.0, 1.0, 1.0]


def test_steps_outside_an_interval_leave_the_unconditional_branch_out():
    interval = IntervalGuidance(ConstantGuidance(2.0), start=0.2, stop=0.5)
    assert guided_steps(interval, 10).tolist() == [False] * 2 + [True] * 3 + [False] * 5
    calls = []

    def predict(x, labels, *, loops):
        jax.debug.callback(lambda size: calls.append(int(size)), jnp.asarray(x.shape[0]))
        return x * labels[:, None].astype(jnp.float32)

    @jax.jit
    def run(progress):
        return predict_guided(
            predict,
            (jnp.ones((2, 1)),),
            jnp.asarray([3, 4]),
            loops=(1, 1),
            shared=True,
            guidance=interval,
            null_label=1,
            progress=progress,
        )

    np.testing.assert_allclose(run(jnp.asarray(0.1)), [[3.0], [4.0]])
    jax.effects_barrier()
    assert calls == [2]
    np.testing.assert_allclose(run(jnp.asarray(0.3)), [[5.0], [7.0]])
    jax.effects_barrier()
    assert calls == [2, 4]


@pytest.mark.parametrize(("start", "stop"), [(-0.1, 0.5), (0.5, 0.5), (0.2, 1.1)])
def test_an_interval_is_a_share_of_the_sampling(start, stop):
    with pytest.raises(ValueError, match="needs 0 <= start < stop <= 1"):
        IntervalGuidance(ConstantGuidance(2.0), start=start, stop=stop)
