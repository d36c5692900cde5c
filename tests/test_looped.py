import functools
import operator
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from elt_zoo import LoopedTransformer, Remat
from elt_zoo.looped._while_any import while_any
from elt_zoo.nn import AbstractLayer, AdaLNZeroLayer, LayerOptions, PostNormLayer, PreNormLayer, Rotary

DIM, HEADS, TOKENS, LAYERS, MAX_LOOPS = 16, 2, 5, 2, 5


def randomize(tree, seed=7):
    """Every array random, so that nothing (adaLN-zero's gates above all) is hidden by zeros."""
    leaves, structure = jax.tree.flatten(eqx.filter(tree, eqx.is_array))
    rng = np.random.default_rng(seed)
    leaves = [jnp.asarray(0.3 * rng.standard_normal(leaf.shape), leaf.dtype) for leaf in leaves]
    return eqx.combine(jax.tree.unflatten(structure, leaves), tree)


def build(layer, **options):
    trunk = LoopedTransformer.create(DIM, LAYERS, HEADS, layer=layer, key=jax.random.key(0), **options)
    return randomize(trunk)


@pytest.fixture(scope="module", params=[PreNormLayer, PostNormLayer, AdaLNZeroLayer], ids=lambda layer: layer.__name__)
def layer(request):
    return request.param


@pytest.fixture(scope="module")
def x():
    return jax.random.normal(jax.random.key(1), (TOKENS, DIM))


@pytest.fixture(scope="module")
def conditioning(layer):
    return jax.random.normal(jax.random.key(2), (DIM,)) if layer is AdaLNZeroLayer else None


@pytest.fixture(scope="module")
def reference(layer, x, conditioning):
    """The states after loops 1 to MAX_LOOPS by a plain Python loop over the layers."""
    trunk = build(layer)
    states, state = [], x
    for _ in range(MAX_LOOPS):
        for i in range(LAYERS):
            one = jax.tree.map(lambda leaf, i=i: leaf[i] if eqx.is_array(leaf) else leaf, trunk.layers)
            state = one(state) if conditioning is None else one(state, one.condition(conditioning))
        states.append(state)
    return jnp.stack(states)


def close(a, b):
    np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5)


def check_every_way(trunk, x, conditioning, reference):
    close(trunk.trajectory(x, conditioning, loops=MAX_LOOPS), reference)
    traced = eqx.filter_jit(lambda trunk, r: trunk(x, conditioning, loops=r))
    masked = eqx.filter_jit(lambda trunk, r: trunk.at_exit(x, conditioning, loops=r, max_loops=MAX_LOOPS))
    both = eqx.filter_jit(
        lambda trunk, r: trunk.student_and_teacher(x, conditioning, student_loops=r, max_loops=MAX_LOOPS)
    )
    at_inference = eqx.filter_jit(
        lambda trunk, r: trunk.student_and_teacher(x, conditioning, student_loops=1, max_loops=r)
    )
    for loops in (1, MAX_LOOPS - 1):
        count = jnp.asarray(loops)
        close(trunk(x, conditioning, loops=loops), reference[loops - 1])
        close(traced(trunk, count), reference[loops - 1])
        close(masked(trunk, count), reference[loops - 1])
        student, teacher = both(trunk, count)
        close(student, reference[loops - 1])
        close(teacher, reference[-1])
        first, last = at_inference(trunk, count)
        close(first, reference[0])
        close(last, reference[loops - 1])


PAIRS = [(AdaLNZeroLayer, {}), (PreNormLayer, {"scan_layers": True, "remat": Remat.LAYER})]


def test_every_way_of_looping_gives_the_same_states(layer, x, conditioning, reference):
    check_every_way(build(layer), x, conditioning, reference)


