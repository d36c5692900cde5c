"""Exits inside the samplers: what the signals measure, that the rule decides the loops, and that its promise holds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import binom

import elt_zoo
from elt_zoo.anytime import calibrate_exit, changed_class, feature_change, risk_p_value, used_loops
from elt_zoo.generator import EarlyExitPredict, ExitGuidance, SettledExit, divergence, doubt, flips, relative_change

KEY = jax.random.key(3)
LABELS = np.arange(4)
STEPS = 2


@pytest.fixture(scope="module", params=["digits-dit", "digits-maskgit"])
def generator(request):
    return elt_zoo.load(request.param)


def signal_of(generator):
    return relative_change if generator.config.family == "dit" else divergence


def sample(generator, **given):
    return generator.sample(LABELS, steps=STEPS, key=KEY, **given)


def test_signals_measure_what_they_say():
    before, after = jnp.asarray([3.0, 0.0]), jnp.asarray([0.0, 4.0])
    np.testing.assert_allclose(relative_change(before, after), 5.0 / 4.0, rtol=1e-6)
    p, q = np.asarray([[0.7, 0.2, 0.1], [0.5, 0.3, 0.2]]), np.asarray([[0.2, 0.7, 0.1], [0.5, 0.3, 0.2]])
    now, earlier = jnp.log(jnp.asarray(p, jnp.float32)) + 5.0, jnp.log(jnp.asarray(q, jnp.float32))
    np.testing.assert_allclose(divergence(earlier, now), np.mean(np.sum(p * np.log(p / q), axis=-1)), rtol=1e-4)
    np.testing.assert_allclose(flips(earlier, now), 0.5)
    np.testing.assert_allclose(doubt(earlier, now), 1.0 - (0.5 + 0.2) / 2, rtol=1e-5)
    for signal in (divergence, flips):
        np.testing.assert_allclose(signal(now, now), 0.0, atol=1e-6)


def test_a_rule_that_never_holds_gives_all_loops_and_one_that_always_does_gives_two(generator):
    signal = signal_of(generator)
    never, always = SettledExit(signal, 0.0), SettledExit(signal, 1e6)
    np.testing.assert_allclose(sample(generator, exit_rule=never), sample(generator), atol=1e-4)
    np.testing.assert_allclose(sample(generator, exit_rule=always), sample(generator, loops=2), atol=1e-4)
    assert (used_loops(generator, never, LABELS, steps=STEPS, key=KEY) == generator.config.max_loops).all()
    assert (used_loops(generator, always, LABELS, steps=STEPS, key=KEY) == 2).all()


def test_a_rule_sits_between_the_two_and_examples_leave_by_themselves(generator):
    signal, thresholds = signal_of(generator), np.geomspace(1e-3, 0.2, 12)
    loops = [used_loops(generator, SettledExit(signal, each), LABELS, steps=STEPS, key=KEY) for each in thresholds]
    means = [each.mean() for each in loops]
    assert means[0] > means[-1]
    assert any(len(np.unique(step)) > 1 for each in loops for step in each), "all examples of a step leave together"


def test_a_batch_that_leaves_together_leaves_by_its_mean(generator):
    signal, predict = signal_of(generator), generator.sampler(steps=STEPS, guidance=1.0)
    labels, most = jnp.asarray(LABELS), generator.config.max_loops
    by_itself = EarlyExitPredict(generator.model, SettledExit(signal, 0.0))
    asked = predict.step_inputs(by_itself, labels, loops=most, key=jax.random.fold_in(KEY, 0))
    first = (*(leaf[0] for leaf in asked), labels)
    exits = jax.vmap(lambda *example: generator.model.trajectory(*example, loops=most))(*first)
    means = [np.mean(jax.vmap(signal)(exits[:, each - 1], exits[:, each])) for each in range(1, most)]
    for threshold in (2.0 * float(max(means)), 1.01 * float(np.median(means)), 0.0):
        rule = SettledExit(signal, threshold, together=True)
        prediction, loops = EarlyExitPredict(generator.model, rule).exits(*first)
        expected = next((index + 2 for index, mean in enumerate(means) if mean <= threshold), most)
        assert loops.tolist() == [expected] * len(LABELS)
        np.testing.assert_allclose(prediction, exits[:, expected - 1], atol=1e-4)
    assert np.isfinite(sample(generator, exit_rule=rule)).all()


def test_a_rule_and_another_choice_are_refused():
    generator, rule = elt_zoo.load("digits-dit"), SettledExit(relative_change, 0.1)
    with pytest.raises(ValueError, match="`exit_rule` and `loops` cannot both be given"):
        sample(generator, exit_rule=rule, loops=3)
    with pytest.raises(ValueError, match="`exit_rule` and `exit_guidance` cannot both be given"):
        sample(generator, exit_rule=rule, exit_guidance=ExitGuidance(2.0))
    with pytest.raises(ValueError, match=r"`milliseconds=5\.0` and `exit_rule` cannot both be given"):
        generator.sample(LABELS, exit_rule=rule, milliseconds=5.0, key=KEY)
    for wrong in (-0.1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=rf"threshold={wrong}"):
            SettledExit(relative_change, wrong)


@pytest.mark.parametrize(("samples", "limit", "error"), [(100, 0.05, 0.1), (300, 0.02, 0.05), (60, 0.2, 0.2)])
def test_a_p_value_keeps_its_word(samples, limit, error):
    """A true risk at the limit passes with a chance of at most the error, counted exactly over all outcomes."""
    losses = np.arange(samples + 1)
    passes = np.asarray([risk_p_value(lost / samples, samples, limit) <= error for lost in losses])
    assert binom.pmf(losses, samples, limit)[passes].sum() <= error
    assert passes[0] and not passes[round(samples * limit) :].any()


def test_losses_of_a_real_number_keep_their_word_too():
    rng, samples, limit, error = np.random.default_rng(0), 100, 0.1, 0.1
    risks = rng.beta(0.5, 4.5, (4000, samples)).mean(axis=1)  # of mean 0.1
    broken = np.mean([risk_p_value(float(risk), samples, limit) <= error for risk in risks])
    assert broken <= error + 3 * np.sqrt(error / len(risks))


def test_calibration_stops_at_the_first_threshold_that_fails(monkeypatch):
    generator, thresholds = elt_zoo.load("digits-dit"), (0.0, 0.1, 0.2, 0.3)
    monkeypatch.setattr(
        type(generator),
        "sample",
        lambda self, labels, *, exit_rule=None, **_: np.full(
            len(labels), 0.0 if exit_rule is None else exit_rule.threshold, np.float64
        ),
    )

    def risk(early, full):
        return (np.arange(len(early)) < 30 * (early > 0.15)).astype(np.float64)  # three in ten from 0.2 on

    given = {"risk": risk, "samples": 100, "steps": 1, "key": KEY}
    found = calibrate_exit(generator, relative_change, thresholds=thresholds, **given)
    assert [test.threshold for test in found.tests] == [0.0, 0.1, 0.2] and found.tests[-1].risk == 0.3
    assert found.rule is not None and float(found.rule.threshold) == pytest.approx(0.1)
    none = calibrate_exit(generator, relative_change, thresholds=(0.2, 0.3), **given)
    assert none.rule is None and len(none.tests) == 1
    with pytest.raises(ValueError, match="a number in \\[0, 1\\] for each of the 100 samples"):
        calibrate_exit(generator, relative_change, **{**given, "risk": lambda early, full: early - 2.0})


def test_calibrations_that_prove_nothing_are_refused():
    generator = elt_zoo.load("digits-dit")
    given = {"risk": changed_class(lambda pixels: np.zeros(len(pixels))), "key": KEY}
    with pytest.raises(ValueError, match="takes at least 45 samples without a loss"):
        calibrate_exit(generator, relative_change, samples=20, limit=0.05, error=0.1, **given)
    for thresholds in ((0.2, 0.1), (), (-0.1, 0.1), (0.1, float("nan"))):
        with pytest.raises(ValueError, match="must rise from 0 or more"):
            calibrate_exit(generator, relative_change, thresholds=thresholds, **given)
    with pytest.raises(ValueError, match="must lie between 0 and 1"):
        calibrate_exit(generator, relative_change, limit=1.5, **given)
    with pytest.raises(ValueError, match="must be a positive distance"):
        feature_change(lambda pixels: pixels, largest=0.0)


def test_risks_compare_pair_by_pair():
    early, full = np.asarray([[0.0, 0.0], [3.0, 4.0]]), np.zeros((2, 2))
    np.testing.assert_allclose(changed_class(lambda each: each.sum(axis=1) > 1)(early, full), [0.0, 1.0])
    np.testing.assert_allclose(feature_change(lambda each: each, largest=10.0)(early, full), [0.0, 0.5])
    np.testing.assert_allclose(feature_change(lambda each: each, largest=2.0)(early, full), [0.0, 1.0])
