"""Sampling by the clock: fits of made-up times, loops beside all other allocations, plans within their budgets."""

import dataclasses
import itertools
import json
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from command_line import run
from hypothesis import given
from hypothesis import strategies as st
from test_families import SeriesConfig, series

from elt_zoo import Generator, load
from elt_zoo.anytime import (
    Allocations,
    Latency,
    Planner,
    PlanningData,
    Quality,
    StepQuality,
    Timing,
    fit_latency,
    load_planner,
    make_planner,
    measure_latency,
    measure_quality,
    plan,
)
from elt_zoo.anytime._quality import step_gaps, step_levels
from elt_zoo.diagnostics import LevelLosses, held_out_level_losses, held_out_losses
from elt_zoo.families import DiTConfig, MaskGITConfig
from elt_zoo.sampling import constant_budget, table_budget
from elt_zoo.tokenizers import GreyLevels

KEY = jax.random.key(0)
BUNDLED = load("digits-dit")
SIZES: dict[str, Any] = {"dim": 16, "num_layers": 1, "max_loops": 3, "num_heads": 2, "num_classes": 10}
POSITIVE = st.floats(1e-5, 1.0)


def tiny(family):
    """An untrained generator and held-out examples of it."""
    rng = np.random.default_rng(0)
    if family == "series":
        config, tokenizer = SeriesConfig(**{**SIZES, "num_classes": 3}, length=8), None
        examples, _ = series(20, 1)
    elif family == "dit":
        config, tokenizer = DiTConfig(**SIZES, shape=(8, 8, 1), patch_size=4), None
        examples = rng.uniform(-1.0, 1.0, (40, 8, 8, 1)).astype(np.float32)
    else:
        config, tokenizer = MaskGITConfig(**SIZES, grid=(8, 8), codebook_size=4), GreyLevels((8, 8, 1), 4)
        examples = rng.integers(0, 4, (40, 8, 8)).astype(np.int32)
    labels = (np.arange(len(examples)) % config.num_classes).astype(np.int32)
    return Generator(config.build(key=KEY), config, tokenizer), PlanningData(examples=examples, labels=labels)


def brightness(pixels, labels):
    """Stands in for a distance: how bright the samples are."""
    return float(np.mean(pixels) + 2.0)


@pytest.fixture(scope="module", params=["dit", pytest.param("maskgit", marks=pytest.mark.slow), "series"])
def planned(request):
    """A generator of each family, its data, and a planner that has measured both."""
    generator, data = tiny(request.param)
    data = dataclasses.replace(data, distance=brightness, measure="brightness")
    return generator, data, make_planner(generator, data, batches=(1, 4), steps=(2, 3), samples=6, repeats=2)


def planner_of(latency, by_steps, *, error=None, generator=None):
    quality = Quality(measure="distance", by_steps=tuple(by_steps), error=error, samples=8, sets=2)
    generator = BUNDLED if generator is None else generator
    return Planner(generator=generator, guidance=1.0, latencies=(latency,), quality=quality)


def latency_of(*, fixed=2e-3, per_loop=1e-3, per_step=5e-4, tail=1.0):
    return Latency(batch=1, fixed=fixed, per_loop=per_loop, per_step=per_step, error=0.0, tail=tail)


# The time of a call.


@given(POSITIVE, POSITIVE, POSITIVE)
def test_a_fit_finds_the_terms_that_made_the_times(fixed, per_loop, per_step):
    def timing(steps, loops):
        return Timing(steps=steps, loops=loops, seconds=(fixed + per_loop * loops + per_step * steps,) * 3)

    fitted = fit_latency([timing(steps, steps * loops) for steps in (4, 8, 16) for loops in (1, 4)], batch=2)
    assert fitted.predict(steps=12, loops=30) == pytest.approx(timing(12, 30).median, rel=1e-6)
    assert fitted.per_loop == pytest.approx(per_loop, rel=1e-4) and fitted.batch == 2
    assert fitted.error < 1e-9 and fitted.tail == pytest.approx(1.0)