@pytest.mark.parametrize(("layer", "options"), [*PAIRS, (PostNormLayer, {})], indirect=["layer"], ids=str)
def test_layers_of_other_parts_agree_in_every_way(layer, x, conditioning, options):
    every = LayerOptions(rms_norm=True, qk_norm=True, swiglu=True, rotary=Rotary((TOKENS - 1,), prefix=1))
    trunk = build(functools.partial(layer, options=every), **options)
    states, state = [], x
    for _ in range(MAX_LOOPS):
        for i in range(LAYERS):
            one = jax.tree.map(lambda leaf, i=i: leaf[i] if eqx.is_array(leaf) else leaf, trunk.layers)
            state = one(state) if conditioning is None else one(state, one.condition(conditioning))
        states.append(state)
    check_every_way(trunk, x, conditioning, jnp.stack(states))
    close(trunk.unstacked().trajectory(x, conditioning, loops=MAX_LOOPS), jnp.stack(states))


def around_the_loops(trunk, x, conditioning):
    """The states before the loops and after each, and what the coda makes of the latter, by plain Python loops."""

    def apply(layers, count, state):
        for i in range(count):
            one = jax.tree.map(lambda leaf, i=i: leaf[i] if eqx.is_array(leaf) else leaf, layers)
            state = one(state) if conditioning is None else one(state, one.condition(conditioning))
        return state

    states = [apply(trunk.prelude, 1, x)]
    for _ in range(MAX_LOOPS):
        states.append(apply(trunk.layers, LAYERS, states[-1]))
    return jnp.stack(states), jnp.stack([apply(trunk.coda, 2, state) for state in states[1:]])


@pytest.mark.parametrize(("layer", "options"), PAIRS, indirect=["layer"], ids=str)
def test_layers_around_the_loops_agree_in_every_way(layer, x, conditioning, options):
    trunk = build(layer, prelude=1, coda=2, **options)
    assert (trunk.num_prelude, trunk.num_layers, trunk.num_coda) == (1, LAYERS, 2)
    states, exits = around_the_loops(trunk, x, conditioning)
    check_every_way(trunk, x, conditioning, exits)
    close(trunk.loop_states(x, conditioning, loops=MAX_LOOPS), states)
    close(trunk.unstacked().trajectory(x, conditioning, loops=MAX_LOOPS), exits)


@pytest.mark.parametrize("layer", [AdaLNZeroLayer], indirect=True)
@pytest.mark.parametrize("differentiable", [False, True])
def test_early_exit_leaves_through_the_coda(layer, x, conditioning, differentiable):
    trunk = build(layer, prelude=1, coda=2)
    states, exits = around_the_loops(trunk, x, conditioning)
    leaving = functools.partial(trunk.early_exit, x, conditioning, max_loops=MAX_LOOPS, differentiable=differentiable)
    # The rule sees the states of the loops, or with `watch` those of the exits.
    for watch, seen in ((None, states), (lambda state: state, exits)):
        wanted = seen[3 if watch is None else 2]
        state, used = leaving(rule=lambda _, now, wanted=wanted: jnp.allclose(now, wanted, atol=1e-4), watch=watch)
        assert int(used) == 3
        close(state, exits[2])


def test_layers_that_do_not_loop_leave_the_others_as_they_are(layer, x, conditioning):
    create = functools.partial(LoopedTransformer.create, DIM, LAYERS, HEADS, layer=layer, key=jax.random.key(0))
    assert eqx.tree_equal(create(prelude=1, coda=1).layers, create().layers)
    both = create(prelude=1, coda=1)
    assert not eqx.tree_equal(both.prelude, both.coda)
    with pytest.raises(ValueError, match=r"prelude=-1.*no negative number of layers around it"):
        create(prelude=-1)


def test_dropout_differs_in_prelude_loops_and_coda(x):
    seen = []

    class Recorder(AbstractLayer):
        def __call__(self, x, modulation=None, *, key=None):
            assert key is not None
            seen.append(jax.random.key_data(key))
            return x

    layers = [Recorder()]
    trunk = LoopedTransformer(layers, prelude=layers, coda=layers, unroll_loops=True)
    with jax.disable_jit():
        trunk(x, loops=2, key=jax.random.key(0))
    assert len({tuple(np.asarray(key).tolist()) for key in seen}) == 4


