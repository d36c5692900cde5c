"""What the loops of a model do: identities first, then predictions made by hand, then tiny models of both families."""

import functools
import itertools
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from elt_zoo.corruption import (
    AbstractCorruption,
    Corrupted,
    CosineMaskSchedule,
    DiffusionCorruption,
    MaskedCorruption,
    MaskedTarget,
    ShiftedCosineSchedule,
)
from elt_zoo.diagnostics import (
    AbstractExits,
    ExitColumn,
    HasExits,
    HasStates,
    LossByExit,
    compare_diffusion_exits,
    compare_token_exits,
    diffusion_exits,
    exit_losses,
    held_out_exits,
    held_out_losses,
    sample_at_exits,
    sampling_update_norms,
    token_exits,
    update_norms,
)
from elt_zoo.families import DiTConfig, MaskGITConfig
from elt_zoo.models import BatchedPredict
from elt_zoo.objectives import MaskedCrossEntropy, SigmoidWeightedMSE
from elt_zoo.sampling import DDIM, ConstantGuidance, DiffusionSampler, MaskedSampler

MASKED = MaskGITConfig(dim=16, num_layers=1, max_loops=2, num_heads=2, num_classes=4, grid=(3, 3), codebook_size=6)
DIFFUSION = DiTConfig(dim=16, num_layers=1, max_loops=2, num_heads=2, num_classes=4, shape=(4, 4, 1))
LABELS = jnp.asarray([0, 3])


@eqx.filter_jit
def build(config):
    """Fresh parameters moved a little, because adaLN starts as the identity and the head of a DiT at zero."""
    model = config.build(key=jax.random.key(0))
    arrays, static = eqx.partition(model, eqx.is_inexact_array)
    leaves, structure = jax.tree.flatten(arrays)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    moved = [leaf + 0.1 * jax.random.normal(key, leaf.shape) for leaf, key in zip(leaves, keys, strict=True)]
    return eqx.combine(jax.tree.unflatten(structure, moved), static)


def identity(model):
    """The model with a trunk that changes nothing: the last map of each residual branch is zero."""
    return eqx.tree_at(lambda model: model.trunk.layers, model, jax.tree.map(jnp.zeros_like, model.trunk.layers))


def sampler_of(config, *, steps=3, **settings):
    if config is MASKED:
        return MaskedSampler(grid=(3, 3), codebook_size=6, mask_id=6, null_label=4, steps=steps, **settings)
    return DiffusionSampler(
        shape=(4, 4, 1), prediction=config.prediction, null_label=4, steps=steps, update=DDIM(), **settings
    )


def one_example(config):
    if config is MASKED:
        return jnp.full((3, 3), 6).at[0, 1].set(2), jnp.asarray(1)
    return jax.random.normal(jax.random.key(3), (4, 4, 1)), jnp.asarray(0.4), jnp.asarray(1)


@eqx.filter_jit
def predictions(model, inputs, loops):
    return jax.vmap(lambda *example: model(*example, loops=loops))(*inputs)


# How far a loop moves the state


@pytest.mark.slow
@pytest.mark.parametrize("config", [MASKED, DIFFUSION])
def test_norms_are_those_of_numpy_on_the_states(config):
    model, example = build(config), one_example(config)
    norms = eqx.filter_jit(update_norms)(model, *example, loops=4)
    tokens, conditioning = eqx.filter_jit(model.head.embed)(*example)
    states, once = [tokens], eqx.filter_jit(model.trunk)
    for _ in range(4):
        states.append(once(states[-1], conditioning, loops=1))
    states = [*map(np.asarray, states)]
    expected = [np.linalg.norm(after - before) for before, after in itertools.pairwise(states)]
    np.testing.assert_allclose(norms.absolute, expected, rtol=1e-4)
    np.testing.assert_allclose(norms.relative, expected / np.asarray([*map(np.linalg.norm, states[:-1])]), rtol=1e-4)