@given(st.lists(st.floats(1e-3, 1.0), min_size=6, max_size=6))
def test_no_term_of_a_fit_is_negative_and_none_is_better(times):
    places = [(steps, steps * loops) for steps in (2, 4, 8) for loops in (1, 4)]
    timings = [Timing(steps=s, loops=n, seconds=(t,)) for (s, n), t in zip(places, times, strict=True)]
    fitted = fit_latency(timings, batch=1)

    def misfit(terms):
        return sum((terms @ (1, n, s) / t - 1.0) ** 2 for (s, n), t in zip(places, times, strict=True))

    terms = np.asarray([fitted.fixed, fitted.per_loop, fitted.per_step])
    assert terms.min() >= 0
    for index, change in itertools.product(range(3), (-1e-4, 1e-4)):
        other = terms.copy()
        other[index] = max(other[index] + change, 0.0)
        assert misfit(other) >= misfit(terms) - 1e-9


def test_a_tail_tells_of_slow_calls():
    timings = [Timing(steps=s, loops=s, seconds=(s * 1e-3,) * 9 + (s * 2e-3,)) for s in (2, 4, 8)]
    assert fit_latency(timings, batch=1).tail == pytest.approx(2.0, rel=1e-6)


def test_timing_calls_takes_turns_and_one_program_for_each_number_of_steps():
    generator, _ = tiny("dit")
    ticks = itertools.count()
    latency = measure_latency(generator, steps=(2, 3), repeats=3, clock=lambda: float(next(ticks)))
    # Two readings of the clock for each call: every call took one second. The first two of each are not counted.
    assert latency.fixed == pytest.approx(1.0) and latency.per_loop == pytest.approx(0.0, abs=1e-9)
    assert next(ticks) == 2 * (3 + 2) * 4


def test_slow_calls_are_timed_fifteen_times():
    ticks = itertools.count()
    measure_latency(tiny("dit")[0], steps=(2,), repeats=60, clock=lambda: float(next(ticks)))
    assert next(ticks) == 2 * (15 + 2) * 2


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Timing(steps=2, loops=0, seconds=(1.0,)), "at least one step and one loop"),
        (lambda: Timing(steps=2, loops=2, seconds=()), "the seconds of one call or more, all positive"),
        (lambda: Timing(steps=2, loops=2, seconds=(math.nan,)), "all positive"),
        (lambda: fit_latency([Timing(steps=2, loops=2, seconds=(1.0,))], batch=1), r"got 1 timing\(s\)"),
        (lambda: latency_of(fixed=-1.0), r"`Latency\(fixed=-1.0\)` must be a number of at least 0"),
        (lambda: Latency(batch=0, fixed=1.0, per_loop=1.0, per_step=1.0, error=0.0, tail=1.0), "batch=0"),
        (
            lambda: measure_latency(load("digits-dit"), steps=()),
            r"steps=\(\), every=1, repeats=60\)`: each must be at least 1",
        ),
        (lambda: Allocations([[]]), "has shape"),
        (lambda: Allocations([[math.nan]]), "a finite number for every step"),
        (lambda: Allocations([[1.0, 2.0]]).loops(3), "1 steps of 1 to 2 loops take 1 to 2"),
    ],
)
def test_wrong_measurements_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# Loops for every step.


@given(
    st.integers(1, 4).flatmap(
        lambda most: st.lists(st.lists(st.floats(-1.0, 1.0), min_size=most, max_size=most), min_size=1, max_size=4)
    )
)
def test_allocations_are_the_best_of_all(gaps):
    steps, most = len(gaps), len(gaps[0])
    allocations, cheapest = Allocations(gaps), {}
    for loops in itertools.product(range(1, most + 1), repeat=steps):
        cost = sum(row[count - 1] for row, count in zip(gaps, loops, strict=True))
        cheapest[sum(loops)] = min(cost, cheapest.get(sum(loops), math.inf))
    for total, cost in cheapest.items():
        loops = allocations.loops(total)
        assert sum(loops) == total and set(loops) <= set(range(1, most + 1))
        assert sum(row[count - 1] for row, count in zip(gaps, loops, strict=True)) == pytest.approx(cost)
        assert allocations.least[total - steps] == pytest.approx(cost)


def test_loops_go_where_they_gain_most():
    late = Allocations([[0.1, 0.0], [0.1, 0.0], [0.5, 0.0], [0.6, 0.0]])
    assert late.loops(6) == (1, 1, 2, 2)