@pytest.mark.parametrize("layer", [PreNormLayer, AdaLNZeroLayer])
def test_the_residual_scale_multiplies_both_branches(layer, x):
    given = () if layer is PreNormLayer else (jax.random.normal(jax.random.key(2), (2, 3, DIM)),)
    make = functools.partial(layer, DIM, HEADS, mlp_dim=4 * DIM, key=jax.random.key(0))
    whole, half = randomize(make()), randomize(make(residual_scale=0.5))
    for part in ("attention", "mlp"):
        # With the other branch silent, half the scale is half the change.
        other = operator.attrgetter({"attention": "mlp", "mlp": "attention"}[part])
        silent = jax.tree.map(lambda leaf: jnp.zeros_like(leaf) if eqx.is_array(leaf) else leaf, other(whole))
        one, two = (eqx.tree_at(other, each, silent) for each in (whole, half))
        close(two(x, *given) - x, 0.5 * (one(x, *given) - x))
    trunk = LoopedTransformer.create(
        DIM, LAYERS, HEADS, layer=layer, prelude=1, residual_scale=0.5, key=jax.random.key(0)
    )
    assert (trunk.layers.residual_scale, trunk.prelude.residual_scale) == (0.5, 1.0)


REINJECTED = [{}, {"prelude": 1, "scan_layers": True, "remat": Remat.LAYER}, {"remat": Remat.LOOP}]


@pytest.mark.parametrize("options", REINJECTED, ids=str)
def test_reinjection_starts_every_loop_from_a_mean_with_what_entered(layer, x, conditioning, options):
    trunk, plain = (build(layer, **options, reinjection=share) for share in (0.25, 0.0))
    entered, *_ = plain.loop_states(x, conditioning, loops=1)
    inner = eqx.tree_at(lambda trunk: trunk.layers, build(layer), plain.layers)
    states = [entered]
    for _ in range(MAX_LOOPS):
        states.append(inner(0.75 * states[-1] + 0.25 * entered, conditioning, loops=1))
    check_every_way(trunk, x, conditioning, jnp.stack(states[1:]))
    np.testing.assert_array_equal(trunk(x, conditioning, loops=1), plain(x, conditioning, loops=1))


def test_early_exits_of_a_batch_reinject_what_entered_each_example(layer, x, conditioning):
    trunk = build(layer, reinjection=0.5)
    batch = x[None] + jnp.arange(6.0)[:, None, None]
    changes = jnp.linalg.norm(jnp.diff(trunk.loop_states(x, conditioning, loops=MAX_LOOPS), axis=0), axis=(1, 2))
    limits = jnp.concatenate([1.1 * changes, jnp.zeros(1)])

    def leave(differentiable):
        def one(x, limit):
            return trunk.early_exit(
                x,
                conditioning,
                max_loops=MAX_LOOPS,
                rule=lambda before, after: jnp.linalg.norm(after - before) < limit,
                differentiable=differentiable,
            )

        return eqx.filter_jit(eqx.filter_vmap(one))(batch, limits)

    (states, used), (expected, all_used) = leave(False), leave(True)
    np.testing.assert_array_equal(used, all_used)
    assert len(set(used.tolist())) > 1
    close(states, expected)


@pytest.mark.parametrize("share", [-0.1, 1.0, float("nan")])
def test_a_reinjected_share_is_below_one(share):
    with pytest.raises(ValueError, match=r"must be in \[0, 1\)"):
        LoopedTransformer.create(DIM, LAYERS, HEADS, reinjection=share, key=jax.random.key(0))


@pytest.mark.parametrize("options", [{}, {"scan_layers": True}], ids=str)
def test_layers_kept_apart_give_the_same_states(layer, x, conditioning, options):
    trunk = build(layer, **options)
    apart = trunk.unstacked()
    assert len(apart.layers) == LAYERS and apart.unstacked() is apart
    close(apart.trajectory(x, conditioning, loops=MAX_LOOPS), trunk.trajectory(x, conditioning, loops=MAX_LOOPS))


