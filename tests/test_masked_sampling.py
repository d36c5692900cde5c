import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

from elt_zoo.corruption import LinearMaskSchedule
from elt_zoo.sampling import ConstantGuidance, LoopBudget, MaskedSampler, constant_budget, linear_budget, table_budget
from elt_zoo.sampling._categorical import categorical
from elt_zoo.sampling._masked import lowest, num_to_mask

# Every sequence of three tokens out of three, and the probability of each under a Markov chain.
START = np.asarray([0.5, 0.3, 0.2])
STEP = np.asarray([[0.1, 0.8, 0.1], [0.3, 0.1, 0.6], [0.7, 0.2, 0.1]])
SEQUENCES = np.asarray(list(itertools.product(range(3), repeat=3)))
CHAIN = START[SEQUENCES[:, 0]] * STEP[SEQUENCES[:, 0], SEQUENCES[:, 1]] * STEP[SEQUENCES[:, 1], SEQUENCES[:, 2]]


def chain_predict(ids, labels, *, loops):
    """The exact distribution of each token of the chain given those that are known."""
    sequences = jnp.asarray(SEQUENCES)
    fits = jnp.all((ids[:, None, :] == 3) | (ids[:, None, :] == sequences[None]), axis=2).astype(jnp.float32)
    weights = fits * jnp.asarray(CHAIN, jnp.float32)[None]
    return jnp.log(jnp.einsum("bs,stv->btv", weights, jax.nn.one_hot(sequences, 3)) + 1e-30)


def chi_squared(ids, probabilities):
    codes = np.asarray(ids) @ np.asarray([9, 3, 1])
    expected = probabilities * len(codes)
    return float(np.sum((np.bincount(codes, minlength=27) - expected) ** 2 / expected))


def draw_chain(steps, noise=1e4, batch=20_000):
    sampler = MaskedSampler(
        grid=(3,),
        codebook_size=3,
        mask_id=3,
        steps=steps,
        temperature_bias=1.0,
        temperature_scale=0.0,
        confidence_noise=noise,
    )
    return sampler(chain_predict, jnp.zeros(batch, jnp.int32), loops=1, key=jax.random.key(0))


def small_sampler(steps=8, **settings):
    return MaskedSampler(grid=(4, 4), codebook_size=6, mask_id=6, null_label=10, steps=steps, **settings)


def toy_logits(ids, labels):
    """Some logits that depend on every known token, on the position and on the label."""
    known = jnp.sum(jax.nn.one_hot(ids, 6), axis=(1, 2))[:, None, None, :]
    place = jnp.sin(jnp.arange(16 * 6, dtype=jnp.float32)).reshape(1, 4, 4, 6)
    return 0.3 * known + place + jnp.cos(labels.astype(jnp.float32)[:, None, None, None] * jnp.ones((1, 1, 1, 6)))


def toy_predict(ids, labels, *, loops):
    return toy_logits(ids, labels)


def loops_predict(ids, labels, *, loops):
    """Says its loop count: the logits leave no doubt about code `loops`."""
    return jnp.broadcast_to(40.0 * jax.nn.one_hot(loops, 6), (*ids.shape, 6))


LABELS = jnp.arange(5)
KEY = jax.random.key(1)
ONE = jnp.ones(())


@pytest.mark.numerical
def test_one_token_per_step_in_random_order_draws_the_joint_distribution_of_a_chain():
    # 26 degrees of freedom: 54 is exceeded once in a thousand seeds.
    assert chi_squared(draw_chain(steps=3), CHAIN) < 54


@pytest.mark.numerical
def test_all_tokens_in_one_step_draw_the_marginals_and_so_miss_the_chain():
    ids = draw_chain(steps=1)
    marginals = [np.bincount(SEQUENCES[:, place], weights=CHAIN) for place in range(3)]
    independent = np.prod([marginals[place][SEQUENCES[:, place]] for place in range(3)], axis=0)
    assert chi_squared(ids, independent) < 54
    assert chi_squared(ids, CHAIN) > 1000