# The quality of samples.


@pytest.mark.parametrize("family", ["dit", "maskgit"])
def test_losses_by_level_are_those_of_all_levels_together(family):
    generator, data = tiny(family)
    config = generator.config
    options = {"loops": 3, "copies": 2, "batch_size": 40, "key": KEY}
    parts = (generator.model, config.loss(), config.corruption())
    by_level = held_out_level_losses(*parts, config.level, data.examples, data.labels, ranges=5, **options)
    together = held_out_losses(*parts, data.examples, data.labels, **options)
    total = jnp.sum(by_level.total_loss, axis=0) / jnp.sum(by_level.total_weight)
    np.testing.assert_allclose(total, together, rtol=1e-5)
    assert int(jnp.sum(by_level.num_examples)) == 80
    seen = np.asarray(by_level.num_examples) > 0
    index = np.arange(5)[seen]
    level = np.asarray(by_level.level)[seen]
    assert (index / 5 <= level + 1e-6).all() and (level <= (index + 1) / 5 + 1e-6).all()
    with pytest.raises(ValueError, match=r"ranges=0\)` must be at least 1"):
        held_out_level_losses(*parts, config.level, data.examples, data.labels, ranges=0, **options)


def test_levels_of_steps_are_those_of_the_sampler():
    np.testing.assert_allclose(np.asarray(step_levels(tiny("dit")[0], 4)), [1.0, 0.75, 0.5, 0.25], rtol=1e-6)
    masked = np.asarray(step_levels(tiny("maskgit")[0], 4))
    # All 64 tokens, then what the cosine schedule leaves.
    expected = [1.0, *(math.floor(64 * math.cos(math.pi / 2 * part)) / 64 for part in (0.25, 0.5, 0.75))]
    np.testing.assert_allclose(masked, expected)
    assert step_levels(tiny("series")[0], 3) is None


def test_gaps_of_steps_integrate_the_loss_over_levels():
    losses = LevelLosses(
        num_examples=jnp.asarray([2, 0, 2]),
        total_level=jnp.asarray([0.4, 0.0, 1.6]),
        total_loss=jnp.asarray([[6.0, 2.0], [0.0, 0.0], [2.0, 2.0]]),
        total_weight=jnp.asarray([2.0, 0.0, 2.0]),
    )
    gaps = np.asarray(step_gaps(losses, levels=[1.0, 0.5, 0.2], steps=3))
    # Beyond the outermost levels the gap stays, between them it is interpolated: 0, 1, 2 for one loop.
    np.testing.assert_allclose(gaps, [[0.5 * 0.0, 0.0], [0.3 * 1.0, 0.0], [0.2 * 2.0, 0.0]], atol=1e-6)
    alike = np.asarray(step_gaps(losses, levels=None, steps=2))
    np.testing.assert_allclose(alike, [[0.5, 0.0], [0.5, 0.0]])


def test_a_distance_lies_between_the_measured_ones():
    # Two loops are best at the second step, three at the first: five in all.
    by_steps = StepQuality(gaps=((0.4, 0.2, 0.0), (0.1, -0.1, 0.0)), one=4.0, least=2.0, full=1.0)
    assert by_steps.least_loops == (3, 2)
    assert by_steps.distance(0.5, 2) == pytest.approx((4.0, 1.0))
    assert by_steps.distance(0.2, 3) == pytest.approx((3.0, 0.5))
    assert by_steps.distance(-0.1, 5) == pytest.approx((2.0, 0.0))
    assert by_steps.distance(0.0, 6) == pytest.approx((1.0, 1.0))
    # Where one loop is best, only the loops tell.
    useless = StepQuality(gaps=((-0.2, -0.1, 0.0),) * 2, one=4.0, least=4.0, full=2.0)
    assert useless.least_loops == (1, 1)
    assert [useless.distance(0.0, loops)[0] for loops in range(2, 7)] == pytest.approx([4.0, 3.5, 3.0, 2.5, 2.0])


