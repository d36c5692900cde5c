"""Sampling that can stop early: between any two steps, and by the clock."""

import dataclasses
import types
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from elt_zoo import Generator
from elt_zoo.families import DiTConfig, MaskGITConfig
from elt_zoo.generator._clock import Clock
from elt_zoo.models import BatchedPredict
from elt_zoo.sampling import constant_budget
from elt_zoo.tokenizers import PatchCodebook

KEY, STEPS, LABELS = jax.random.key(0), 4, [0, 2, 1]


@pytest.fixture(scope="module", params=["dit", "maskgit"])
def generator(request):
    sizes: dict[str, Any] = {"dim": 16, "num_layers": 1, "max_loops": 2, "num_heads": 2, "num_classes": 3}
    if request.param == "dit":
        config, tokenizer = DiTConfig(shape=(4, 4, 1), **sizes), None
    else:
        images = np.random.default_rng(0).uniform(-1.0, 1.0, (20, 4, 8, 1)).astype(np.float32)
        tokenizer = PatchCodebook.fit(images, codebook_size=5, patch_size=2)
        config = MaskGITConfig(grid=(2, 4), codebook_size=5, **sizes)
    # Layers that start as the identity, and a head that starts at zero, would hide the steps.
    model = jax.tree.map(
        lambda leaf: leaf + 0.3 * jax.random.normal(KEY, leaf.shape) if eqx.is_inexact_array(leaf) else leaf,
        config.build(key=KEY),
    )
    settings = dataclasses.replace(config.sampler_settings(), steps=STEPS, guidance=1.5)
    return Generator(model, config, tokenizer=tokenizer, settings=settings)


def until(generator, fits):
    return generator.sampler().until(
        BatchedPredict(generator.model),
        jnp.asarray(LABELS),
        fits=fits,
        loops=constant_budget(2, STEPS),
        key=KEY,
    )


def test_a_run_in_parts_is_the_run_as_a_whole(generator):
    whole = generator.sampler()(
        BatchedPredict(generator.model), jnp.asarray(LABELS), loops=constant_budget(2, STEPS), key=KEY
    )
    asked = []

    def one_at_a_time(done):
        asked.append(done)
        return 1

    for fits in (one_at_a_time, lambda done: 100, lambda done: 2 if done == 0 else 1):
        samples, steps = until(generator, fits)
        assert steps == STEPS
        np.testing.assert_allclose(samples, whole, atol=1e-5)
    assert asked == [0, 1, 2, 3]


@pytest.mark.parametrize("taken", [0, 2])
def test_any_step_can_be_the_last(generator, taken):
    samples, steps = until(generator, lambda done: taken - done)
    assert steps == taken + 1
    asked = generator.sampler().step_inputs(
        BatchedPredict(generator.model), jnp.asarray(LABELS), loops=constant_budget(2, STEPS), key=KEY
    )
    if generator.config.family == "maskgit":
        ids = np.asarray(asked[0][taken])
        known = ids != generator.config.mask_id
        assert np.all((samples >= 0) & (samples < 5)) and known.any() == (taken > 0)
        np.testing.assert_array_equal(np.asarray(samples)[known], ids[known])
        return
    x, time = (each[taken] for each in asked)
    predict = BatchedPredict(generator.model)
    cond, uncond = (predict(x, time, jnp.asarray(labels), loops=2) for labels in (LABELS, [3, 3, 3]))
    log_snr = generator.config.schedule.log_snr(time[0])
    alpha, sigma = jnp.sqrt(jax.nn.sigmoid(log_snr)), jnp.sqrt(jax.nn.sigmoid(-log_snr))
    clean = jnp.clip(alpha * x - sigma * (uncond + 1.5 * (cond - uncond)), -1.0, 1.0)
    np.testing.assert_allclose(samples, clean, atol=1e-4)


def test_the_clock_halves_what_is_left_and_stops_in_time():
    now = [0.0]
    clock = Clock(1.0, batches=1, now=lambda: now[0])
    fits, done, steps = clock.batch(0, 10), 0, 10
    while (part := min(fits(done), steps - 1 - done)) > 0:
        done += part
        now[0] += 0.2 * part  # twice as long as it would take to be in time
    assert 1 <= done < steps - 1
    assert now[0] + 0.2 <= 1.0 < now[0] + 0.7  # the last step fits, and no two more
    # Batches share what is left evenly.
    clock = Clock(3.0, batches=3, now=lambda: now[0])
    fits = clock.batch(1, 10)
    now[0] += 0.5
    assert fits(5) == 4  # of 1.5 seconds a third is gone: ten more steps of 0.1, two for the last, and half of the rest
    now[0] += 5.0
    assert clock.batch(2, 10)(0) <= 0


def planned(generator, milliseconds):
    """A generator whose planner takes everything to be quick."""
    plan = types.SimpleNamespace(steps=STEPS, budget=constant_budget(2, STEPS), guidance=1.5)
    planner = types.SimpleNamespace(
        batches=(4,), plan=lambda milliseconds, *, batch: plan, check=lambda generator: None
    )
    return dataclasses.replace(generator, planner=planner).sample(
        LABELS, milliseconds=milliseconds, deadline=True, key=KEY
    )


def test_a_generator_keeps_a_deadline(generator):
    whole = generator.sample(LABELS, loops=2, batch_size=4, key=KEY)
    np.testing.assert_allclose(planned(generator, 1e6), whole, atol=1e-5)
    late = planned(generator, 1e-6)
    assert late.shape == whole.shape and np.isfinite(late).all()
    assert np.abs(late - whole).max() > 1e-3
    with pytest.raises(ValueError, match="`deadline=True` needs the time that is left"):
        generator.sample(LABELS, deadline=True, key=KEY)