def test_a_trunk_that_changes_nothing_moves_nothing_and_flips_nothing():
    model = identity(build(MASKED))
    assert not np.any(eqx.filter_jit(update_norms)(model, *one_example(MASKED), loops=3).absolute)
    exits = token_exits(model, masks(), ids(), LABELS, loops=3, key=jax.random.key(2))
    assert not np.any(exits.flips) and not np.any(exits.divergence) and not np.any(exits.forgotten)
    assert np.all(np.asarray(exits.agreement) == 1.0)


@pytest.mark.parametrize("config", [MASKED, DIFFUSION])
def test_norms_by_step_are_those_of_what_the_network_was_asked(config):
    model, sampler = build(config), sampler_of(config, guidance=ConstantGuidance(2.0))
    key = jax.random.key(4)
    norms = sampling_update_norms(model, sampler, LABELS, loops=4, budget=2, key=key)
    assert norms.absolute.shape == norms.relative.shape == (3, 2, 4)
    asked = sampler.step_inputs(BatchedPredict(model), LABELS, loops=2, key=key)
    for step, example in ((0, 1), (2, 0)):
        inputs = [each[step, example] for each in asked]
        alone = eqx.filter_jit(update_norms)(model, *inputs, LABELS[example], loops=4)
        np.testing.assert_allclose(norms.absolute[step, example], alone.absolute, rtol=1e-5)
        np.testing.assert_allclose(norms.relative[step, example], alone.relative, rtol=1e-5)


def test_the_budget_of_sampling_is_what_is_measured_unless_it_is_given():
    model, sampler = build(DIFFUSION), sampler_of(DIFFUSION)
    same = [
        sampling_update_norms(model, sampler, LABELS, loops=2, budget=budget, key=jax.random.key(4)).absolute
        for budget in (None, 2)
    ]
    np.testing.assert_array_equal(same[0], same[1])


@pytest.mark.slow
@pytest.mark.parametrize("config", [MASKED, DIFFUSION])
def test_what_the_network_is_asked_is_what_the_sampler_asks(config):
    """The inputs that a recording `predict` sees are the steps' inputs, and recording changes nothing."""
    sampler, seen = sampler_of(config), []
    predict = BatchedPredict(build(config))

    def recording(*inputs, loops):
        jax.debug.callback(lambda *values: seen.append([np.asarray(value) for value in values]), *inputs, ordered=True)
        return predict(*inputs, loops=loops)

    answer = sampler(recording, LABELS, loops=2, key=jax.random.key(4))
    jax.effects_barrier()
    asked = sampler.step_inputs(predict, LABELS, loops=2, key=jax.random.key(4))
    for step, inputs in enumerate(seen):
        for mine, theirs in zip([each[step] for each in asked] + [LABELS], inputs, strict=True):
            np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-6)
    assert len(seen) == 3
    np.testing.assert_allclose(answer, sampler(predict, LABELS, loops=2, key=jax.random.key(4)), rtol=1e-5, atol=1e-6)


# What a loop changes in the answer


def masks():
    return MaskedCorruption(CosineMaskSchedule(), mask_id=6, null_label=4, label_drop=0.0)


def ids():
    return jax.random.randint(jax.random.key(5), (2, 3, 3), 0, 6)


def test_answers_made_by_hand_are_counted_as_by_hand():
    # Four tokens, three exits, three codes. The last token is not masked.
    answers = jnp.asarray([[0, 1, 2, 0], [1, 1, 0, 1], [1, 2, 1, 2]])
    logits = 2.0 * jax.nn.one_hot(answers, 3)
    target = MaskedTarget(ids=jnp.asarray([1, 1, 1, 0]), mask=jnp.asarray([True, True, True, False]))
    exits = compare_token_exits(logits, target)
    np.testing.assert_allclose(exits.agreement, np.asarray([[3, 1, 0], [1, 3, 1], [0, 1, 3]]) / 3, rtol=1e-6)
    np.testing.assert_allclose(exits.accuracy, [1 / 3, 2 / 3, 2 / 3], rtol=1e-6)
    np.testing.assert_allclose(exits.flips, [2 / 3, 2 / 3], rtol=1e-6)
    np.testing.assert_allclose(exits.self_correction, [1 / 3, 1 / 3], rtol=1e-6)
    np.testing.assert_allclose(exits.overthinking, [0.0, 1 / 3], rtol=1e-6)
    np.testing.assert_allclose(exits.forgotten, [0.0, 0.0, 1 / 3], rtol=1e-6)
    # A flip moves e²/(e² + 2) of the probability by two nats, less what comes back.
    p = np.exp([2.0, 0.0, 0.0]) / np.exp([2.0, 0.0, 0.0]).sum()
    np.testing.assert_allclose(exits.divergence, [2 / 3 * 2 * (p[0] - p[1])] * 2, rtol=1e-5)
    lines = str(exits).splitlines()
    assert lines[0].split()[:2] == ["exit", "accuracy"] and lines[3].split()[1:3] == ["66.7%", "33.3%"]