@pytest.mark.numerical
def test_independent_tokens_keep_their_marginals_whatever_the_steps():
    marginals = np.asarray([[0.5, 0.2, 0.3], [0.1, 0.1, 0.8], [0.3, 0.4, 0.3]])

    def predict(ids, labels, *, loops):
        return jnp.broadcast_to(jnp.log(jnp.asarray(marginals, jnp.float32)), (*ids.shape, 3))

    joint = np.prod([marginals[place][SEQUENCES[:, place]] for place in range(3)], axis=0)
    sampler = MaskedSampler(
        grid=(3,),
        codebook_size=3,
        mask_id=3,
        steps=2,
        temperature_bias=1.0,
        temperature_scale=0.0,
        confidence_noise=1e4,
    )
    assert chi_squared(sampler(predict, jnp.zeros(20_000, jnp.int32), loops=1, key=jax.random.key(3)), joint) < 54


@pytest.mark.numerical
def test_codes_are_drawn_from_the_softmax():
    # 1,000 codes in 32 blocks of 32, the last one not full; a third of them is forbidden.
    codes = np.arange(1000)
    logits = np.where(codes % 3 == 0, -np.inf, 2 * np.sin(codes))
    drawn, _ = categorical(KEY, jnp.broadcast_to(jnp.asarray(logits, jnp.float32), (4, 10_000, 1000)), ONE)
    counts, allowed = np.bincount(np.ravel(drawn), minlength=1000), codes % 3 != 0
    assert counts.size == 1000 and np.all(counts[~allowed] == 0)
    expected = 40_000 * np.exp(logits) / np.sum(np.exp(logits))
    # 665 degrees of freedom: mean 665, deviation 36.
    assert np.sum((counts - expected)[allowed] ** 2 / expected[allowed]) < 665 + 4 * 36


@pytest.mark.parametrize("codebook", [1, 2, 5])
def test_small_codebooks_and_certain_codes_are_drawn(codebook):
    for code in range(codebook):
        logits = jnp.full((1, 7, codebook), -jnp.inf).at[:, :, code].set(-3.0)
        drawn, log_prob = categorical(KEY, logits, ONE)
        assert drawn.tolist() == [[code] * 7] and log_prob.tolist() == [[0.0] * 7]


@pytest.mark.numerical
@pytest.mark.parametrize("temperature", [0.5, 1.3])
def test_a_code_is_where_the_distribution_function_passes_the_uniform_number(temperature):
    logits = 3 * jax.random.normal(jax.random.key(2), (4, 200, 1000))
    drawn, log_prob = categorical(KEY, logits, jnp.asarray(temperature))
    exact = np.asarray(logits, np.float64)
    function = np.cumsum(np.exp(exact / temperature), axis=2)
    function = np.concatenate([np.zeros((4, 200, 1)), function], axis=2) / function[:, :, -1:]
    uniform = np.asarray(jax.random.uniform(KEY, (4, 200)))
    below, above = (
        np.take_along_axis(function, np.asarray(drawn)[:, :, None] + end, axis=2)[:, :, 0] for end in (0, 1)
    )
    # Float32 rounds the limits of a code.
    assert np.all((below - 3e-6 < uniform) & (uniform < above + 3e-6))
    expected = exact - np.log(np.sum(np.exp(exact), axis=2, keepdims=True))
    expected = np.take_along_axis(expected, np.asarray(drawn)[:, :, None], axis=2)[:, :, 0]
    np.testing.assert_allclose(log_prob, expected, atol=1e-5)


@pytest.mark.numerical
def test_temperature_sharpens_the_draw():
    sampler = MaskedSampler(grid=(1,), codebook_size=2, mask_id=2, steps=1, temperature_bias=0.5, temperature_scale=0.8)

    def predict(ids, labels, *, loops):
        return jnp.broadcast_to(jnp.asarray([0.0, 1.0]), (*ids.shape, 2))

    ids = sampler(predict, jnp.zeros(20_000, jnp.int32), loops=1, key=KEY)
    # The last step's temperature is the bias alone: softmax(0, 1 / 0.5).
    np.testing.assert_allclose(jnp.mean(ids), jax.nn.sigmoid(2.0), atol=0.01)


