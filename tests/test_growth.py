"""Loops that grow in training: how many each step runs, that nothing else changes, and that runs resume bit for bit."""

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from command_line import rows_of

from elt_zoo import ILSDLoss
from elt_zoo.corruption import AbstractCorruption, Corrupted, DiffusionCorruption, ShiftedCosineSchedule
from elt_zoo.data import ArraySource, training_batches
from elt_zoo.evaluation import report_run
from elt_zoo.families import DiTConfig, preset
from elt_zoo.objectives import DeepSupervisionLoss, RandomDepthLoss, SigmoidWeightedMSE, VanillaLoss
from elt_zoo.recipes import Run, TrainingOptions, digits_task, time_training, train
from elt_zoo.training import (
    Checkpoints,
    LoopGrowth,
    OptimizerConfig,
    Rewarming,
    TrainState,
    fit,
    jit_step,
    make_optimizer,
    make_train_step,
)

CONFIG = DiTConfig(dim=8, num_layers=1, max_loops=3, num_heads=2, num_classes=4, shape=(4, 4, 1))
LOSS = SigmoidWeightedMSE(CONFIG.prediction)
CORRUPTION = DiffusionCorruption(ShiftedCosineSchedule(), prediction=CONFIG.prediction, null_label=4)
STEPS = 10
GROWTH = LoopGrowth(start_loops=2, until=0.5)
PLAIN = OptimizerConfig.digits(total_steps=STEPS)
RUN = {"model": CONFIG.to_dict(), "steps": STEPS}


def objective(loops: int) -> ILSDLoss:
    return ILSDLoss(LOSS, LOSS.distillation, max_loops=loops)


def compiled(config: OptimizerConfig, loops: int) -> Any:
    return jit_step(make_train_step(make_optimizer(config), objective(loops), CORRUPTION, total_steps=STEPS))


@pytest.fixture(scope="module")
def steps():
    """The compiled step of each stage."""
    optimizer = make_optimizer(GROWTH.rewarmed(PLAIN))
    stages = GROWTH.stages(objective(3), total_steps=STEPS)
    return {
        end: jit_step(make_train_step(optimizer, stage, CORRUPTION, total_steps=STEPS)) for end, stage in stages.items()
    }


@eqx.filter_jit
def start():
    optimizer = make_optimizer(GROWTH.rewarmed(PLAIN))
    return TrainState.create(CONFIG.build(key=jax.random.key(0)), optimizer, key=jax.random.key(1))


def batches():
    rng = np.random.default_rng(0)
    source = ArraySource(rng.uniform(-1, 1, (40, 4, 4, 1)).astype(np.float32), np.arange(40, dtype=np.int32) % 4)
    return training_batches(source, batch_size=8, seed=3)


def grown(state, steps, stream, *, until: int = STEPS, **given):
    for end, step in steps.items():
        state = fit(state, step, stream, total_steps=min(end, until), **given).state
    return state


def assert_bitwise_equal(a, b):
    for x, y in zip(*(jax.tree.leaves(eqx.filter(each, eqx.is_array)) for each in (a, b)), strict=True):
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        np.testing.assert_array_equal(x, y)


class Counted(eqx.Module):
    """Predicts how many loops it was asked for, and notes them while it is traced."""

    weight: jax.Array
    traced: list[int] = eqx.field(static=True)

    def __call__(self, *inputs, loops, key=None):
        self.traced.append(loops)
        return self.weight * 0.0 + loops

    def at_exit(self, *inputs, loops, max_loops, key=None):
        raise AssertionError("plain looping has one exit")

    student_and_teacher = trajectory = at_exit


class Unchanged(AbstractCorruption):
    def __call__(self, examples, labels, *, key):
        return Corrupted((examples,), examples, jnp.ones(len(labels)))