def test_shares_add_up_and_accuracy_changes_by_corrections_less_overthinking():
    exits = token_exits(build(MASKED), masks(), ids(), LABELS, loops=4, key=jax.random.key(2))
    stayed = 1.0 - exits.self_correction - exits.overthinking
    assert np.all(np.asarray(stayed) >= 0.0) and np.all(np.asarray(exits.flips) >= 1.0 - np.asarray(stayed) - 1e-6)
    np.testing.assert_allclose(jnp.diff(exits.accuracy), exits.self_correction - exits.overthinking, atol=1e-6)
    agreement = np.asarray(exits.agreement)
    assert np.all(np.diag(agreement) == 1.0) and np.all(agreement == agreement.T)
    assert np.any(np.asarray(exits.flips) > 0.0) and np.all(np.asarray(exits.divergence) > 0.0)


def test_exits_of_a_batch_are_those_of_the_models_own_predictions():
    model, key = build(MASKED), jax.random.key(2)
    exits = token_exits(model, masks(), ids(), LABELS, loops=3, key=key)
    corrupted = masks()(ids(), LABELS, key=key)
    mask = np.asarray(corrupted.target.mask)
    answers = []
    for loops in (1, 2, 3):
        logits = predictions(model, corrupted.inputs, jnp.asarray(loops))
        answers.append(np.asarray(jnp.argmax(logits, axis=-1))[mask])
    right = np.asarray(answers) == np.asarray(ids())[mask]
    np.testing.assert_allclose(exits.accuracy, right.mean(axis=1), rtol=1e-6)
    np.testing.assert_allclose(exits.self_correction, (~right[:-1] & right[1:]).mean(axis=1), rtol=1e-6)
    np.testing.assert_allclose(exits.forgotten[2], (right.any(axis=0) & ~right[2]).mean(), atol=1e-6)
    np.testing.assert_allclose(exits.agreement[0, 2], np.mean(answers[0] == answers[2]), rtol=1e-6)


def test_two_batches_add_up_to_one_weighted_by_their_tokens():
    target = [MaskedTarget(ids=jnp.zeros(4, jnp.int32), mask=jnp.arange(4) < count) for count in (1, 3)]
    logits = jax.random.normal(jax.random.key(6), (2, 3, 4, 5))
    compare = jax.jit(compare_token_exits)
    one, other = (compare(each, given) for each, given in zip(logits, target, strict=True))
    both = one + other
    np.testing.assert_allclose(both.accuracy, (one.accuracy + 3.0 * other.accuracy) / 4.0, rtol=1e-6)
    np.testing.assert_allclose(both.divergence, (one.divergence + 3.0 * other.divergence) / 4.0, rtol=1e-6)


