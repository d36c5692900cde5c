"""Training of tokenizers: where gradients go, codebook rules and losses against NumPy, revival, and exact resuming."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from elt_zoo.data import ArraySource, Batch, training_batches
from elt_zoo.nn import Conv
from elt_zoo.nn._conv import convolve
from elt_zoo.tokenizer_training import (
    Adversary,
    CodeStatistics,
    DiscriminatorConfig,
    EMACodebook,
    GradientCodebook,
    ReconstructionLoss,
    create_tokenizer_state,
    discriminator_loss,
    evaluate_tokenizer,
    generator_loss,
    lecam_penalty,
    make_tokenizer_step,
    perceptual_distance,
    perplexity,
    psnr,
    r1_penalty,
    straight_through,
)
from elt_zoo.tokenizers import GreyLevels, Shortcut, VQ3DConfig, VQGANConfig
from elt_zoo.training import Checkpoints, OptimizerConfig, fit, jit_step, make_optimizer

RULES = [EMACodebook(decay=0.8), GradientCodebook(decay=0.8)]
IMAGE = VQGANConfig(
    image_size=4,
    filters=2,
    channel_multipliers=(1, 2),
    num_res_blocks=1,
    embedding_dim=3,
    codebook_size=7,
    groups=1,
    shortcut=Shortcut.INPUT,
)
VIDEO = VQ3DConfig(
    shape=(2, 4, 4),
    filters=2,
    channel_multipliers=(1, 2),
    temporal_downsample=(True,),
    num_enc_res_blocks=1,
    num_dec_res_blocks=1,
    embedding_dim=3,
    codebook_size=7,
    groups=1,
)
OPTIMIZER = make_optimizer(OptimizerConfig(learning_rate=1e-2, total_steps=100))
ADVERSARY = Adversary(optimizer=OPTIMIZER, weight=0.5, start=2, lecam=0.1, lecam_decay=0.9)


def normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def source(config):
    rng = np.random.default_rng(0)
    shape = config.shape if isinstance(config, VQ3DConfig) else (config.image_size,) * 2
    return ArraySource(rng.uniform(-1, 1, (24, *shape, 3)).astype(np.float32), np.arange(24, dtype=np.int32) % 2)


def batches(config):
    return training_batches(source(config), batch_size=4, seed=3)


@eqx.filter_jit
def build(config, key):
    return config.build(key=key)


def start(config, rule, adversary=None):
    discriminator = None
    if adversary is not None:
        shape = config.shape if isinstance(config, VQ3DConfig) else (config.image_size,) * 2
        sizes = DiscriminatorConfig(shape=shape, filters=2, channel_multipliers=(1,))
        discriminator = build(sizes, jax.random.key(2))
    return create_tokenizer_state(
        build(config, jax.random.key(0)),
        OPTIMIZER,
        rule,
        adversary=adversary,
        discriminator=discriminator,
        key=jax.random.key(1),
    )


# One program, which compiles sooner than its operations one by one.
update_codes = eqx.filter_jit(
    lambda rule, codebook, statistics, latents, ids, seed: rule.update(
        codebook, statistics, latents, ids, key=jax.random.key(seed)
    )
)


def arrays(tree):
    leaves = jax.tree.leaves(eqx.filter(tree, eqx.is_array))
    return [jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x for x in leaves]


def assert_bitwise_equal(a, b):
    for x, y in zip(arrays(a), arrays(b), strict=True):
        np.testing.assert_array_equal(x, y)


# Rounding to codes.


def test_rounding_is_exact_forwards_and_the_identity_backwards():
    latents, codes, weights = (jnp.asarray(normal(seed, 2, 3, 4)) for seed in range(3))
    np.testing.assert_array_equal(straight_through(latents, codes), codes)
    gradients = jax.grad(lambda z, e: jnp.sum(weights * straight_through(z, e)), (0, 1))(latents, codes)
    np.testing.assert_array_equal(gradients[0], weights)
    np.testing.assert_array_equal(gradients[1], jnp.zeros_like(codes))


def test_codebook_losses_land_where_they_should():
    latents, codes = jnp.asarray(normal(0, 5, 4)), jnp.asarray(normal(1, 5, 4))
    gap, n = latents - codes, latents.size
    for rule, on_codes in ((EMACodebook(commitment=0.25), 0.0), (GradientCodebook(commitment=0.25), 1.0)):
        value, (to_latents, to_codes) = jax.value_and_grad(rule.loss, (0, 1))(latents, codes)
        assert value == pytest.approx((0.25 + on_codes) * np.mean(np.square(gap)), rel=1e-6)
        np.testing.assert_allclose(to_latents, 0.25 * 2 * gap / n, rtol=1e-6)
        np.testing.assert_allclose(to_codes, -on_codes * 2 * gap / n, rtol=1e-6)


def test_the_moving_average_is_that_of_numpy():
    rule = EMACodebook(decay=0.9, revive_below=0.0, epsilon=1e-3)
    codebook = normal(0, 5, 3)
    statistics = rule.start(jnp.asarray(codebook), codes_initialised=True)
    counts, sums = np.ones(5), codebook.astype(np.float64)
    for step in range(4):
        latents, ids = normal(10 + step, 8, 3), np.random.default_rng(step).integers(0, 4, 8).astype(np.int32)
        update = update_codes(rule, jnp.asarray(codebook), statistics, jnp.asarray(latents), jnp.asarray(ids), 0)
        codebook, statistics = update.codebook, update.statistics
        for code in range(5):
            mine = latents[ids == code]
            counts[code] = 0.9 * counts[code] + 0.1 * len(mine)
            sums[code] = 0.9 * sums[code] + 0.1 * mine.sum(0)
        smooth = (counts + 1e-3) / (counts.sum() + 5 * 1e-3) * counts.sum()
        np.testing.assert_allclose(statistics.counts, counts, rtol=1e-5)
        np.testing.assert_allclose(codebook, sums / smooth[:, None], rtol=1e-5, atol=1e-6)
        assert not np.any(update.revived)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: type(rule).__name__)
def test_dead_codes_become_latents_of_the_batch(rule):
    codebook, latents = jnp.asarray(normal(0, 4, 3)), normal(1, 20, 3)
    # Code 1 alone has been in use. What lies on its code already makes no new one.
    latents[:10] = codebook[1]
    counts = jnp.asarray([0.0, 5.0, 0.0, 0.0])
    sums = counts[:, None] * codebook if isinstance(rule, EMACodebook) else None
    ids = jnp.ones(20, jnp.int32)
    if isinstance(rule, EMACodebook):
        # This rule has moved the code to the average of all, by the time that distances are taken.
        latents[:10] = latents[10:].mean(0)
        sums = sums.at[1].set(5.0 * latents.mean(0))
    update, again, other = (
        update_codes(rule, codebook, CodeStatistics(counts, sums), jnp.asarray(latents), ids, seed)
        for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(update.revived, [True, False, True, True])
    codes = np.asarray(update.codebook)
    places = [int(np.flatnonzero((latents == codes[code]).all(1))[0]) for code in (0, 2, 3)]
    assert len(set(places)) == 3 and min(places) >= 10
    kept = codebook[1] if isinstance(rule, GradientCodebook) else latents.mean(0)
    np.testing.assert_allclose(codes[1], kept, rtol=1e-4, atol=1e-5)
    # A replaced code gets its due, and the same key the same codes.
    np.testing.assert_allclose(update.statistics.counts, [5.0, 0.8 * 5.0 + 0.2 * 20.0, 5.0, 5.0], rtol=1e-6)
    assert_bitwise_equal(update, again)
    assert np.any(other.codebook != update.codebook)


def test_a_new_codebook_is_initialised_by_the_first_batch_even_a_small_one():
    rule = EMACodebook()
    codebook, latents, ids = jnp.asarray(normal(0, 8, 3)), normal(1, 5, 3), jnp.zeros(5, jnp.int32)
    new, kept = (
        update_codes(rule, codebook, rule.start(codebook, codes_initialised=initialised), jnp.asarray(latents), ids, 0)
        for initialised in (False, True)
    )
    assert int(jnp.sum(new.revived)) >= 7 and not np.any(kept.revived)
    for code in np.asarray(new.codebook)[np.flatnonzero(new.revived)]:
        assert (latents == code).all(1).any()


# The adversary.


@pytest.mark.parametrize("shape", [(8, 12), (2, 8, 8), (3, 4, 4)])
def test_discriminators_halve_what_they_can_and_judge_one_example(shape):
    config = DiscriminatorConfig(shape=shape, filters=2, channel_multipliers=(2, 3))
    discriminator = build(config, jax.random.key(0))
    x = jnp.asarray(np.random.default_rng(0).uniform(0, 1, (3, *shape, 3)), jnp.float32)
    logits = eqx.filter_jit(lambda judge, x: jax.vmap(judge)(x))(discriminator, x)
    assert logits.shape == (3,) and len(np.unique(logits)) == 3
    assert config.grids[-1] == {(8, 12): (2, 3), (2, 8, 8): (1, 2, 2), (3, 4, 4): (3, 1, 1)}[shape]
    with pytest.raises(ValueError, match="but judges"):
        discriminator(x)


def test_the_blur_keeps_constants_and_removes_the_finest_pattern():
    from elt_zoo.tokenizer_training._discriminator import halve

    np.testing.assert_allclose(halve(jnp.full((4, 6, 3), 2.0)), jnp.full((2, 3, 3), 2.0), rtol=1e-6)
    stripes = jnp.asarray(np.tile([1.0, -1.0], 4)[:, None], jnp.float32)
    np.testing.assert_allclose(halve(stripes)[1:-1], 0.0, atol=1e-6)
    x = normal(0, 8, 2)
    padded = np.pad(x, [(1, 1), (0, 0)], mode="edge")
    np.testing.assert_allclose(
        halve(jnp.asarray(x[:, :1]))[:, 0],
        [np.dot([0.125, 0.375, 0.375, 0.125], padded[2 * i : 2 * i + 4, 0]) for i in range(4)],
        rtol=1e-5,
        atol=1e-6,
    )


def test_adversarial_losses_are_their_formulas():
    real, fake = normal(0, 6), normal(1, 6)
    sigmoid = lambda x: 1 / (1 + np.exp(-x.astype(np.float64)))  # noqa: E731
    assert generator_loss(jnp.asarray(fake)) == pytest.approx(-np.log(sigmoid(fake)).mean(), rel=1e-5)
    expected = -(np.log(sigmoid(real)).mean() + np.log(1 - sigmoid(fake)).mean())
    assert discriminator_loss(jnp.asarray(real), jnp.asarray(fake)) == pytest.approx(expected, rel=1e-5)
    penalty = lecam_penalty(
        jnp.asarray(real), jnp.asarray(fake), mean_real=jnp.asarray(0.3), mean_fake=jnp.asarray(-0.2)
    )
    expected = np.mean(np.maximum(real + 0.2, 0) ** 2) + np.mean(np.maximum(0.3 - fake, 0) ** 2)
    assert penalty == pytest.approx(expected, rel=1e-5)
    # D(x) = aᵀx + |x|²/2 has the gradient a + x.
    slope, x = normal(2, 4, 3), normal(3, 5, 4, 3)
    value = r1_penalty(lambda x: jnp.sum(jnp.asarray(slope) * x) + 0.5 * jnp.sum(jnp.square(x)), jnp.asarray(x))
    assert value == pytest.approx(0.5 * np.square(slope + x).sum((1, 2)).mean(), rel=1e-5)


# Losses and measures.


def test_reconstruction_losses_are_their_formulas():
    a, b = normal(0, 2, 4, 4, 3), normal(1, 2, 4, 4, 3)

    def features(image):
        return [image * 2.0, jnp.concatenate([image, image], axis=-1)[::2]]

    def unit(x):
        return x / np.linalg.norm(x, axis=-1, keepdims=True)

    terms = ReconstructionLoss(l1=0.5, l2=2.0, perceptual=3.0, features=features)(jnp.asarray(a), jnp.asarray(b))
    first = np.square(unit(a) - unit(b)).sum(-1)
    expected = np.mean([first.mean(), first[:, ::2].mean()])
    assert terms["l1"] == pytest.approx(0.5 * np.abs(a - b).mean(), rel=1e-5)
    assert terms["l2"] == pytest.approx(2.0 * np.square(a - b).mean(), rel=1e-5)
    assert terms["perceptual"] == pytest.approx(3.0 * expected, rel=1e-4)
    # A clip is compared frame by frame, and flat maps have a finite gradient.
    clip = perceptual_distance(features, jnp.asarray(a), jnp.asarray(b))
    assert clip == pytest.approx(expected, rel=1e-4)
    slope = jax.grad(lambda x: perceptual_distance(features, x, jnp.asarray(a[0])))(jnp.zeros((4, 4, 3)))
    assert np.isfinite(slope).all()
    assert set(ReconstructionLoss()(jnp.asarray(a), jnp.asarray(b))) == {"l2"}


def test_psnr_and_perplexity():
    x = np.random.default_rng(0).uniform(0, 1, (2, 3, 3)).astype(np.float32)
    y = x + normal(1, 2, 3, 3)
    expected = -10 * np.log10(np.square(np.clip(y, 0, 1) - x).mean((1, 2)))
    np.testing.assert_allclose(psnr(jnp.asarray(x), jnp.asarray(y)), expected, rtol=1e-5)
    np.testing.assert_allclose(psnr(jnp.asarray(x), jnp.asarray(x)), 100.0)
    assert perplexity(np.array([2.0, 2.0, 0.0, 2.0])) == pytest.approx(3.0)
    assert perplexity(jnp.asarray([0.0, 7.0])) == pytest.approx(1.0)


def test_evaluation_counts_every_example_and_every_code():
    tokenizer = GreyLevels((2, 2, 1), 5)  # pixels −1, −0.5, 0, 0.5, 1
    exact = np.array([-1.0, -0.5, -1.0, 0.5], np.float32).reshape(1, 2, 2, 1)
    off = exact + np.float32(0.2)
    labels = np.zeros(1, np.int32)
    quality = evaluate_tokenizer(tokenizer, iter([Batch(exact, labels), Batch(off, labels)]))
    assert quality.examples == 2 and quality.usage == pytest.approx(3 / 5)
    assert quality.psnr == pytest.approx((100.0 - 20 * np.log10(0.1)) / 2, rel=1e-5)
    shares = np.array([0.5, 0.25, 0.25])
    assert quality.perplexity == pytest.approx(np.exp(-(shares * np.log(shares)).sum()))
    with pytest.raises(ValueError, match="got no batches"):
        evaluate_tokenizer(tokenizer, [])


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        (lambda: EMACodebook(decay=1.0), "the decay and the threshold"),
        (lambda: GradientCodebook(commitment=-1.0), "the commitment must be at least 0"),
        (lambda: ReconstructionLoss(l2=0.0), "not all of them 0"),
        (lambda: ReconstructionLoss(perceptual=1.0), "needs `features`"),
        (lambda: dataclasses.replace(ADVERSARY, weight=-1.0), "weights and the start must be at least 0"),
        (lambda: DiscriminatorConfig(shape=(8, 8), channel_multipliers=()), "needs one block or more"),
        (
            lambda: create_tokenizer_state(
                build(IMAGE, jax.random.key(0)), OPTIMIZER, RULES[0], adversary=ADVERSARY, key=jax.random.key(0)
            ),
            "an adversary and a discriminator, or neither",
        ),
    ],
)
def test_wrong_settings_are_explained(wrong, text):
    with pytest.raises(ValueError, match=text):
        wrong()


# The step.


@pytest.fixture(scope="module")
def step():
    return jit_step(make_tokenizer_step(OPTIMIZER, RULES[0], adversary=ADVERSARY, ema_decay=0.5))


@pytest.mark.slow
def test_a_resumed_run_is_bitwise_the_uninterrupted_one(tmp_path, step):
    whole = fit(start(IMAGE, RULES[0], ADVERSARY), step, batches(IMAGE), total_steps=6).state
    checkpoints = Checkpoints(tmp_path / "run", {"steps": 6})
    fit(start(IMAGE, RULES[0], ADVERSARY), step, batches(IMAGE), total_steps=3, checkpoints=checkpoints)
    state, place = checkpoints.restore(eqx.filter_eval_shape(lambda: start(IMAGE, RULES[0], ADVERSARY)))
    checkpoints.close()
    stream = batches(IMAGE)
    stream.set_state(place)
    assert_bitwise_equal(fit(state, step, stream, total_steps=6).state, whole)


@pytest.mark.slow
def test_the_adversary_waits_for_its_turn(step):
    state, stream = start(IMAGE, RULES[0], ADVERSARY), batches(IMAGE)
    first, metrics = [np.asarray(leaf) for leaf in arrays(state.model.discriminator)], {}
    for taken in range(4):
        state, metrics = step(state, next(stream))
        same = [np.array_equal(a, b) for a, b in zip(first, arrays(state.model.discriminator), strict=True)]
        assert all(same) == (taken < 2) and (metrics["adversarial"] > 0.0) == (taken >= 2)
    assert np.all(np.asarray(state.model.mean_logits) != 0.0)
    total = sum(metrics[name] for name in ("l2", "codebook", "adversarial"))
    assert metrics["loss"] == pytest.approx(float(total), rel=1e-6)


def test_an_update_that_is_not_finite_changes_nothing_but_the_count(step):
    state = start(IMAGE, RULES[0], ADVERSARY)
    before = [np.asarray(leaf) for leaf in arrays((state.model, state.ema, state.optimizer_state))]
    bad = next(batches(IMAGE))
    bad.examples[0, 0, 0, 0] = np.nan
    state, _ = step(state, bad)
    assert int(state.skipped) == 1 and int(state.step) == 1
    for a, b in zip(before, arrays((state.model, state.ema, state.optimizer_state)), strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_gradient_of_reconstruction_reaches_the_encoder_and_not_the_codes():
    rule = EMACodebook(commitment=0.0, decay=0.5, revive_below=0.0)
    sgd = optax.sgd(1.0)
    state = create_tokenizer_state(
        build(IMAGE, jax.random.key(0)), sgd, rule, codes_initialised=True, key=jax.random.key(1)
    )
    batch = next(batches(IMAGE))
    new, metrics = eqx.filter_jit(make_tokenizer_step(sgd, rule, ema_decay=0.5))(state, batch)
    old_weight, weight = (s.model.tokenizer.encoder.conv_in.weight for s in (state, new))
    assert np.any(old_weight != weight)
    # The codes are the averages of the latents from before the update, which the state's tokenizer still gives.
    tokenizer = state.model.tokenizer
    pixels = jnp.asarray((batch.examples + 1) / 2)
    latents = np.asarray(jax.jit(jax.vmap(tokenizer.latents))(pixels)).reshape(-1, 3)
    codes = np.asarray(tokenizer.codebook)
    ids = np.square(latents[:, None] - codes[None]).sum(-1).argmin(1)
    chosen = np.eye(7)[ids]
    expected = (0.5 * codes + 0.5 * chosen.T @ latents) / (0.5 + 0.5 * chosen.sum(0))[:, None]
    np.testing.assert_allclose(new.model.tokenizer.codebook, expected, rtol=1e-3, atol=1e-5)
    assert metrics["usage"] == pytest.approx(len(set(ids)) / 7)
    # The average: decay min(0.5, 1/10) at step 0.
    average = 0.1 * np.asarray(old_weight) + 0.9 * np.asarray(weight)
    np.testing.assert_allclose(new.ema.encoder.conv_in.weight, average, rtol=1e-5, atol=1e-6)


def test_revived_codes_are_new_in_the_average_too(step):
    state, metrics = step(start(IMAGE, RULES[0], ADVERSARY), next(batches(IMAGE)))
    same = np.all(np.asarray(state.ema.codebook) == np.asarray(state.model.tokenizer.codebook), axis=1)
    assert float(metrics["revived"]) == same.sum() > 0


@pytest.mark.slow
def test_clips_are_trained_against_a_discriminator_with_r1():
    adversary = dataclasses.replace(ADVERSARY, start=0, r1=1.0)
    step = jit_step(make_tokenizer_step(OPTIMIZER, RULES[1], adversary=adversary))
    result = fit(start(VIDEO, RULES[1], adversary), step, batches(VIDEO), total_steps=3)
    assert result.finished and int(result.state.skipped) == 0


# The convolution over time, which training made worth while.


def test_a_convolution_over_time_is_the_sum_over_its_taps():
    x, weight = jnp.asarray(normal(0, 4, 5, 6, 2)), jnp.asarray(normal(1, 3, 3, 3, 2, 4))
    direct = jax.lax.conv_general_dilated(
        x[None], weight, (1, 1, 1), "SAME", dimension_numbers=("NDHWC", "DHWIO", "NDHWC")
    )[0]
    np.testing.assert_allclose(convolve(x, weight, 1, "SAME"), direct, rtol=1e-4, atol=1e-4)
    conv = Conv(2, 4, (2, 3, 1), axes=3, padding=((1, 0), (0, 2), (1, 1)), key=jax.random.key(0))
    direct = jax.lax.conv_general_dilated(
        x[None], conv.weight, (1, 1, 1), conv.padding, dimension_numbers=("NDHWC", "DHWIO", "NDHWC")
    )[0]
    np.testing.assert_allclose(conv(x), direct, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.optimized
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: type(rule).__name__)
def test_training_lowers_the_loss_and_uses_the_codes(rule):
    config = dataclasses.replace(IMAGE, filters=8, embedding_dim=4, codebook_size=16, groups=2)
    rng = np.random.default_rng(0)
    # Images of two flat halves of few colours: what a small codebook can say.
    colours = rng.uniform(-1, 1, (6, 3)).astype(np.float32)
    halves = colours[rng.integers(0, 6, (48, 2))]
    images = np.repeat(np.repeat(halves[:, :, None, :], 2, axis=1), 4, axis=2)
    stream = training_batches(ArraySource(images, np.zeros(48, np.int32)), batch_size=8, seed=0)
    reports = []
    state = create_tokenizer_state(build(config, jax.random.key(0)), OPTIMIZER, rule, key=jax.random.key(1))
    before = evaluate_tokenizer(state.ema, [Batch(images, np.zeros(48, np.int32))])
    step = jit_step(make_tokenizer_step(OPTIMIZER, rule, ema_decay=0.9))
    fit(state, step, stream, total_steps=300, log_every=50, on_report=reports.append)
    after = reports[-1].metrics
    assert after["l2"] < 0.5 * reports[0].metrics["l2"]  # already lower at the first report, after 50 steps
    assert after["usage"] > before.usage and after["psnr"] > before.psnr + 6.0