def test_quality_goes_from_one_loop_to_all(planned):
    generator, data, planner = planned
    for by_steps in planner.quality.by_steps:
        assert by_steps.least <= by_steps.one and len(by_steps.gaps[0]) == 3
        assert all(row[-1] == 0.0 for row in by_steps.gaps)
    options = {"samples": 6, "sets": 1, "steps": (2,)}
    once = measure_quality(generator, data, **options)
    assert once.error is None and once.by_steps[0].gaps == planner.quality.by_steps[0].gaps
    labels = np.arange(6) % generator.config.num_classes
    key = jax.random.fold_in(jax.random.key(0), 0)
    found = once.by_steps[0]
    one, least, full = (
        brightness(generator.sample(labels, key=key, loops=table_budget(loops), steps=2, batch_size=6), labels)
        for loops in ((1, 1), found.least_loops, (3, 3))
    )
    expected = [one, least, full] if least <= one else [(one + least) / 2] * 2 + [full]
    np.testing.assert_allclose([found.one, found.least, found.full], expected, rtol=1e-6)


def test_a_planner_also_plans_steps_without_loops(tmp_path):
    generator, data = tiny("dit")
    data = dataclasses.replace(data, distance=brightness, measure="brightness")
    planner = make_planner(generator, data, steps=(2, 5), every=2, samples=6, repeats=2)
    kinds = [(by_steps.steps, by_steps.every, len(by_steps.gaps)) for by_steps in planner.quality.by_steps]
    assert kinds == [(2, 1, 2), (5, 1, 5), (5, 2, 3)] and planner.every == 2
    plain, cached = planner.quality.by_steps[1:]
    # Each step that runs loops stands for those until the next: here the first for two fifths of the levels.
    np.testing.assert_allclose(np.asarray(cached.gaps[0]), 2.0 * np.asarray(plain.gaps[0]), atol=1e-6)
    labels = np.arange(6) % 10
    at_five = {"key": jax.random.fold_in(jax.random.key(0), 0), "steps": 5, "batch_size": 6}
    all_loops = brightness(generator.sample(labels, loops=table_budget([3, 0, 3, 0, 3]), **at_five), labels)
    once = measure_quality(generator, data, steps=(2, 5), every=2, samples=6, sets=1).by_steps[2]
    assert once.full == pytest.approx(all_loops, rel=1e-6)
    # Let the cache be the best there is: plans say so, and are sampled so, from a file too.
    best = dataclasses.replace(cached, one=0.1, least=0.05, full=0.0)
    planner = dataclasses.replace(
        planner, quality=dataclasses.replace(planner.quality, by_steps=(plain, best)), latencies=(latency_of(),)
    )
    chosen = load_planner(planner.save(tmp_path / "plan.json"), generator).plan(1e3)
    assert chosen.loops == (3, 0, 3, 0, 3) and chosen.milliseconds == pytest.approx(2.0 + 9 * 1.0 + 5 * 0.5)
    assert "5 steps of 3 0 3 0 3 loops" in str(chosen)
    clocked = dataclasses.replace(generator, planner=planner)
    by_hand = generator.sample([4], loops=table_budget([3, 0, 3, 0, 3]), steps=5, guidance=planner.guidance, key=KEY)
    np.testing.assert_array_equal(clocked.sample([4], milliseconds=1e3, key=KEY), by_hand)
    in_time = clocked.sample([4], milliseconds=1e6, deadline=True, key=KEY)
    np.testing.assert_allclose(in_time, by_hand, atol=1e-4)


def test_steps_and_gaps_must_fit():
    rows = ((0.1, 0.0),) * 3
    assert StepQuality(gaps=rows, one=1.0, least=0.5, full=0.5, steps=5, every=2).at_steps((1, 2, 1)) == (1, 0, 2, 0, 1)
    with pytest.raises(ValueError, match=r"`StepQuality\(steps=8, every=2\)` needs gaps for as many .* and has 3"):
        StepQuality(gaps=rows, one=1.0, least=0.5, full=0.5, steps=8, every=2)