def test_errors_made_by_hand_are_counted_as_by_hand():
    target = jnp.zeros((2, 1))
    x0 = jnp.asarray([3.0, 1.0, 1.0, 2.0])[:, None, None] * jnp.ones((1, 2, 1))
    exits = compare_diffusion_exits(x0, target)
    np.testing.assert_allclose(exits.rms_error, [3.0, 1.0, 1.0, 2.0])
    np.testing.assert_allclose(exits.rms_change, [2.0, 0.0, 1.0])
    np.testing.assert_allclose(exits.self_correction, [1.0, 0.0, 0.0])
    np.testing.assert_allclose(exits.overthinking, [0.0, 0.0, 1.0])
    np.testing.assert_allclose(exits.best, [0.0, 1.0, 0.0, 0.0])
    both = exits + compare_diffusion_exits(x0[::-1], target)
    np.testing.assert_allclose(both.rms_error, np.sqrt([6.5, 1.0, 1.0, 6.5]), rtol=1e-6)
    np.testing.assert_allclose(both.best, [0.0, 1.0, 0.0, 0.0])
    assert str(both).splitlines()[2].split() == ["2", "1.0000", "100.0%", "1.5811", "100.0%", "0.0%"]


@pytest.mark.parametrize("clip_x0", [None, 0.5])
def test_exits_of_diffusion_are_those_of_the_clean_arrays_in_the_prediction(clip_x0):
    model, key, schedule = build(DIFFUSION), jax.random.key(2), ShiftedCosineSchedule()
    corruption = DiffusionCorruption(schedule, prediction=DIFFUSION.prediction, null_label=4, label_drop=0.0)
    clean = jax.random.normal(jax.random.key(7), (2, 4, 4, 1))
    exits = diffusion_exits(model, corruption, clean, LABELS, loops=3, clip_x0=clip_x0, key=key)
    (x_t, time, labels), _, _ = corruption(clean, LABELS, key=key)
    alpha, sigma = (np.asarray(each)[:, None, None, None] for each in jax.vmap(schedule.alpha_sigma)(time))
    squared = []
    for loops in (1, 2, 3):
        x0 = alpha * np.asarray(x_t) - sigma * np.asarray(predictions(model, (x_t, time, labels), jnp.asarray(loops)))
        x0 = x0 if clip_x0 is None else np.clip(x0, -clip_x0, clip_x0)
        squared.append(np.mean((x0 - np.asarray(clean)) ** 2, axis=(1, 2, 3)))
    squared = np.asarray(squared)
    np.testing.assert_allclose(exits.rms_error, np.sqrt(squared.mean(axis=1)), rtol=1e-4)
    np.testing.assert_allclose(exits.self_correction, (squared[1:] < squared[:-1]).mean(axis=1))
    np.testing.assert_allclose(exits.best, np.bincount(squared.argmin(axis=0), minlength=3) / 2)
    assert np.all(np.asarray(exits.rms_change) > 0.0)


# Tables of exits


def test_rows_hold_the_columns_of_their_class_and_nothing_where_there_is_no_exit_before():
    tokens = token_exits(build(MASKED), masks(), ids(), LABELS, loops=3, key=jax.random.key(2))
    arrays = compare_diffusion_exits(jnp.asarray([3.0, 1.0, 2.0])[:, None], jnp.zeros(1))
    for exits, measure, change, compared in (
        (tokens, tokens.accuracy, tokens.flips, "flips"),
        (arrays, arrays.rms_error, arrays.rms_change, "rms_change"),
    ):
        rows: Any = exits.rows()
        assert [row["exit"] for row in rows] == [1, 2, 3]
        np.testing.assert_allclose([row[exits.columns()[0].name] for row in rows], measure)
        assert rows[0][compared] is None
        np.testing.assert_allclose([row[compared] for row in rows[1:]], change)
    assert (tokens.share_of, arrays.share_of) == ("masked tokens", "examples")


class CountedExits(AbstractExits):
    """Exits of a family of one's own."""

    share_of: ClassVar[str] = "pixels"
    num: jax.Array
    hits: jax.Array

    def columns(self):
        hits = self.hits / self.num
        return [ExitColumn("hits", "hit", hits, ".0%"), ExitColumn("gain", "gain", hits[1:] - hits[:-1], "+.2f", "won")]