def test_without_noise_the_surest_tokens_come_first():
    sampler = MaskedSampler(grid=(4,), codebook_size=2, mask_id=2, steps=4, confidence_noise=0.0)
    sureness = jnp.asarray([1.0, 8.0, 3.0, 5.0])

    def predict(ids, labels, *, loops):
        return jnp.stack([jnp.zeros(ids.shape), jnp.broadcast_to(sureness, ids.shape)], axis=2)

    # A tiny temperature draws the likelier token: what is left of the confidence is the order.
    sampler = eqx.tree_at(
        lambda s: (s.temperature_bias, s.temperature_scale), sampler, (jnp.asarray(1e-3), jnp.zeros(()))
    )
    trajectory = sampler.trajectory(predict, LABELS, loops=1, key=KEY)
    np.testing.assert_array_equal(trajectory[:, 0] != 2, [[0, 1, 0, 0], [0, 1, 0, 1], [0, 1, 1, 1], [1, 1, 1, 1]])


@pytest.mark.parametrize(
    ("steps", "counts"),
    [(8, [5, 15, 24, 31, 39, 45, 48, 48]), (12, [3, 6, 11, 15, 18, 22, 26, 27, 31, 31, 33, 32])],
)
def test_each_step_reveals_as_many_tokens_as_maskgit(steps, counts):
    sampler = MaskedSampler(grid=(16, 16), codebook_size=4, mask_id=4, steps=steps)

    def predict(ids, labels, *, loops):
        return jnp.zeros((*ids.shape, 4))

    trajectory = sampler.trajectory(predict, jnp.zeros(2, jnp.int32), loops=1, key=KEY)
    known = np.sum(np.asarray(trajectory) != 4, axis=(2, 3))
    # MaskGIT carries one masked token past its last step, whose draw it returns all the same.
    counts[-1] += 1
    np.testing.assert_array_equal(np.diff(known, axis=0, prepend=0), np.stack([counts, counts], axis=1))


@pytest.mark.numerical
@pytest.mark.parametrize("count", [1, 32, 63])
def test_the_masked_positions_are_maskgits(count, published):
    fixture = published.arrays("maskgit_transformer_flax", "decode.npz")
    masked = jax.vmap(lambda row: lowest(row, jnp.asarray(count)))(jnp.asarray(fixture["confidence"]))
    np.testing.assert_array_equal(masked, fixture[f"masked_{count}"])


def test_ties_are_broken_by_position_so_that_the_count_is_exact():
    assert lowest(jnp.ones(5), jnp.asarray(2)).tolist() == [True, True, False, False, False]