def test_each_stage_runs_its_loops_in_a_program_compiled_when_it_is_needed():
    plain = OptimizerConfig(learning_rate=1.0, total_steps=8)
    growth, optimizer = LoopGrowth(start_loops=2, until=0.4), make_optimizer(plain)
    stages = growth.stages(VanillaLoss(lambda prediction, _: prediction, max_loops=4), total_steps=8)
    state = TrainState.create(Counted(jnp.ones(()), []), optimizer, key=jax.random.key(0))
    seen, stream, traced = [], batches(), state.model.traced
    for end, stage in stages.items():
        step = jit_step(make_train_step(optimizer, stage, Unchanged(), total_steps=8))
        assert set(traced) <= {2}
        state = fit(state, step, stream, total_steps=end, log_every=1, on_report=seen.append).state
    assert [(report.step, report.metrics["loss"]) for report in seen] == [
        *((step, 2.0) for step in (1, 2, 3)),
        *((step, 4.0) for step in (4, 5, 6, 7, 8)),
    ]


def test_before_the_change_a_run_is_that_of_fewer_loops_bit_for_bit(steps):
    early = fit(start(), compiled(PLAIN, 2), batches(), total_steps=5).state
    assert_bitwise_equal(grown(start(), steps, batches(), until=5), early)
    late = fit(start(), compiled(PLAIN, 3), batches(), total_steps=5).state
    with pytest.raises(AssertionError):
        assert_bitwise_equal(early.model, late.model)


def test_after_the_change_the_rate_warms_up_again_and_the_rest_goes_on(steps):
    reports, stream = [], batches()
    state = grown(start(), steps, stream, until=5)
    # The one step of the second warm-up has a tenth of the rate: the update of all loops is a tenth as large.
    position = stream.get_state()
    plain = fit(state, compiled(PLAIN, 3), stream, total_steps=6).state
    stream.set_state(position)
    again = fit(state, steps[STEPS], stream, total_steps=6).state
    for before, full, tenth in zip(*(jax.tree.leaves(each.model) for each in (state, plain, again)), strict=True):
        np.testing.assert_allclose(tenth - before, 0.1 * (full - before), rtol=2e-2, atol=1e-6)
    grown(again, steps, stream, log_every=1, on_report=reports.append)
    assert [report.metrics["lambda"] for report in reports] == pytest.approx([0.4, 0.3, 0.2, 0.1])


@pytest.mark.parametrize("stop", [4, 5, 6])
def test_a_run_that_stops_around_the_change_resumes_bit_for_bit(tmp_path, steps, stop):
    whole = grown(start(), steps, batches())
    with Checkpoints(tmp_path / "run", RUN) as checkpoints:
        grown(start(), steps, batches(), until=stop, checkpoints=checkpoints)
    with Checkpoints(tmp_path / "run", RUN) as checkpoints:
        state, position = checkpoints.restore(eqx.filter_eval_shape(start))
        assert int(state.step) == stop
        stream = batches()
        stream.set_state(position)
        resumed = grown(state, steps, stream, checkpoints=checkpoints)
    assert int(resumed.step) == STEPS
    assert_bitwise_equal(resumed, whole)


@pytest.mark.parametrize(
    "full",
    [
        VanillaLoss(LOSS, max_loops=4),
        DeepSupervisionLoss(LOSS, max_loops=4),
        RandomDepthLoss(LOSS, max_loops=4, per_example=True),
        ILSDLoss(LOSS, LOSS.distillation, max_loops=4, per_example=True, student_weight=0.25),
    ],
    ids=lambda full: type(full).__name__,
)
def test_every_objective_starts_as_itself_with_fewer_loops(full):
    stages = LoopGrowth(start_loops=2, until=0.25).stages(full, total_steps=100)
    assert list(stages) == [25, 100] and stages[100] is full
    first = stages[25]
    assert type(first) is type(full) and first.max_loops == 2
    assert eqx.tree_equal(dataclasses.replace(first, max_loops=4), full)


def test_the_change_leaves_steps_to_both_stages():
    changes = [
        LoopGrowth(start_loops=1, until=until).change(steps) for until, steps in ((0.01, 9), (0.99, 9), (0.5, 2))
    ]
    assert changes == [1, 8, 1]
    assert LoopGrowth(start_loops=1).rewarmed(PLAIN).rewarming == Rewarming(after=5, steps=1, start=0.1)
    long = dataclasses.replace(PLAIN, total_steps=1000)
    warm = LoopGrowth(start_loops=1, until=0.3, rewarming=0.05, rewarming_start=0.2).rewarmed(long)
    assert warm == dataclasses.replace(long, rewarming=Rewarming(after=300, steps=50, start=0.2))