OPTIONS = [
    {"remat": Remat.NONE},
    {"scan_layers": True, "remat": Remat.LAYER},
    {"unroll_loops": True},
    {"remat": Remat.LOOP},
    {"unroll_loops": True, "remat": Remat.ELEMENTWISE},
]


@pytest.mark.parametrize("layer", [AdaLNZeroLayer], indirect=True)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_every_option_gives_the_same_states(layer, x, conditioning, reference, options):
    check_every_way(build(layer, **options), x, conditioning, reference)


@pytest.mark.slow
@pytest.mark.parametrize("layer", [AdaLNZeroLayer], indirect=True)
def test_gradients_agree_between_all_differentiable_ways(layer, x, conditioning):
    plain = build(layer)

    def gradient(trunk, run):
        return jax.tree.leaves(eqx.filter_jit(eqx.filter_grad(lambda trunk: jnp.sum(jnp.square(run(trunk)))))(trunk))

    def static(trunk):
        return trunk(x, conditioning, loops=3)

    expected = gradient(plain, static)
    runs = [
        (build(layer, scan_layers=True), static),
        (build(layer, unroll_loops=True, remat=Remat.LAYER), static),
        (build(layer, remat=Remat.LOOP), static),
        (build(layer, remat=Remat.ELEMENTWISE), static),
        (plain, lambda trunk: trunk.at_exit(x, conditioning, loops=jnp.asarray(3), max_loops=5)),
        (plain, lambda trunk: trunk.trajectory(x, conditioning, loops=4)[2]),
        (plain, lambda trunk: trunk.student_and_teacher(x, conditioning, student_loops=jnp.asarray(3), max_loops=4)[0]),
        (
            plain,
            lambda trunk: trunk.early_exit(
                x, conditioning, rule=lambda old, new: jnp.asarray(False), max_loops=3, differentiable=True
            )[0],
        ),
    ]
    for trunk, run in runs:
        for a, b in zip(gradient(trunk, run), expected, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4 * float(jnp.max(jnp.abs(b))) + 1e-6)


def training_memory(num_layers, loops, **options):
    """Bytes of temporary memory that the compiled gradient of a trunk takes."""
    trunk = LoopedTransformer.create(64, num_layers, 2, key=jax.random.key(0), **options)
    arrays, static = eqx.partition(trunk, eqx.is_array)

    def loss(arrays, xs):
        trunk = eqx.combine(arrays, static)
        return jnp.sum(jnp.square(jax.vmap(lambda x: trunk(x, loops=loops))(xs)))

    compiled = jax.jit(jax.grad(loss)).lower(arrays, jnp.zeros((8, 64, 64))).compile()
    return compiled.memory_analysis().temp_size_in_bytes


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"scan_layers": True}, {"unroll_loops": True}], ids=str)
@pytest.mark.parametrize(("num_layers", "loops"), [(4, 1), (2, 4)])
def test_remat_saves_memory_however_layers_and_loops_run(num_layers, loops, options):
    stored = training_memory(num_layers, loops, remat=Remat.NONE, **options)
    assert training_memory(num_layers, loops, remat=Remat.ELEMENTWISE, **options) < 0.8 * stored
    assert training_memory(num_layers, loops, remat=Remat.LAYER, **options) < 0.6 * stored
    if loops > 1:  # a single loop that is recomputed as a whole is stored as a whole
        assert training_memory(num_layers, loops, remat=Remat.LOOP, **options) < 0.8 * stored


def test_elementwise_remat_repeats_no_matrix_product(x):
    def products(remat):
        gradient = jax.grad(lambda x: jnp.sum(build(PreNormLayer, remat=remat)(x, loops=2)))
        return str(jax.make_jaxpr(gradient)(x)).count("dot_general[")

    assert products(Remat.ELEMENTWISE) == products(Remat.NONE) < products(Remat.LAYER)


