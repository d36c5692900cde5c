"""The studies of plans by the clock and of exits that disagree: what they compare, in the small."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import spearmanr

from elt_zoo import load
from elt_zoo.data import Batch
from reproduction.plans import (
    CACHE,
    CONSTANT,
    FEWER,
    WARM,
    WarmPredict,
    Way,
    comparisons,
    drawn,
    plot,
    rivals,
    table,
)
from reproduction.uncertainty import correlation, measure, within


def test_plans_have_every_size_of_every_rival():
    ways = list(rivals([2, 4], 3))
    names = [way.name for way in ways]
    assert [names.count(name) for name in (CONSTANT, FEWER, CACHE, WARM)] == [4, 2, 12, 3]
    assert {way.loops for way in ways if way.name == FEWER} == {(3, 3), (3, 3, 3, 3)}
    cached = {way.loops for way in ways if way.name == CACHE and max(way.loops) == 2}
    assert cached == {(2, 0), (2, 0, 2, 0), (2, 0, 0, 2)}


def test_plans_are_better_or_worse_beyond_the_spread_of_their_difference(tmp_path):
    def rows(way, milliseconds, *distances):
        about = {"model": "digits-dit", "way": way, "milliseconds": str(milliseconds)}
        return [about | {"seed": str(seed), "distance": str(each)} for seed, each in enumerate(distances)]

    found = comparisons(
        [
            *rows("constant loops", 2.0, 1.0, 1.2),
            *rows("plan", 2.1, 0.8, 1.0),  # better by 0.2 on both seeds
            *rows("constant loops", 3.0, 1.0, 1.2),
            *rows("plan", 3.1, 1.2, 1.0),  # level: worse on one, better on the other
            *rows("cache", 3.0, 0.5, 0.6),
            *rows("plan", 2.9, 0.6, 0.7),
        ]
    )
    lines = table(found).splitlines()
    assert lines[2] == (
        "| digits-dit | constant loops | 2 | 1 | 1 | 0 | 1.10 ± 0.14 in 3 ms, plan 1.10 ± 0.14 in 3.1 ms |"
    )
    assert lines[3] == "| digits-dit | cache | 1 | 0 | 0 | 1 | 0.55 ± 0.07 in 3 ms, plan 0.65 ± 0.07 in 2.9 ms |"
    plot(tmp_path / "plans.png", found)
    assert (tmp_path / "plans.png").stat().st_size > 1000


def test_a_warm_start_changes_all_but_the_first_step():
    generator, labels, key = load("digits-dit"), np.arange(2, dtype=np.int32), jax.random.key(3)
    plain = drawn(generator, Way("constant loops", (2, 2, 2)), labels, key)
    warm = drawn(generator, Way(WARM, (2, 2, 2), warm=0.5), labels, key)
    assert plain.shape == warm.shape and np.abs(plain - warm).max() > 1e-3
    inputs = (jnp.zeros((2, 8, 8, 1)), jnp.full(2, 0.5), jnp.asarray(labels))
    first = jax.vmap(lambda *example: generator.model(*example, loops=2))(*inputs)
    np.testing.assert_allclose(WarmPredict(generator.model, 0.5)(*inputs, loops=2), first, atol=1e-5)


def test_correlations_leave_out_what_is_given():
    rng = np.random.default_rng(0)
    one, other = rng.normal(size=(2, 400))
    assert correlation(one, other) == pytest.approx(spearmanr(one, other)[0])
    level = rng.uniform(size=400)
    follow, too = level + 0.01 * one, level + 0.01 * other
    assert correlation(follow, too) > 0.99 and abs(correlation(follow, too, level)) < 0.2
    assert correlation(level, other, level) == 0.0
    # The loss follows the signal at low levels alone.
    shared = rng.normal(size=400)
    loss = np.where(level < 0.5, shared, other)
    by_range = within({"level": level, "loss": loss, "signal": shared}, "signal")
    assert len(by_range) == 8 and min(by_range[:4]) > 0.95 and max(map(abs, by_range[4:])) < 0.5


def test_signals_of_held_out_examples_are_those_of_the_model():

    generator = load("digits-dit")
    heldout = Batch(np.random.default_rng(0).uniform(-1, 1, (6, 8, 8, 1)).astype(np.float32), np.arange(6))
    found = measure(generator, heldout, copies=2)
    assert {name: values.shape for name, values in found.items()} == dict.fromkeys(found, (2, 6))
    assert set(np.unique(found["loops"])) <= {2.0, 3.0, 4.0} and (found["apart"] > 0).all()
    config = generator.config
    key = jax.random.split(jax.random.key(0), 2)[1]
    batch = jax.tree.map(jnp.asarray, heldout)
    inputs, target, _ = config.corruption()(batch.examples, batch.labels, key=key)
    exits = jax.vmap(lambda *example: generator.model(*example, loops=4))(*inputs)
    losses = jax.vmap(config.loss())(exits, target)
    np.testing.assert_allclose(found["loss"][1], losses, rtol=1e-4)