def test_exits_of_a_family_of_ones_own_are_tables_too():
    one = CountedExits(num=jnp.asarray(4), hits=jnp.asarray([1, 3]))
    both = one + CountedExits(num=jnp.asarray(6), hits=jnp.asarray([1, 2]))
    assert both.rows() == [
        {"exit": 1, "hits": pytest.approx(0.2), "gain": None},
        {"exit": 2, "hits": pytest.approx(0.5), "gain": pytest.approx(0.3)},
    ]
    assert [line.split() for line in str(both).splitlines()] == [
        ["exit", "hit", "gain"],
        ["1", "20%"],
        ["2", "50%", "+0.30"],
    ]


# Held-out sets, batch by batch


def held_out(config, count):
    labels = jnp.arange(count) % 4
    if config is MASKED:
        return masks(), MaskedCrossEntropy(), jax.random.randint(jax.random.key(5), (count, 3, 3), 0, 6), labels
    corruption = DiffusionCorruption(
        ShiftedCosineSchedule(), prediction=config.prediction, null_label=4, label_drop=0.0
    )
    loss = SigmoidWeightedMSE(config.prediction)
    return corruption, loss, jax.random.normal(jax.random.key(5), (count, 4, 4, 1)), labels


class Fixed(AbstractCorruption):
    corrupted: Corrupted

    def __call__(self, examples, labels, *, key):
        return self.corrupted


@pytest.mark.parametrize("config", [MASKED, DIFFUSION])
def test_held_out_losses_are_those_of_one_batch_with_the_same_corruption(config):
    """The last batch is smaller than the others and counts like them: by the weights of its examples."""
    model, key = build(config), jax.random.key(2)
    corruption, loss, examples, labels = held_out(config, 5)
    losses = held_out_losses(
        model, loss, corruption, np.asarray(examples), np.asarray(labels), loops=3, batch_size=4, key=key
    )
    parts = [
        corruption(examples[:4], labels[:4], key=key),
        corruption(examples[4:], labels[4:], key=jax.random.fold_in(key, 4)),
    ]
    whole = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)
    expected = exit_losses(model, loss, Fixed(whole), examples, labels, loops=3, key=key)
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    first = exit_losses(model, loss, corruption, examples[:4], labels[:4], loops=3, key=key)
    assert np.all(np.abs(losses / first - 1.0) > 1e-4)


def test_a_held_out_set_of_one_batch_gives_the_losses_of_its_exits():
    model, key = build(MASKED), jax.random.key(2)
    corruption, loss, examples, labels = held_out(MASKED, 5)
    losses = held_out_losses(model, loss, corruption, examples, labels, loops=2, batch_size=64, key=key)
    np.testing.assert_array_equal(losses, exit_losses(model, loss, corruption, examples, labels, loops=2, key=key))
    twice = held_out_losses(model, loss, corruption, examples, labels, loops=2, copies=2, batch_size=64, key=key)
    tiled = (jnp.tile(examples, (2, 1, 1)), jnp.tile(labels, 2))
    np.testing.assert_array_equal(twice, exit_losses(model, loss, corruption, *tiled, loops=2, key=key))


@pytest.mark.parametrize("config", [MASKED, DIFFUSION])
def test_held_out_exits_are_sums_over_all_batches(config):
    model, key = build(config), jax.random.key(2)
    corruption, _, examples, labels = held_out(config, 5)
    compare = functools.partial(token_exits if config is MASKED else diffusion_exits, model, corruption, loops=3)
    exits = held_out_exits(compare, examples, labels, copies=2, batch_size=4, key=key)
    order = np.arange(10) % 5
    parts: Any = [
        compare(examples[rows], labels[rows], key=part_key)
        for rows, part_key in (
            (order[:4], key),
            (order[4:8], jax.random.fold_in(key, 4)),
            (order[8:], jax.random.fold_in(key, 8)),
        )
    ]
    for mine, theirs in zip(jax.tree.leaves(exits), jax.tree.leaves(parts[0] + parts[1] + parts[2]), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-6)


@pytest.mark.parametrize("counts", [{"copies": 0}, {"batch_size": 0}])
def test_a_held_out_set_without_batches_is_refused(counts):
    corruption, loss, examples, labels = held_out(MASKED, 2)
    with pytest.raises(ValueError, match=r"`held_out_losses\(copies=.*got 2 examples: each must be at least 1"):
        held_out_losses(build(MASKED), loss, corruption, examples, labels, loops=1, key=jax.random.key(0), **counts)