def test_exit_at_r_is_the_same_as_running_r_loops_and_then_the_rest(layer, x, conditioning):
    trunk = build(layer)
    close(trunk(trunk(x, conditioning, loops=2), conditioning, loops=3), trunk(x, conditioning, loops=5))


def test_per_example_counts_equal_running_alone(layer, conditioning, x):
    trunk = build(layer)
    xs = jax.random.normal(jax.random.key(3), (4, TOKENS, DIM))
    counts = jnp.asarray([1, 4, 2, 3])
    alone = [trunk(xs[i], conditioning, loops=int(counts[i])) for i in range(4)]
    masked = jax.vmap(lambda x, r: trunk.at_exit(x, conditioning, loops=r, max_loops=4))(xs, counts)
    traced = jax.vmap(lambda x, r: trunk(x, conditioning, loops=r))(xs, counts)
    for i in range(4):
        close(masked[i], alone[i])
        close(traced[i], alone[i])


def test_masked_gradient_of_one_example_does_not_see_the_others(x):
    trunk = build(PreNormLayer)
    xs = jnp.stack([x, x + 1.0])

    def loss(trunk, counts, weights):
        states = jax.vmap(lambda x, r: trunk.at_exit(x, loops=r, max_loops=4))(xs, counts)
        return jnp.sum(weights * jnp.sum(jnp.square(states), axis=(1, 2)))

    grad = eqx.filter_jit(eqx.filter_grad(loss))
    alone = eqx.filter_grad(lambda trunk: jnp.sum(jnp.square(trunk(x, loops=1))))(trunk)
    batched = grad(trunk, jnp.asarray([1, 4]), jnp.asarray([1.0, 0.0]))
    for a, b in zip(jax.tree.leaves(batched), jax.tree.leaves(alone), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("differentiable", [False, True])
def test_early_exit_stops_each_example_at_its_own_loop(differentiable):
    trunk = LoopedTransformer([Doubling(jnp.asarray(2.0))])
    rule = lambda old, new: jnp.max(new) >= 16.0  # noqa: E731
    xs = jnp.asarray([[[1.0]], [[3.0]], [[16.0]]])
    run = functools.partial(trunk.early_exit, rule=rule, max_loops=6, differentiable=differentiable)
    states, used = jax.vmap(run)(xs)
    np.testing.assert_array_equal(used, [4, 3, 1])
    np.testing.assert_array_equal(states[:, 0, 0], [16.0, 24.0, 32.0])
    for i in range(3):
        state, alone = run(xs[i])
        assert int(alone) == int(used[i])
        np.testing.assert_array_equal(state, states[i])
    never, used = trunk.early_exit(
        xs[0], rule=lambda old, new: jnp.asarray(False), max_loops=3, differentiable=differentiable
    )
    assert int(used) == 3 and float(never[0, 0]) == 8.0
    late, used = trunk.early_exit(xs[2], rule=rule, max_loops=6, min_loops=3, differentiable=differentiable)
    assert int(used) == 3 and float(late[0, 0]) == 128.0


@pytest.mark.parametrize("batch", [1, 5, 16, 23])
def test_a_batch_leaves_its_loop_one_by_one(batch):
    limits, steps_run = jnp.asarray(np.random.default_rng(batch).integers(0, 9, batch), jnp.int32), jnp.arange(9)
    keys, ran = jax.random.split(jax.random.key(0), batch), []

    # The functions close over what differs between examples.
    def leave(limit, key):
        def advance(carry):
            state, step = carry
            jax.debug.callback(lambda limit: ran.extend(np.ravel(limit)), limit)
            return state + jax.random.normal(jax.random.fold_in(key, step), (2,)), step + 1

        return while_any(lambda carry: carry[1] < limit, advance, (jnp.zeros(2), jnp.zeros((), jnp.int32)))

    state, steps = jax.jit(jax.vmap(leave))(limits, keys)
    jax.effects_barrier()
    np.testing.assert_array_equal(steps, limits)
    if batch <= 16:
        assert len(ran) == int(jnp.sum(limits))  # no example ran without need
    else:
        assert len(ran) == sum(2 * -(-int(jnp.sum(limits > step)) // 2) for step in range(9))
    noise = jax.vmap(
        lambda key: jax.vmap(lambda step: jax.random.normal(jax.random.fold_in(key, step), (2,)))(steps_run)
    )
    expected = jnp.sum(jnp.where((steps_run[None] < limits[:, None])[..., None], noise(keys), jnp.zeros(())), axis=1)
    np.testing.assert_allclose(state, expected, rtol=1e-5, atol=1e-6)


class Doubling(eqx.Module):
    factor: jax.Array

    def __call__(self, x):
        return self.factor * x


def test_a_traced_count_runs_only_the_loops_asked_for():
    calls = []

    class Counting(eqx.Module):
        bias: jax.Array

        def __call__(self, x):
            jax.debug.callback(lambda: calls.append(1))
            return x + self.bias

    trunk = LoopedTransformer([Counting(jnp.asarray(1.0))])
    run = jax.jit(lambda r: trunk(jnp.zeros((1, 1)), loops=r))
    for count in (1, 7, 3):
        calls.clear()
        result = run(jnp.asarray(count))
        jax.effects_barrier()
        assert float(result[0, 0]) == count == len(calls)


def test_one_compilation_serves_all_counts(x):
    trunk = build(PreNormLayer)
    traces = []

    @eqx.filter_jit
    def run(trunk, loops):
        traces.append(1)
        return trunk(x, loops=loops)

    for loops in (1, 2, 30):
        run(trunk, jnp.asarray(loops))
    assert len(traces) == 1


def test_conditioning_is_computed_once_outside_the_loop(x):
    trunk = build(AdaLNZeroLayer)
    conditioning = jnp.ones(DIM)
    text = str(jax.make_jaxpr(lambda x: trunk(x, conditioning, loops=4))(x))
    inside = text[text.index("scan[") :]
    # SiLU (a logistic) belongs to the conditioning alone; it must have happened before the scan starts.
    assert "logistic" in text and "logistic" not in inside


def test_layers_of_your_own_loop_with_and_without_conditioning(x):
    class Affine(eqx.Module):
        weight: jax.Array
        activation: Callable = eqx.field(static=True)

        def __call__(self, x, shift=None):
            return self.activation(x * self.weight[None, :]) + (0.0 if shift is None else shift)

    layers = [Affine(jnp.linspace(0.1, 1.0, DIM) * scale, jnp.tanh) for scale in (1.0, 2.0, 3.0)]
    trunk = LoopedTransformer(layers)
    shift = jnp.asarray(0.5)
    expected, shifted = x, x
    for _ in range(2):
        for layer in layers:
            expected, shifted = layer(expected), layer(shifted, shift)
    close(trunk(x, loops=2), expected)
    close(trunk(x, shift, loops=2), shifted)


def test_dropout_differs_between_loops_and_layers_and_is_off_without_a_key(x):
    trunk = build(functools.partial(PreNormLayer, dropout=0.5))
    close(trunk(x, loops=2), build(PreNormLayer)(x, loops=2))
    first = trunk(x, loops=2, key=jax.random.key(0))
    assert not np.allclose(first, trunk(x, loops=2, key=jax.random.key(1)))
    close(
        first, build(functools.partial(PreNormLayer, dropout=0.5), scan_layers=True)(x, loops=2, key=jax.random.key(0))
    )
    once = trunk(x, loops=1, key=jax.random.key(0))
    assert not np.allclose(first, trunk(once, loops=1, key=jax.random.key(0)))


@pytest.mark.slow
def test_it_is_a_pytree_like_any_other_equinox_module(x):
    trunk = build(PreNormLayer)
    doubled = jax.tree.map(lambda leaf: 2.0 * leaf if eqx.is_inexact_array(leaf) else leaf, trunk)
    assert not np.allclose(doubled(x, loops=1), trunk(x, loops=1))
    ensemble = eqx.filter_vmap(lambda key: LoopedTransformer.create(DIM, 1, HEADS, key=key))(
        jax.random.split(jax.random.key(0), 3)
    )
    assert eqx.filter_vmap(lambda trunk: trunk(x, loops=2))(ensemble).shape == (3, TOKENS, DIM)
    optimizer = optax.adam(1e-3)
    gradients = eqx.filter_grad(lambda trunk: jnp.sum(trunk(x, loops=2)))(trunk)
    with jax.numpy_dtype_promotion("standard"):  # optax promotes its step counter
        updates, _ = optimizer.update(gradients, optimizer.init(eqx.filter(trunk, eqx.is_inexact_array)))
    assert jax.tree.structure(eqx.apply_updates(trunk, updates)) == jax.tree.structure(trunk)
    assert eqx.tree_at(lambda t: t.layers.mlp.up.bias, trunk, replace_fn=jnp.zeros_like).num_layers == LAYERS


def test_bfloat16_states_stay_bfloat16(x):
    trunk = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), build(PreNormLayer))
    state = trunk(x.astype(jnp.bfloat16), loops=3)
    assert state.dtype == jnp.bfloat16
    np.testing.assert_allclose(state.astype(jnp.float32), build(PreNormLayer)(x, loops=3), rtol=0.1, atol=0.2)


class Shift(AbstractLayer):
    """Its gradients are the same in every loop, and exact in bfloat16: what is lost is lost in summing them."""

    bias: jax.Array
    scale: jax.Array

    def condition(self, conditioning):
        return self.scale * conditioning

    def __call__(self, x, modulation, *, key=None):
        return x + self.bias[None, :] + modulation[None, :]


@pytest.mark.parametrize("options", [{}, {"scan_layers": True}, {"unroll_loops": True}, {"remat": Remat.LOOP}], ids=str)
def test_gradients_of_shared_weights_are_summed_over_loops_in_float32(options):
    """32 equal gradients summed in bfloat16, as when the layers are cast before the loop, are off by up to 3.0%. Summed
    in float32 they are exact.
    """
    weights = jnp.linspace(1.0, 2.0, 129)[:-1]  # every bfloat16 number in [1, 2)
    layers = [Shift(jnp.zeros(128), jnp.ones(128)) for _ in range(2)]
    trunk = LoopedTransformer(layers, **options)

    def gradient(dtype, cast_before=False):
        def loss(trunk):
            if cast_before:
                trunk = jax.tree.map(lambda leaf: leaf.astype(dtype), trunk)
            state = trunk(jnp.zeros((1, 128), dtype), jnp.ones(128, dtype), loops=32)
            return jnp.sum((weights[None, :].astype(dtype) * state).astype(jnp.float32))

        return eqx.filter_jit(eqx.filter_grad(loss))(trunk).layers

    exact, before, now = gradient(jnp.float32), gradient(jnp.bfloat16, True), gradient(jnp.bfloat16)
    np.testing.assert_allclose(exact.bias, 32.0 * jnp.stack([weights, weights]), rtol=1e-6)
    np.testing.assert_array_equal(now.bias, exact.bias)
    np.testing.assert_array_equal(now.scale, exact.scale)
    assert float(jnp.max(jnp.abs(before.bias / exact.bias - 1.0))) == pytest.approx(0.0298, abs=1e-3)


@settings(max_examples=15, deadline=None)
@given(loops=st.integers(1, 12), tokens=st.integers(1, 6))
def test_any_count_and_length(loops, tokens):
    trunk = LoopedTransformer([Doubling(jnp.asarray(1.5))])
    x = jnp.ones((tokens, 3))
    close(trunk(x, loops=loops), x * 1.5**loops)
    close(trunk(x, loops=jnp.asarray(loops)), x * 1.5**loops)
    close(trunk.at_exit(x, loops=jnp.asarray(loops), max_loops=12), x * 1.5**loops)


def test_counts_below_one_or_beyond_the_maximum_are_refused(x):
    trunk = LoopedTransformer([Doubling(jnp.asarray(2.0))])
    for run in (trunk, trunk.trajectory):
        with pytest.raises(ValueError, match=r"`loops=0`: a looped transformer runs at least one loop"):
            run(x, loops=0)
    with pytest.raises(ValueError, match="`max_loops=0`"):
        trunk.at_exit(x, loops=jnp.asarray(1), max_loops=0)
    with pytest.raises(ValueError, match=r"`loops` of a looped transformer must be at least 1"):
        trunk(x, loops=jnp.asarray(0))
    with pytest.raises(ValueError, match=r"`loops` of a looped transformer must be in \[1, 4\]"):
        trunk.at_exit(x, loops=jnp.asarray(5), max_loops=4)
    with pytest.raises(ValueError, match=r"`student_loops` of a looped transformer must be in \[1, 4\]"):
        trunk.student_and_teacher(x, student_loops=jnp.asarray(0), max_loops=4)
    with pytest.raises(ValueError, match="min_loops=3, max_loops=2"):
        trunk.early_exit(x, rule=lambda old, new: jnp.asarray(True), max_loops=2, min_loops=3)


def test_traced_counts_out_of_range_give_nan_and_spare_their_neighbours(x):
    trunk = LoopedTransformer([Doubling(jnp.asarray(2.0))])
    counts = jnp.asarray([-1, 0, 1, 4, 5])
    results = {
        (0, 1): lambda loops: trunk(x, loops=loops),
        (0, 1, 4): lambda loops: trunk.at_exit(x, loops=loops, max_loops=4),
        (0, 1, 4, "student"): lambda loops: trunk.student_and_teacher(x, student_loops=loops, max_loops=4)[0],
    }
    for wrong, run in results.items():
        out = jax.jit(jax.vmap(run))(counts)
        for index, count in enumerate(counts.tolist()):
            expected = jnp.full_like(x, jnp.nan) if index in wrong else x * 2.0**count
            np.testing.assert_array_equal(out[index], expected)


def test_counts_are_integers_of_python_numpy_or_jax(x):
    trunk = LoopedTransformer([Doubling(jnp.asarray(2.0))])
    for count in (3, np.int64(3), np.uint8(3), np.asarray(3)):
        close(trunk(x, loops=count), 8.0 * x)
        assert trunk.trajectory(x, loops=count).shape[0] == 3
        close(trunk.at_exit(x, loops=count, max_loops=np.int32(4)), 8.0 * x)
        assert "while[" not in str(jax.make_jaxpr(lambda x, count=count: trunk(x, loops=count))(x))
    for dtype in (jnp.uint8, jnp.uint32, jnp.int16):
        count = jnp.asarray(3, dtype)
        close(trunk(x, loops=count), 8.0 * x)
        close(trunk.student_and_teacher(x, student_loops=count, max_loops=4)[0], 8.0 * x)
    for run in (trunk, trunk.trajectory):
        with pytest.raises(TypeError, match="`loops=True`: a number of loops is an integer"):
            run(x, loops=True)
    wrong: Any
    for wrong in (2.0, jnp.asarray(2.0), np.bool_(True)):
        with pytest.raises(Exception, match="loops"):
            trunk(x, loops=wrong)


def test_layers_that_cannot_be_stacked_are_named():
    with pytest.raises(ValueError, match="needs at least one layer"):
        LoopedTransformer([])
    with pytest.raises(ValueError, match="needs at least one layer"):
        LoopedTransformer.create(DIM, 0, HEADS, key=jax.random.key(0))
    with pytest.raises(ValueError, match="layer 1 differs from layer 0"):
        LoopedTransformer([Doubling(jnp.ones(2)), Doubling(jnp.ones(3))])
    with pytest.raises(ValueError, match="the heads must divide the width"):
        LoopedTransformer.create(DIM, 1, 3, key=jax.random.key(0))


def test_wrong_shapes_are_refused_with_the_name_of_the_argument(x):
    trunk = build(PreNormLayer)
    with pytest.raises(TypeError, match="typechecking parameter 'x'"):
        trunk(x[None], loops=1)