def test_growth_that_cannot_be_is_refused():
    with pytest.raises(
        ValueError, match=r"got start_loops=0, until=1\.0, rewarming=-1, rewarming_start=nan: it starts"
    ):
        LoopGrowth(start_loops=0, until=1.0, rewarming=-1, rewarming_start=float("nan"))
    for loops in (3, 4):
        with pytest.raises(ValueError, match=rf"start_loops={loops}\)` must start with fewer loops than the 3 that"):
            LoopGrowth(start_loops=loops).stages(objective(3), total_steps=STEPS)
    with pytest.raises(ValueError, match=r"max_loops=1\)` leaves no exit for the student"):
        LoopGrowth(start_loops=1).stages(objective(3), total_steps=STEPS)
    with pytest.raises(ValueError, match=r"a run of 1 step\(s\) has no room for both"):
        GROWTH.stages(objective(3), total_steps=1)


def small_run(folder, **options):
    config = dataclasses.replace(preset("digits-dit"), dim=16, num_layers=1, max_loops=3)
    shared: dict[str, Any] = {"steps": 8, "batch_size": 8, "log_every": 1, "compare": False}
    return Run.of(TrainingOptions(out=folder, **(shared | options)), digits_task(config))


def test_a_run_without_growth_is_the_run_from_before_there_was_any(tmp_path):
    plain, growing = small_run(tmp_path), small_run(tmp_path, grow_from=2)
    assert not any("grow" in name for name in plain.config("ilsd"))
    assert plain.optimizer == plain.recipe.optimizer(plain.task.config)
    assert [(end, stage.max_loops) for end, stage in plain.stages("ilsd").items()] == [(8, 3)]
    expected = {"start_loops": 2, "until": 0.5, "rewarming": 0.02, "rewarming_start": 0.1}
    assert growing.config("ilsd") == plain.config("ilsd") | {"growth": expected}
    assert [(end, stage.max_loops) for end, stage in growing.stages("ilsd").items()] == [(4, 2), (8, 3)]
    assert growing.optimizer.rewarming == Rewarming(after=4, steps=1)


class Killed(Exception):
    pass


@pytest.mark.slow
def test_a_growing_run_that_is_killed_around_the_change_ends_as_one_that_was_not(tmp_path):
    whole = train(small_run(tmp_path / "whole", grow_from=2))["ilsd"]
    parts, left = small_run(tmp_path / "parts", grow_from=2, evaluate_every=1), [3, 4, 5]

    def kill(name, step, model):
        if step in left:
            left.remove(step)
            raise Killed

    for _ in range(3):
        with pytest.raises(Killed):
            train(parts, on_evaluate=kill)
    resumed = train(parts, on_evaluate=kill)["ilsd"]
    assert whole.finished and resumed.finished and eqx.tree_equal(resumed.model, whole.model)
    with pytest.raises(ValueError, match=r"growth\.start_loops: saved 2, given '\(missing\)'"):
        train(small_run(tmp_path / "parts"))
    rows = rows_of(tmp_path / "whole" / "metrics-ilsd.csv")
    assert [int(row["step"]) for row in rows] == list(range(1, 9))
    cost = [float(row["teraflops"]) / float(row["examples_per_second"]) for row in rows[1:3] + rows[5:]]
    assert cost[0] == pytest.approx(cost[1]) and cost[2] == pytest.approx(cost[3])
    assert 0.5 < cost[0] / cost[2] < 0.9


@pytest.mark.slow
def test_exits_that_come_later_have_columns_and_curves_of_their_own(tmp_path):
    growing = small_run(tmp_path, objective="deep_supervision", grow_from=2, grow_until=0.25)
    report_run(growing, train(growing))
    rows = rows_of(tmp_path / "metrics-deep_supervision.csv")
    assert [bool(row["exit_3"]) for row in rows] == [False] * 2 + [True] * 6
    assert all(float(row["exit_2"]) > 0.0 for row in rows) and (tmp_path / "losses.png").stat().st_size > 100


@pytest.mark.slow
def test_the_time_of_a_growing_run_counts_both_stages(tmp_path):
    (timing,) = time_training(small_run(tmp_path, grow_from=2))
    assert timing.steps == 8 and timing.compiling > timing.seconds_per_step > 0.0 and not list(tmp_path.iterdir())
