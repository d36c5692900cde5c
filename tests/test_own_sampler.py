"""A sampler that the library does not know works wherever it takes a sampler."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array, Float, Int, PRNGKeyArray

from elt_zoo.diagnostics import sample_at_exits, sampling_update_norms
from elt_zoo.families import DiTConfig, MaskGITConfig
from elt_zoo.profile import sample_compute
from elt_zoo.sampling import (
    AbstractGuidance,
    AbstractSampler,
    ConstantGuidance,
    DiffusionSampler,
    LoopBudget,
    MaskedSampler,
    total_loops,
)

TINY: dict[str, Any] = {"dim": 16, "num_layers": 1, "num_heads": 2, "max_loops": 3, "num_classes": 4}
MASKED = MaskGITConfig(grid=(2, 3), codebook_size=5, **TINY)
DIFFUSION = DiTConfig(shape=(4, 4, 1), patch_size=2, **TINY)
LABELS, KEY = jnp.arange(3), jax.random.key(0)


class OneStep(AbstractSampler):
    """One call of the network, from noise to what it takes for clean."""

    shape: tuple[int, ...] = eqx.field(static=True, kw_only=True)
    steps: int = eqx.field(static=True, default=1)
    null_label: int | None = eqx.field(static=True, default=None)
    guidance: AbstractGuidance | None = None

    def init(self, labels: Int[Array, " batch"], key: PRNGKeyArray, initial: Array | None) -> Array:
        return jax.random.normal(key, (*labels.shape, *self.shape)) if initial is None else initial

    def inputs(self, state: Array, now: Int[Array, ""]) -> tuple[Array, ...]:
        return state, jnp.ones(len(state))

    def step(
        self, state: Array, prediction: Float[Array, "batch *out"], now: Int[Array, ""], key: PRNGKeyArray
    ) -> Array:
        return prediction

    def output(self, state: Array) -> Array:
        return state


class LeftToRight(AbstractSampler):
    """One token after the other, each the likeliest. The state is a pair: ids, and how sure they are together."""

    mask_id: int = eqx.field(static=True, kw_only=True)
    steps: int = eqx.field(static=True, kw_only=True)
    null_label: int | None = eqx.field(static=True, default=None)
    guidance: AbstractGuidance | None = None

    def init(self, labels: Int[Array, " batch"], key: PRNGKeyArray, initial: Array | None) -> tuple[Array, Array]:
        return jnp.full((len(labels), self.steps), self.mask_id), jnp.zeros(labels.shape)

    def inputs(self, state: tuple[Array, Array], now: Int[Array, ""]) -> tuple[Array, ...]:
        return (jnp.reshape(state[0], (-1, 2, 3)),)

    def step(
        self, state: tuple[Array, Array], prediction: Float[Array, "batch *out"], now: Int[Array, ""], key: PRNGKeyArray
    ) -> tuple[Array, Array]:
        ids, log_prob = state
        log_probs = jax.nn.log_softmax(jnp.reshape(prediction, (len(ids), self.steps, -1))[:, now])
        return ids.at[:, now].set(jnp.argmax(log_probs, axis=1)), log_prob + jnp.max(log_probs, axis=1)

    def output(self, state: tuple[Array, Array]) -> Array:
        return state[0]


def masked_predict(ids, labels, *, loops):
    logits = jnp.sin(jnp.arange(6 * 5, dtype=jnp.float32)).reshape(1, 2, 3, 5) * (
        1.0 + ids[..., None].astype(jnp.float32)
    )
    return logits + jnp.cos(labels.astype(jnp.float32))[:, None, None, None]


def diffusion_predict(x, time, labels, *, loops):
    return x * jnp.where(labels == 4, 1.0, 3.0)[:, None, None, None]


@pytest.fixture(params=["one step", "left to right"])
def own(request):
    """A function from guidance to the sampler, and what it asks."""
    if request.param == "one step":
        return lambda guidance=None: OneStep(shape=(4, 4, 1), null_label=4, guidance=guidance), diffusion_predict
    return lambda guidance=None: LeftToRight(steps=6, mask_id=5, null_label=4, guidance=guidance), masked_predict


def test_the_trajectory_ends_in_the_sample(own):
    make, predict = own
    sampler = make()
    samples = sampler(predict, LABELS, loops=2, key=KEY)
    trajectory = sampler.trajectory(predict, LABELS, loops=2, key=KEY)
    assert trajectory.shape == (sampler.steps, *samples.shape)
    np.testing.assert_allclose(trajectory[-1], samples, rtol=1e-6)


def test_tokens_come_from_left_to_right():
    known = np.asarray(LeftToRight(steps=6, mask_id=5).trajectory(masked_predict, LABELS, loops=1, key=KEY)) != 5
    np.testing.assert_array_equal(known, np.broadcast_to(np.tril(np.ones((6, 6), bool))[:, None], known.shape))


def test_the_start_may_be_given():
    noise = jax.random.normal(KEY, (3, 4, 4, 1))
    samples = OneStep(shape=(4, 4, 1))(diffusion_predict, LABELS, loops=1, key=KEY, initial=noise)
    np.testing.assert_array_equal(samples, 3.0 * noise)


def test_guidance_runs_both_branches(own):
    make, predict = own
    plain = make()(predict, LABELS, loops=2, key=KEY)
    for loops in (2, LoopBudget(2, 1)):
        unguided = make(ConstantGuidance(1.0))(predict, LABELS, loops=loops, key=KEY)
        np.testing.assert_allclose(unguided, plain, atol=1e-5)
    if predict is diffusion_predict:  # 1 + 2·(3 − 1) of the noise in place of 3.
        guided = make(ConstantGuidance(2.0))(predict, LABELS, loops=2, key=KEY)
        np.testing.assert_allclose(guided, plain * 5 / 3, rtol=1e-5)


def test_progress_is_reported(own):
    make, predict = own
    sampler, heard = make(), []
    callback = lambda step, steps: heard.append((step, steps))  # noqa: E731
    sampler(predict, LABELS, loops=1, key=KEY, callback=callback)
    jax.effects_barrier()
    assert heard == [(step, sampler.steps) for step in range(1, sampler.steps + 1)]


@pytest.fixture(params=["one step", "left to right"])
def own_with_config(request):
    if request.param == "one step":
        return OneStep(shape=(4, 4, 1), null_label=4), DIFFUSION
    return LeftToRight(steps=6, mask_id=5, null_label=4), MASKED


def test_the_profile_counts_its_loops(own_with_config):
    sampler, config = own_with_config
    guidance, loops = ConstantGuidance(2.0), LoopBudget(3, 1)
    guided = eqx.tree_at(lambda s: s.guidance, sampler, guidance, is_leaf=lambda leaf: leaf is None)
    compute = sample_compute(config, guided, loops=loops)
    assert compute.loops == total_loops(loops, sampler.steps, guidance=guidance) == 4 * sampler.steps


@pytest.mark.slow
def test_diagnostics_take_it(own_with_config):
    sampler, config = own_with_config
    model = config.build(key=KEY)
    exits = sample_at_exits(model, sampler, LABELS, exits=[1, 2], key=KEY)
    assert len(exits) == 2 and exits.shape[1] == 3
    norms = sampling_update_norms(model, sampler, LABELS, loops=2, key=KEY)
    assert norms.absolute.shape == (sampler.steps, 3, 2) and np.all(np.isfinite(norms.absolute))


def test_its_fields_are_checked():
    with pytest.raises(ValueError, match=r"OneStep\(guidance=...\)` also needs `null_label`"):
        OneStep(shape=(4,), guidance=ConstantGuidance(2.0))
    with pytest.raises(ValueError, match=r"OneStep\(steps=0\)` samples nothing"):
        OneStep(shape=(4,), steps=0)


def test_the_librarys_samplers_are_members():
    assert issubclass(DiffusionSampler, AbstractSampler) and issubclass(MaskedSampler, AbstractSampler)