# Models of one's own


class Wrapped(eqx.Module):
    """No `ElasticModel`, but with what the diagnostics ask for."""

    inner: Any

    @property
    def head(self):
        return self.inner.head

    @property
    def trunk(self):
        return self.inner.trunk

    def __call__(self, *inputs, loops):
        return self.inner(*inputs, loops=loops)

    def trajectory(self, *inputs, loops):
        return self.inner.trajectory(*inputs, loops=loops)


def test_a_model_of_ones_own_is_measured_like_the_librarys():
    model, sampler, key = build(MASKED), sampler_of(MASKED, steps=1), jax.random.key(4)
    own = Wrapped(model)
    assert isinstance(own, HasExits) and isinstance(own, HasStates) and isinstance(model, HasExits)
    for measure in (
        lambda model: exit_losses(model, MaskedCrossEntropy(), masks(), ids(), LABELS, loops=1, key=key),
        lambda model: sampling_update_norms(model, sampler, LABELS, loops=1, key=key),
        lambda model: sample_at_exits(model, sampler, LABELS, exits=(1,), key=key),
    ):
        for mine, theirs in zip(jax.tree.leaves(measure(own)), jax.tree.leaves(measure(model)), strict=True):
            np.testing.assert_allclose(mine, theirs, rtol=1e-6)


# Past the loops of training


def test_the_least_loss_and_what_becomes_of_it_past_the_loops_of_training():
    losses = LossByExit.of(np.asarray([4.0, 2.0, 1.5, 2.5]), max_loops=2)
    assert (losses.best_exit, losses.trained_loss, losses.degradation) == (3, 2.0, 0.25)
    assert losses.degrades() and not losses.degrades(tolerance=0.3)
    assert not LossByExit.of(np.asarray([4.0, 2.0, 1.5]), max_loops=2).degrades()
    # What diverges is flagged too.
    assert LossByExit.of(np.asarray([4.0, 2.0, np.nan]), max_loops=2).degrades(tolerance=10.0)
    lines = str(losses).splitlines()
    assert lines[2].split() == ["2", "2.0000", "+0.0%", "L_max"] and lines[3].split()[2:] == ["-25.0%", "best"]
    with pytest.raises(ValueError, match=r"losses of 2 exits, none past L_max: measure more, such as .*loops=4"):
        LossByExit.of(np.asarray([4.0, 2.0]), max_loops=2)


def test_losses_of_exits_are_read_as_they_are_measured():
    model, key = build(MASKED), jax.random.key(2)
    losses = exit_losses(model, MaskedCrossEntropy(), masks(), ids(), LABELS, loops=4, key=key)
    by_exit = LossByExit.of(losses, max_loops=model.max_loops)
    np.testing.assert_allclose(by_exit.losses, losses)
    assert by_exit.best_exit == int(np.argmin(losses)) + 1


# The same samples at several loop counts


@pytest.mark.parametrize("config", [MASKED, DIFFUSION])
def test_samples_at_exits_are_those_drawn_one_by_one(config):
    model, sampler, key = build(config), sampler_of(config), jax.random.key(4)
    first, last = sample_at_exits(model, sampler, LABELS, exits=(1, 3), key=key)
    alone = sampler(BatchedPredict(model), LABELS, loops=3, key=key)
    np.testing.assert_allclose(last, alone, rtol=1e-4, atol=1e-5)
    assert np.any(np.asarray(first) != np.asarray(last))
    with pytest.raises(ValueError, match=r"exits=\[\]\)` samples nothing"):
        sample_at_exits(model, sampler, LABELS, exits=(), key=key)


def test_samples_of_a_trunk_that_changes_nothing_are_the_same_at_every_exit():
    rows = sample_at_exits(identity(build(MASKED)), sampler_of(MASKED), LABELS, exits=(1, 2), key=jax.random.key(4))
    np.testing.assert_array_equal(rows[0], rows[1])