def test_without_a_distance_the_quality_is_the_gap_at_the_usual_steps():
    generator, data = tiny("series")
    planner = make_planner(generator, data, repeats=1)
    (by_steps,) = planner.quality.by_steps
    assert by_steps.steps == generator.settings.steps and planner.quality.measure == "held-out gap to L_max"
    fastest = planner.frontier(headroom=1.0)[0]
    assert fastest.quality == pytest.approx(sum(row[0] for row in by_steps.gaps) if fastest.loops == (1,) * 3 else 0)
    with pytest.raises(ValueError, match="has no distance to compare numbers of steps by"):
        measure_quality(generator, data, steps=(2, 3))


# Plans.


@st.composite
def measured(draw):
    terms = {name: draw(POSITIVE) for name in ("fixed", "per_loop", "per_step")}
    latency = latency_of(**terms, tail=draw(st.floats(1, 2)))
    most, by_steps = draw(st.integers(1, 3)), []
    for steps in draw(st.lists(st.integers(1, 4), min_size=1, max_size=3, unique=True)):
        gaps = [draw(st.lists(st.floats(0.0, 1.0), min_size=most, max_size=most)) for _ in range(steps)]
        least, one = sorted(draw(st.lists(st.floats(0.0, 9.0), min_size=2, max_size=2)))
        full = draw(st.floats(0.0, 9.0))
        by_steps.append(StepQuality(gaps=tuple(map(tuple, gaps)), one=one, least=least, full=full))
    return planner_of(latency, by_steps, error=0.1)


@given(measured(), st.floats(0.1, 1e5))
def test_every_plan_is_predicted_within_its_budget_and_none_of_the_frontier_is_better(planner, milliseconds):
    frontier = planner.frontier()
    times = [each.late_milliseconds for each in frontier]
    assert times == sorted(times) and [each.quality for each in frontier] == sorted(
        (each.quality for each in frontier), reverse=True
    )
    if milliseconds < times[0]:
        with pytest.raises(ValueError, match="is below the fastest plan, "):
            planner.plan(milliseconds)
        return
    chosen = planner.plan(milliseconds)
    assert chosen.milliseconds <= chosen.late_milliseconds <= milliseconds
    latency = planner.latency(1)
    expected = 1e3 * latency.predict(steps=chosen.steps, loops=sum(chosen.loops))
    assert chosen.milliseconds == pytest.approx(expected) and len(chosen.loops) == chosen.steps
    assert chosen.quality == min(each.quality for each in frontier if each.late_milliseconds <= milliseconds)
    assert chosen.error <= 0.1 + 1e-12


def test_a_budget_below_the_fastest_plan_names_it():
    planner = planner_of(latency_of(), [StepQuality(gaps=((0.2, 0.0),) * 2, one=2.0, least=1.0, full=1.0)])
    with pytest.raises(ValueError) as raised:
        planner.plan(4.9)
    said = str(raised.value)
    assert "below the fastest plan, 2 steps of 1×2 loops: 5 ms" in said and "\n" not in said
    assert planner.plan(5.1).loops == (1, 1) and planner.plan(100.0).loops == (2, 2)
    assert planner.plan(100.0).quality == pytest.approx(1.0)


def test_headroom_is_kept_free():
    planner = planner_of(latency_of(tail=1.5), [StepQuality(gaps=((0.2, 0.0),) * 2, one=2.0, least=1.0, full=1.0)])
    assert planner.plan(7.6).loops == (1, 1) and planner.plan(7.6, headroom=1.0).loops == (2, 2)
    with pytest.raises(ValueError, match=r"`headroom=0\.5` must be a number of at least 1"):
        planner.plan(10.0, headroom=0.5)


@pytest.mark.parametrize("milliseconds", [math.nan, math.inf, 0.0, -3.0])
def test_budgets_that_are_no_time_are_refused(milliseconds):
    planner = planner_of(latency_of(), [StepQuality(gaps=((0.2, 0.0),) * 2, one=2.0, least=1.0, full=1.0)])
    for call in (planner.plan, lambda given: plan("digits-dit", given)):
        with pytest.raises(ValueError, match="must be a positive number of milliseconds"):
            call(milliseconds)