@pytest.mark.parametrize("tokens", [40, 600])
def test_few_and_many_tokens_are_ranked_alike(tokens):
    values = np.random.default_rng(0).integers(-9, 10, tokens).astype(np.float32)
    values[::7], values[3::11] = np.inf, -np.inf
    for count in (0, 1, tokens // 2, tokens):
        expected = np.zeros(tokens, bool)
        expected[np.argsort(values, kind="stable")[:count]] = True
        np.testing.assert_array_equal(lowest(jnp.asarray(values), jnp.asarray(count)), expected)


@pytest.mark.numerical
def test_whole_products_are_not_rounded_down():
    # In float32 10·(1 − 0.7) is 3.0000001 and 10·(1 − 0.9) is 0.99999994.
    for tokens in (10, 16, 100):
        for left in range(1, tokens):
            share = LinearMaskSchedule()((tokens - jnp.asarray(left, jnp.float32)) / tokens)
            assert num_to_mask(share, jnp.asarray([tokens]), jnp.asarray([tokens])).tolist() == [left]


def test_the_answer_is_whole_and_is_the_last_entry_of_the_trajectory():
    ids = small_sampler()(toy_predict, LABELS, loops=1, key=KEY)
    trajectory = small_sampler().trajectory(toy_predict, LABELS, loops=1, key=KEY)
    assert ids.shape == (5, 4, 4) and ids.dtype == jnp.int32
    assert trajectory.shape == (8, 5, 4, 4)
    assert int(ids.min()) >= 0 and int(ids.max()) < 6
    np.testing.assert_array_equal(trajectory[-1], ids)
    # What is revealed stays.
    for earlier, later in itertools.pairwise(np.asarray(trajectory)):
        assert np.all((earlier == 6) | (earlier == later))


def test_known_tokens_stay_and_the_rest_is_filled_in():
    initial = jnp.full((2, 4, 4), 6).at[0, :2].set(3).at[1].set(5).at[1, 0, 0].set(6)
    trajectory = small_sampler(steps=4).trajectory(
        toy_predict, jnp.zeros(2, jnp.int32), loops=1, key=KEY, initial=initial
    )
    ids = trajectory[-1]
    np.testing.assert_array_equal(jnp.where(initial == 6, 0, ids), jnp.where(initial == 6, 0, initial))
    assert int(ids.max()) < 6
    # Eight unknown tokens follow ⌊8·cos⌋ = 7, 5, 3, 0; a single one is drawn in the first step.
    np.testing.assert_array_equal(np.sum(np.asarray(trajectory) == 6, axis=(2, 3)), [[7, 0], [5, 0], [3, 0], [0, 0]])


def test_the_same_key_gives_the_same_ids_and_another_others():
    sampler = small_sampler()
    first = sampler(toy_predict, LABELS, loops=1, key=KEY)
    np.testing.assert_array_equal(first, sampler(toy_predict, LABELS, loops=1, key=KEY))
    assert np.any(first != sampler(toy_predict, LABELS, loops=1, key=jax.random.key(2)))


def test_every_form_of_a_budget_draws_the_same():
    sampler = small_sampler(guidance=ConstantGuidance(2.0))
    expected = sampler(toy_predict, LABELS, loops=3, key=KEY)
    forms = (
        jnp.asarray(3),
        constant_budget(3, 8),
        np.full(8, 3),
        LoopBudget(3, 3),
        LoopBudget(3, jnp.asarray(3)),
    )
    for loops in forms:
        np.testing.assert_array_equal(sampler(toy_predict, LABELS, loops=loops, key=KEY), expected)


def test_the_loops_of_each_step_reach_predict():
    budget = table_budget([0 + 1, 5, 2, 4])
    trajectory = small_sampler(steps=4).trajectory(loops_predict, LABELS, loops=budget, key=KEY)
    before = jnp.full_like(trajectory[0], 6)
    for loops, after in zip([1, 5, 2, 4], trajectory, strict=True):
        new = after[(before == 6) & (after != 6)]
        assert new.size > 0 and set(new.tolist()) == {loops}
        before = after


def test_each_branch_gets_its_own_loops():
    seen = []

    def predict(ids, labels, *, loops):
        jax.debug.callback(lambda label, loops: seen.append((int(label), int(loops))), labels[0], loops)
        return toy_logits(ids, labels)

    sampler = small_sampler(steps=3, guidance=ConstantGuidance(2.0))
    loops = LoopBudget(linear_budget(2, 4, 3), 1)
    jax.block_until_ready(sampler(predict, jnp.full(2, 7), loops=loops, key=KEY))
    jax.effects_barrier()
    assert sorted(seen) == [(7, 2), (7, 3), (7, 4), (10, 1), (10, 1), (10, 1)]


def test_guidance_at_scale_1_draws_what_no_guidance_draws():
    expected = small_sampler()(toy_predict, LABELS, loops=1, key=KEY)
    for loops in (1, LoopBudget(1, 2)):
        guided = small_sampler(guidance=ConstantGuidance(1.0))(toy_predict, LABELS, loops=loops, key=KEY)
        np.testing.assert_array_equal(guided, expected)


def test_guidance_acts_on_the_logits():
    sampler = MaskedSampler(
        grid=(1,),
        codebook_size=2,
        mask_id=2,
        null_label=9,
        steps=1,
        temperature_bias=1.0,
        guidance=ConstantGuidance(3.0),
    )

    def predict(ids, labels, *, loops):
        logit = jnp.where(labels == 9, 1.0, 0.5)[:, None, None]
        return jnp.concatenate([jnp.zeros_like(logit), logit], axis=2)

    ids = sampler(predict, jnp.zeros(20_000, jnp.int32), loops=1, key=KEY)
    # 1 + 3·(0.5 − 1) = −0.5.
    np.testing.assert_allclose(jnp.mean(ids), jax.nn.sigmoid(-0.5), atol=0.01)


def test_the_unconditional_branch_is_not_run_without_guidance():
    sizes = []

    def predict(ids, labels, *, loops):
        sizes.append(ids.shape[0])
        return toy_logits(ids, labels)

    eqx.filter_eval_shape(small_sampler(), predict, LABELS, loops=1, key=KEY)
    assert set(sizes) == {5}


TRACES: list[None] = []


class CountingPredict(eqx.Module):
    """Counts how often it is traced; its array is an argument of the program, not a part of it."""

    scale: jax.Array

    def __call__(self, ids, labels, *, loops):
        TRACES.append(None)
        return self.scale * toy_logits(ids, labels) + loops.astype(jnp.float32)


@pytest.mark.numerical
def test_other_values_of_anything_traced_compile_nothing():
    small_sampler()(CountingPredict(jnp.ones(())), LABELS, loops=jnp.asarray(1), key=KEY)
    once = len(TRACES)
    for count, loops in enumerate((jnp.asarray(4), np.asarray(2), linear_budget(1, 5, 8), jnp.full(8, 2, jnp.uint8))):
        sampler = small_sampler(temperature_bias=0.1 + count, confidence_noise=float(count))
        predict = CountingPredict(jnp.asarray(0.5 * count, jnp.float32))
        sampler(predict, LABELS + count, loops=loops, key=jax.random.key(count))
    assert len(TRACES) == once


def test_a_callback_hears_of_every_step_in_order():
    heard = []
    callback = lambda step, steps: heard.append((step, steps))  # noqa: E731
    ids = small_sampler()(toy_predict, LABELS, loops=1, key=KEY, callback=callback)
    jax.effects_barrier()
    assert heard == [(step, 8) for step in range(1, 9)]
    np.testing.assert_array_equal(ids, small_sampler()(toy_predict, LABELS, loops=1, key=KEY))


def test_a_callback_works_on_a_batch_spread_over_devices():
    devices = jax.devices()
    mesh = jax.make_mesh((len(devices),), ("batch",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("batch"))
    labels, heard = jnp.arange(4 * len(devices)), []
    callback = lambda step, steps: heard.append(step)  # noqa: E731
    ids = small_sampler()(toy_predict, jax.device_put(labels, sharding), loops=1, key=KEY, callback=callback)
    jax.effects_barrier()
    assert heard == list(range(1, 9))
    np.testing.assert_array_equal(ids, small_sampler()(toy_predict, labels, loops=1, key=KEY))


def test_the_sampler_runs_inside_jit():
    sampler = small_sampler()
    drawn = jax.jit(lambda loops, labels: sampler(toy_predict, labels, loops=loops, key=KEY))(jnp.asarray(2), LABELS)
    np.testing.assert_array_equal(drawn, sampler(toy_predict, LABELS, loops=1, key=KEY))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 17}, r"MaskedSampler\(steps=17\)` cannot reveal 16 tokens: every step reveals .* Use at most 16"),
        ({"steps": 0}, "samples nothing"),
        ({"temperature_bias": 0.0}, "needs bias > 0"),
        ({"confidence_noise": -1.0}, "must not be negative"),
        ({"mask_id": 5}, "is one of the 6 codes"),
        ({"grid": ()}, "sizes of at least 1"),
        ({"guidance": ConstantGuidance(2.0)}, "also needs `null_label`"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    good = {"grid": (4, 4), "codebook_size": 6, "mask_id": 6, "steps": 8}
    with pytest.raises(ValueError, match=message):
        MaskedSampler(**{**good, **settings})


def test_bad_calls_are_refused():
    sampler = small_sampler()
    with pytest.raises(ValueError, match=r"logits of shape \(5, 4, 4, 3\); `MaskedSampler` expects \(5, 4, 4, 6\)"):
        sampler(lambda ids, labels, *, loops: jnp.zeros((*ids.shape, 3)), LABELS, loops=1, key=KEY)
    with pytest.raises(ValueError, match="this sampler takes 8 steps"):
        sampler(toy_predict, LABELS, loops=jnp.ones(5, jnp.int32), key=KEY)
    with pytest.raises(ValueError, match=r"`initial` has shape \(5, 4\) .* of shape \(5, 4, 4\)"):
        sampler(toy_predict, LABELS, loops=1, key=KEY, initial=jnp.zeros((5, 4), jnp.int32))
    with pytest.raises(ValueError, match=r"`initial` has .* dtype float32"):
        sampler(toy_predict, LABELS, loops=1, key=KEY, initial=jnp.zeros((5, 4, 4)))
    with pytest.raises(ValueError, match=r"neither a code \(0 to 5\) nor the mask \(6\)"):
        sampler(toy_predict, LABELS, loops=1, key=KEY, initial=jnp.full((5, 4, 4), -1))
    for labels in (jnp.zeros(5), jnp.zeros((5, 1), jnp.int32)):
        with pytest.raises(jaxtyping.TypeCheckError, match="labels"):
            sampler(toy_predict, labels, loops=1, key=KEY)


def test_traced_initial_ids_out_of_range_stay_out_of_range_without_a_host_callback():
    sampler = small_sampler()
    draw = jax.jit(lambda ids: sampler(toy_predict, LABELS, loops=1, key=KEY, initial=ids))
    np.testing.assert_array_equal(draw(jnp.full((5, 4, 4), 7)), 7)
    assert "callback" not in draw.lower(jnp.full((5, 4, 4), 6)).as_text()


@pytest.mark.parametrize("where", ["both", "conditional", "unconditional"])
def test_a_banned_code_is_never_sampled(where):
    banned = jnp.asarray([1.0, 0.0, 1.0, 0.0, 0.0, 1.0]) > 0

    def predict(ids, labels, *, loops):
        bans = {"both": labels >= 0, "conditional": labels != 10, "unconditional": labels == 10}[where]
        return jnp.where(bans[:, None, None, None] & banned[None, None, None], -jnp.inf, toy_logits(ids, labels))

    for scale in (None, 0.0, 0.5, 1.0, 3.0):
        guidance = None if scale is None else ConstantGuidance(scale)
        ids = small_sampler(guidance=guidance)(predict, LABELS, loops=1, key=KEY)
        if where != "unconditional" or scale not in (None, 1.0):  # Then the unconditional branch has no say.
            assert not np.any(np.isin(ids, [0, 2, 5])), scale
        assert int(ids.min()) >= 0 and int(ids.max()) < 6, scale


@pytest.mark.parametrize(("bad", "scale"), [(np.nan, None), (-np.inf, None), (np.inf, 2.0), (-np.inf, 2.0)])
def test_logits_that_are_no_distribution_give_no_sample(bad, scale):
    def predict(ids, labels, *, loops):
        row = jnp.zeros((4, 4), bool).at[1, 2].set(True)
        return jnp.where(((labels == 3)[:, None, None] & row[None])[..., None], bad, toy_logits(ids, labels))

    sampler = small_sampler(guidance=None if scale is None else ConstantGuidance(scale))
    with pytest.raises(FloatingPointError, match="could not sample 1 of 80 tokens"):
        sampler(predict, LABELS, loops=1, key=KEY)
    # Traced calls cannot raise: the token is still masked, all others are sampled.
    ids = jax.jit(lambda labels: sampler(predict, labels, loops=1, key=KEY))(LABELS)
    assert np.argwhere(np.asarray(ids) == 6).tolist() == [[3, 1, 2]] and int(ids.min()) >= 0


@pytest.mark.numerical
def test_a_single_nan_spoils_its_row():
    logits = jnp.zeros((1, 2, 5)).at[0, 1, 3].set(jnp.nan)
    drawn, _ = categorical(KEY, logits, ONE)
    assert drawn[0, 1] == -1 and drawn[0, 0] >= 0