def test_data_that_do_not_fit_are_refused():
    generator, data = tiny("dit")
    with pytest.raises(ValueError, match=r"examples of float32\[4\] .* the model takes float32\[8, 8, 1\]"):
        make_planner(generator, PlanningData(examples=np.zeros((3, 4), np.float32), labels=np.zeros(3, np.int32)))
    with pytest.raises(ValueError, match=r"needs held-out data of what the model was trained on \(unknown\)"):
        make_planner(generator)
    wrong = dataclasses.replace(data, distance=lambda pixels, labels: math.nan)
    with pytest.raises(ValueError, match="the distance of the samples is not finite"):
        measure_quality(generator, wrong, steps=(2,), samples=2, sets=1)


# Generators that plan.


def test_a_generator_samples_by_the_clock_without_compiling(planned, caplog):
    generator, _, planner = planned
    clocked = dataclasses.replace(generator, planner=planner)
    for batch, labels in ((1, [0]), (4, [0, 1, 2])):
        for each in planner.frontier(batch=batch, headroom=1.0)[:3]:
            budget = each.milliseconds * planner.latency(batch).tail * (1 + 1e-9)
            chosen = planner.plan(budget, batch=batch)
            with jax.log_compiles():
                given = clocked.sample(labels, milliseconds=budget, key=KEY)
            assert "_draw" not in caplog.text
            same = generator.sample(labels, loops=chosen.budget, steps=chosen.steps, batch_size=batch, key=KEY)
            np.testing.assert_array_equal(given, same)
    with jax.log_compiles():
        generator.sample([0], loops=constant_budget(1, 4), steps=4, key=KEY)
    assert "_draw" in caplog.text  # the log does tell
    caplog.clear()


def test_a_call_of_several_batches_shares_its_time(planned):
    generator, _, planner = planned
    asked = []

    class Spying:
        batches, check = planner.batches, planner.check

        def plan(self, milliseconds, *, batch):
            asked.append((milliseconds, batch))
            return planner.plan(1e6, batch=batch)

    clocked = dataclasses.replace(generator, planner=Spying())
    for count, batch_size in ((1, None), (3, None), (9, None), (3, 1)):
        clocked.sample([0] * count, milliseconds=60.0, batch_size=batch_size, key=KEY)
    assert asked == [(60.0, 1), (60.0, 4), (20.0, 4), (20.0, 1)]


def test_wrong_calls_by_the_clock_are_refused(planned):
    generator, _, planner = planned
    with pytest.raises(ValueError, match="`milliseconds` needs a planner"):
        generator.sample([0], milliseconds=40.0, key=KEY)
    clocked = dataclasses.replace(generator, planner=planner)
    with pytest.raises(ValueError, match=r"`milliseconds=40\.0` and `loops` cannot both be given"):
        clocked.sample([0], milliseconds=40.0, loops=2, key=KEY)
    with pytest.raises(ValueError, match="`batch=2` was not measured, only 1, 4"):
        clocked.sample([0], milliseconds=40.0, batch_size=2, key=KEY)
    with pytest.raises(ValueError, match="is below the fastest plan"):
        clocked.sample([0], milliseconds=1e-6, key=KEY)
    with pytest.raises(ValueError, match="must be a positive number"):
        clocked.sample([0], milliseconds=math.nan, key=KEY)
    with pytest.raises(ValueError, match="The planner was made for another generator"):
        dataclasses.replace(clocked, model=generator.config.build(key=jax.random.key(5)))


# Files.


def test_a_planner_is_saved_and_read(planned, tmp_path):
    generator, _, planner = planned
    path = planner.save(tmp_path / "plan.json")
    again = load_planner(path, generator)
    assert (again.latencies, again.quality) == (planner.latencies, planner.quality)
    assert again.frontier(batch=4) == planner.frontier(batch=4)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("machine", "a Cray-1", "its machine is a Cray-1, not "),
        ("device", "TPU v9", "its device is TPU v9, not "),
        ("precision", "bfloat16", "its precision is bfloat16, not float32"),
        ("model", 64 * "a", "its model is aaaaaaaaaaaa…, not "),
    ],
)
def test_a_file_of_other_conditions_is_refused(name, value, message, tmp_path):
    planner = planner_of(latency_of(), [StepQuality(gaps=((0.2, 0.0),) * 2, one=2.0, least=1.0, full=1.0)])
    path = planner.save(tmp_path / "plan.json")
    content = json.loads(path.read_text())
    content["conditions"][name] = value
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="was measured under other conditions: " + message) as raised:
        load_planner(path, planner.generator)
    assert "\n" not in str(raised.value)


def test_a_file_of_another_model_is_refused(tmp_path):
    planner = planner_of(latency_of(), [StepQuality(gaps=((0.2, 0.0),) * 2, one=2.0, least=1.0, full=1.0)])
    path = planner.save(tmp_path / "plan.json")
    with pytest.raises(ValueError, match="under other conditions: its model is"):
        load_planner(path, load("digits-maskgit"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content.update(format=7), "has the format 7, and this version of elt_zoo reads 2"),
        (lambda content: content.pop("guidance"), "is damaged: .*missing: guidance"),
        (lambda content: content["latencies"][0].update(fixed=-1.0), "is damaged: .*must be a number of at least 0"),
        (lambda content: content.update(latencies=[]), "is damaged: it holds no measurement"),
        (lambda content: content["quality"]["by_steps"][0].update(gaps=[[0.1], [0.1, 0.0]]), "is damaged: .*gaps"),
        (lambda content: content["quality"]["by_steps"][0].update(gaps=[]), "is damaged: .*gaps"),
    ],
)
def test_a_damaged_file_is_refused(change, message, tmp_path):
    planner = planner_of(latency_of(), [StepQuality(gaps=((0.2, 0.0),) * 2, one=2.0, least=1.0, full=1.0)])
    path = planner.save(tmp_path / "plan.json")
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message):
        load_planner(path, planner.generator)


class LevelledSeries(SeriesConfig):
    """The series, whose corruption has a level: the share of noise."""

    family = "levelled series"

    def level(self, *inputs):
        _, share, _ = inputs
        return share


def test_a_family_of_ones_own_says_its_levels():
    config = LevelledSeries(**{**SIZES, "num_classes": 3}, length=8)
    generator = Generator(config.build(key=KEY), config)
    np.testing.assert_allclose(np.asarray(step_levels(generator, 3)), [1.0, 2 / 3, 1 / 3], rtol=1e-6)
    examples, labels = series(20, 1)
    quality = measure_quality(generator, PlanningData(examples=examples, labels=labels), steps=(3,))
    rows = np.asarray(quality.by_steps[0].gaps)
    assert rows.shape == (3, 3) and np.ptp(rows[:, 0]) > 0  # its steps differ


# The command.


def test_the_command_prints_and_plots_what_a_file_holds(tmp_path):
    by_steps = [
        StepQuality(gaps=((0.1, 0.05, 0.0, 0.0),) * steps, one=4.0 / steps, least=3.0 / steps, full=3.0 / steps)
        for steps in (4, 16)
    ]
    planner = planner_of(latency_of(tail=1.2), by_steps, error=0.02)
    path = planner.save(tmp_path / "plan.json")
    finished = run("plan", "--measurements", path, "--plot", tmp_path / "plans.png")
    frontier = planner.frontier()
    assert "1 at a time: 2 ms + 0.5 ms for each step + 1 ms for each loop" in finished.output
    first, last = (f"{each.milliseconds:.3g}" for each in (frontier[0], frontier[-1]))
    lines = [line.split() for line in finished.output.splitlines()]
    rows = [line for line in lines if line and line[0].replace(".", "").isdigit()]
    times = [line[0] for line in rows[1:]]
    assert times[0] == first and times[-1] == last and len(times) == 12
    assert (tmp_path / "plans.png").stat().st_size > 1000
    asked = run("plan", "--measurements", path, "--milliseconds", 12, 80)
    assert "1×2 2×2  0.938 ± 0.016" in asked.output and "3×16  0.188 ± 0.020" in asked.output
    for extra, said in (
        (("--milliseconds", 1), "is below the fastest plan, 4 steps of 1×4 loops"),
        (("--batch", 8), "`batch=8` was not measured"),
        (("--steps", 8), "was measured for the steps [4, 16] at guidance 1"),
        (("--guidance", 2), "was measured for the steps [4, 16] at guidance 1"),
        (("--model", "digits-maskgit"), "was measured under other conditions: its model is"),
    ):
        refused = run("plan", "--measurements", path, *extra, check=False)
        assert refused.code == 2 and said in refused.errors and refused.errors.count("\n") == 1
