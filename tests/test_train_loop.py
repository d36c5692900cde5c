import os
import signal
import threading
import time
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from elt_zoo import ILSDLoss
from elt_zoo._platform import traced_for
from elt_zoo.corruption import AbstractCorruption, Corrupted, DiffusionCorruption, MaskedTarget, ShiftedCosineSchedule
from elt_zoo.data import ArraySource, Batch, training_batches
from elt_zoo.diagnostics import exit_losses
from elt_zoo.families import DiTConfig, MaskGITConfig
from elt_zoo.objectives import DeepSupervisionLoss, MaskedCrossEntropy, RandomDepthLoss, SigmoidWeightedMSE, VanillaLoss
from elt_zoo.sharding import data_mesh, replicate, shard_batch
from elt_zoo.storage import named_arrays
from elt_zoo.training import (
    Checkpoints,
    OptimizerConfig,
    Precision,
    TrainingDiverged,
    TrainingInterrupted,
    TrainState,
    _accumulation,
    _step,
    batch_loss,
    fit,
    jit_step,
    make_optimizer,
    make_train_step,
    stop_on_signals,
)

CONFIG = DiTConfig(dim=8, num_layers=1, max_loops=3, num_heads=2, num_classes=4, shape=(4, 4, 1))
LOSS = SigmoidWeightedMSE(CONFIG.prediction)
CORRUPTION = DiffusionCorruption(ShiftedCosineSchedule(), prediction=CONFIG.prediction, null_label=4)
OPTIMIZER = make_optimizer(OptimizerConfig.digits(total_steps=20))
OBJECTIVE = ILSDLoss(LOSS, LOSS.distillation, max_loops=3)
RUN = {"model": CONFIG.to_dict(), "steps": 20}


@eqx.filter_jit
def build():
    return CONFIG.build(key=jax.random.key(0))


def start():
    return TrainState.create(build(), OPTIMIZER, key=jax.random.key(1))


def batches():
    rng = np.random.default_rng(0)
    source = ArraySource(rng.uniform(-1, 1, (40, 4, 4, 1)).astype(np.float32), np.arange(40, dtype=np.int32) % 4)
    return training_batches(source, batch_size=8, seed=3)


@pytest.fixture(scope="module")
def plain_step():
    return make_train_step(OPTIMIZER, OBJECTIVE, CORRUPTION, total_steps=20, ema_decay=0.9)


@pytest.fixture(scope="module")
def step(plain_step):
    return jit_step(plain_step)


@pytest.fixture(scope="module")
def uninterrupted(step):
    return fit(start(), step, batches(), total_steps=10, log_every=5).state


def arrays(state):
    leaves = jax.tree.leaves(eqx.filter(state, eqx.is_array))
    return [jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x for x in leaves]


def assert_bitwise_equal(a, b):
    for x, y in zip(arrays(a), arrays(b), strict=True):
        np.testing.assert_array_equal(x, y)


def test_training_lowers_the_loss_and_reports(step):
    reports = []
    result = fit(start(), step, batches(), total_steps=20, log_every=10, on_report=reports.append)
    assert result.finished and int(result.state.step) == 20 and int(result.state.skipped) == 0
    assert [report.step for report in reports] == [1, 10, 20]
    assert {"loss", "teacher", "student", "distillation", "lambda", "gradient_norm"} <= set(reports[1].metrics)
    assert reports[2].metrics["lambda"] == pytest.approx(1 - 19 / 20)
    assert reports[2].metrics["loss"] < reports[1].metrics["loss"]
    assert reports[0].examples_per_second == 0.0 < reports[1].examples_per_second


def test_a_compiled_step_is_traced_once(plain_step):
    traced = []

    def counted(state, batch):
        traced.append(None)
        return plain_step(state, batch)

    fit(start(), jit_step(counted), batches(), total_steps=3)
    assert len(traced) == 1


def test_a_killed_and_resumed_run_is_bitwise_the_uninterrupted_one(tmp_path, step, uninterrupted):
    checkpoints = Checkpoints(tmp_path / "run", RUN)
    fit(start(), step, batches(), total_steps=5, checkpoints=checkpoints)
    checkpoints.close()
    # Everything anew, as another process would.
    checkpoints = Checkpoints(tmp_path / "run", RUN)
    state, position = checkpoints.restore(eqx.filter_eval_shape(start))
    stream = batches()
    stream.set_state(position)
    resumed = fit(state, step, stream, total_steps=10, checkpoints=checkpoints).state
    assert checkpoints.latest_step() == 10
    checkpoints.close()
    assert_bitwise_equal(resumed, uninterrupted)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_returns(tmp_path, step, number):
    checkpoints = Checkpoints(tmp_path / "run", RUN)
    before = signal.getsignal(number)

    def on_report(report):
        if report.step == 2:
            os.kill(os.getpid(), number)

    result = fit(start(), step, batches(), total_steps=10, log_every=1, on_report=on_report, checkpoints=checkpoints)
    assert not result.finished and int(result.state.step) == 2 == checkpoints.latest_step()
    assert signal.getsignal(number) is before
    checkpoints.close()


def test_a_second_interrupt_says_what_is_saved(tmp_path, step, interruptible):
    def on_report(report):
        if report.step == 3:
            # Two signals of one number become one if the first is still on its way.
            os.kill(os.getpid(), signal.SIGINT)
            while signal.getsignal(signal.SIGINT) is not before:
                time.sleep(0.001)
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(60)  # it does not come to that

    def run(checkpoints):
        fit(start(), step, batches(), total_steps=10, log_every=1, on_report=on_report, checkpoints=checkpoints)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(TrainingInterrupted, match=r"^Interrupted at step 3 of 10\. Nothing was saved\.$"):
        run(None)
    with (
        Checkpoints(tmp_path / "run", RUN, every=2) as checkpoints,
        pytest.raises(KeyboardInterrupt, match=r"step 3 of 10\. The checkpoint of step 2 is saved in .*run; the same"),
    ):
        run(checkpoints)
    assert signal.getsignal(signal.SIGINT) is before


def test_counts_and_batches_must_suffice(step):
    cases: list[dict[str, Any]] = [{"total_steps": 0}, {"total_steps": -5}, {"total_steps": 5, "log_every": 0}]
    for options in cases:
        with pytest.raises(ValueError, match="both must be at least 1"):
            fit(start(), step, batches(), **options)
    with pytest.raises(ValueError, match="got no more batches after step 1"):
        fit(start(), step, iter([next(batches())]), total_steps=2)


def test_a_stop_event_ends_runs_in_other_threads(step):
    stop = threading.Event()
    stop.set()
    assert not fit(start(), step, batches(), total_steps=10, stop=stop).finished
    seen = []

    def elsewhere():
        with stop_on_signals() as event:
            seen.append(event.is_set())

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert seen == [False]


def test_updates_that_are_not_finite_are_not_applied_and_stop_the_run(tmp_path, step):
    checkpoints = Checkpoints(tmp_path / "run", RUN)
    good = fit(start(), step, batches(), total_steps=2, checkpoints=checkpoints).state
    expected = [np.asarray(leaf) for leaf in jax.tree.leaves(eqx.filter((good.model, good.ema), eqx.is_array))]

    def poisoned():
        for batch in batches():
            yield Batch(batch.examples * np.nan, batch.labels)

    with pytest.raises(TrainingDiverged, match="last good checkpoint is step 2"):
        fit(good, step, poisoned(), total_steps=4, log_every=4, checkpoints=checkpoints)
    assert checkpoints.latest_step() == 2
    state, _ = checkpoints.restore(eqx.filter_eval_shape(start))
    after, _ = step(state, next(poisoned()))
    assert int(after.skipped) == 1 and int(after.step) == 3
    for a, b in zip(jax.tree.leaves(eqx.filter((after.model, after.ema), eqx.is_array)), expected, strict=True):
        np.testing.assert_array_equal(a, b)
    checkpoints.close()


def test_the_first_step_is_the_gradient_of_the_objective(plain_step):
    state, batch = start(), next(batches())
    corrupt_key, loops_key, _ = jax.random.split(jax.random.fold_in(state.key, 0), 3)
    corrupted = CORRUPTION(jnp.asarray(batch.examples), jnp.asarray(batch.labels), key=corrupt_key)
    loops = OBJECTIVE.sample_loops(loops_key, 8)

    @eqx.filter_jit
    def loss(model):
        def one(inputs, target):
            student, teacher = model(*inputs, loops=int(loops)), model(*inputs, loops=3)
            return OBJECTIVE(student, teacher, target=target, progress=0.0)[0]

        return jnp.mean(jax.vmap(one)(corrupted.inputs, corrupted.target))

    expected = float(loss(state.model))
    _, metrics = eqx.filter_jit(plain_step)(state, batch)
    assert float(metrics["loss"]) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    "objective",
    [
        VanillaLoss(LOSS, max_loops=3),
        DeepSupervisionLoss(LOSS, max_loops=3),
        RandomDepthLoss(LOSS, max_loops=3, per_example=True),
        ILSDLoss(LOSS, LOSS.distillation, max_loops=3, per_example=True),
    ],
    ids=lambda objective: type(objective).__name__,
)
def test_every_objective_gets_the_exits_it_asks_for(objective):
    model = jax.tree.map(lambda leaf: leaf + 0.05 if eqx.is_inexact_array(leaf) else leaf, start().model)
    batch = next(batches())
    corrupted = CORRUPTION(jnp.asarray(batch.examples), jnp.asarray(batch.labels), key=jax.random.key(5))
    loops = objective.sample_loops(jax.random.key(6), 8)
    evaluate = eqx.filter_jit(
        lambda model: batch_loss(model, corrupted, objective, student_loops=loops, progress=jnp.asarray(0.5))
    )
    loss, terms = evaluate(model)

    @eqx.filter_jit
    def losses_of(model):
        def one(inputs, target):
            return jax.vmap(lambda prediction: LOSS(prediction, target))(model.trajectory(*inputs, loops=3))

        return jax.vmap(one)(corrupted.inputs, corrupted.target)

    per_exit = np.asarray(losses_of(model))
    drawn = per_exit[np.arange(8), np.broadcast_to(np.asarray(loops), (8,)) - 1].mean()
    for name in {"student", "sampled"} & terms.keys():
        assert float(terms[name]) == pytest.approx(drawn, rel=1e-4)
    for name in {"teacher", "final"} & terms.keys():
        assert float(terms[name]) == pytest.approx(per_exit[:, 2].mean(), rel=1e-4)
    if "exit_1" in terms:
        assert float(loss) == pytest.approx((0.5 * per_exit[:, :2].sum(1) + per_exit[:, 2]).mean(), rel=1e-4)


def test_exit_losses_are_deterministic_and_match_the_objective():
    model = jax.tree.map(lambda leaf: leaf + 0.05 if eqx.is_inexact_array(leaf) else leaf, start().model)
    batch = next(batches())
    examples, labels = jnp.asarray(batch.examples), jnp.asarray(batch.labels)
    losses = exit_losses(model, LOSS, CORRUPTION, examples, labels, loops=3, key=jax.random.key(0))
    again = exit_losses(model, LOSS, CORRUPTION, examples, labels, loops=3, key=jax.random.key(0))
    np.testing.assert_array_equal(losses, again)
    corrupted = CORRUPTION(examples, labels, key=jax.random.key(0))
    last = batch_loss(
        model, corrupted, VanillaLoss(LOSS, max_loops=3), student_loops=jnp.asarray(3), progress=jnp.asarray(0.0)
    )
    assert float(losses[2]) == pytest.approx(float(last[0]), rel=1e-5)


class UnequalMasks(AbstractCorruption):
    """Masks 1 token of examples 0, 4, 8, …, 4 of examples 1, 5, 9, …, then 9, then 16."""

    def __call__(self, examples, labels, *, key):
        count = jnp.square(jnp.arange(len(labels)) % 4 + 1)
        mask = jnp.reshape(jnp.arange(16)[None] < count[:, None], examples.shape)
        return Corrupted(
            (jnp.where(mask, 5, examples), labels), MaskedTarget(examples, mask), count.astype(jnp.float32)
        )


@pytest.mark.slow
@pytest.mark.parametrize("per_example", [False, True])
def test_a_step_in_parts_is_the_step_of_the_whole_batch(per_example):
    config = MaskGITConfig(
        dim=8, num_layers=1, max_loops=3, num_heads=2, num_classes=4, grid=(4, 4), codebook_size=5, dropout=0.1
    )
    loss = MaskedCrossEntropy(0.1)
    objective = ILSDLoss(loss, loss.distillation, max_loops=3, per_example=per_example)
    rng, sgd = np.random.default_rng(0), optax.sgd(1.0)
    batch = Batch(rng.integers(0, 5, (32, 4, 4)).astype(np.int32), (np.arange(32) % 4).astype(np.int32))
    state = TrainState.create(eqx.filter_jit(config.build)(key=jax.random.key(0)), sgd, key=jax.random.key(1))
    whole, parts = [
        eqx.filter_jit(
            make_train_step(
                sgd, objective, UnequalMasks(), total_steps=9, ema_decay=0.9, dropout=True, accumulation=accumulation
            )
        )(state, batch)
        for accumulation in (1, 4)
    ]
    assert whole[1].keys() == parts[1].keys()
    for name in whole[1]:
        assert float(parts[1][name]) == pytest.approx(float(whole[1][name]), rel=1e-5), name
    assert int(parts[0].step) == 1
    for a, b in zip(arrays((whole[0].model, whole[0].ema)), arrays((parts[0].model, parts[0].ema)), strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-5, atol=1e-5)


def parts_of(monkeypatch, *shapes, cores=1, devices=1):
    """Into how many parts the batch `x` is split for the loss (model · x)², both of shapes that are given."""
    monkeypatch.setattr(_accumulation, "usable_cores", lambda: cores)
    chosen = []

    def loss(model, x):
        return jnp.sum(jnp.square(x @ model)), {}

    def trace(model, x):
        chosen.append(_accumulation.fastest_parts(loss, model, (x,), size=len(x)))

    with traced_for(jax.devices("cpu")[:devices]):
        jax.eval_shape(trace, *(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes))
    return chosen[0]


@pytest.mark.parametrize(
    ("size", "cores", "parts"),
    [
        (8, 1, 1),
        (64, 1, 4),
        (64, 2, 2),
        (64, 16, 1),
        (62, 1, 2),  # 31 parts would be far too small
        (61, 1, 1),  # which nothing divides
        (3, 1, 1),
    ],
)
def test_a_cpu_takes_large_batches_in_parts_that_suit_its_caches(monkeypatch, size, cores, parts):
    # The backward pass reads x and its product with the model: half a MiB of an example.
    shapes = (2, 2), (size, 2**15, 2)
    assert parts_of(monkeypatch, *shapes, cores=cores) == parts
    assert parts_of(monkeypatch, *shapes, cores=cores, devices=2) == 1


def test_parts_are_never_single_examples(monkeypatch):
    assert parts_of(monkeypatch, (2, 2), (8, 2**20, 2)) == 4


def test_parts_are_larger_where_each_reads_many_parameters(monkeypatch):
    few, many = (parts_of(monkeypatch, (width, width), (64, 2**16 // width, width)) for width in (2, 2**11))
    assert few == 4
    assert many == 1


@pytest.mark.parametrize(("given", "parts"), [(None, 4), (2, 2)])
def test_a_step_chooses_its_parts_unless_told(monkeypatch, given, parts):
    taken = []

    def spy(*arguments, parts, size):
        taken.append(parts)
        return _accumulation.value_and_gradient(*arguments, parts=parts, size=size)

    monkeypatch.setattr(_step, "fastest_parts", lambda *_, size: size // 2)
    monkeypatch.setattr(_step, "value_and_gradient", spy)
    step = make_train_step(OPTIMIZER, OBJECTIVE, CORRUPTION, total_steps=20, accumulation=given)
    eqx.filter_eval_shape(step, start(), next(batches()))
    assert taken == [parts]


def test_accumulation_refuses_what_it_cannot_split_or_count():
    thirds = make_train_step(OPTIMIZER, OBJECTIVE, CORRUPTION, total_steps=20, accumulation=3)
    with pytest.raises(ValueError, match="cannot split a batch of 8 into 3 equal parts"):
        eqx.filter_eval_shape(thirds, start(), next(batches()))
    with pytest.raises(ValueError, match=r"accumulation=0, ema_decay=0\.9"):
        make_train_step(OPTIMIZER, OBJECTIVE, CORRUPTION, total_steps=20, accumulation=0, ema_decay=0.9)
    by_itself = optax.chain(optax.MultiSteps(optax.sgd(0.1), 2).gradient_transformation())
    state = TrainState.create(build(), by_itself, key=jax.random.key(1))
    with pytest.raises(ValueError, match=r"accumulates gradients \(`optax\.MultiSteps`\)"):
        eqx.filter_eval_shape(make_train_step(by_itself, OBJECTIVE, CORRUPTION, total_steps=20), state, next(batches()))


class SpyHead(eqx.Module):
    """A head that notes the dtypes of what passes through it."""

    head: Any
    seen: list = eqx.field(static=True)

    def embed(self, x_t, time, label, *, key=None):
        self.seen.append((x_t.dtype, time.dtype))
        return self.head.embed(x_t, time, label, key=key)

    def __call__(self, *arguments, **options):
        output = self.head(*arguments, **options)
        self.seen.append(output.dtype)
        return output


def test_bfloat16_computes_in_bfloat16_and_keeps_times_and_parameters_in_float32():
    objective, precision = VanillaLoss(LOSS, max_loops=2), Precision(jnp.bfloat16)
    model, seen = build(), []
    model = eqx.tree_at(lambda model: model.head, model, SpyHead(model.head, seen))
    state = TrainState.create(model, OPTIMIZER, key=jax.random.key(1))
    step = eqx.filter_jit(make_train_step(OPTIMIZER, objective, CORRUPTION, total_steps=20, precision=precision))
    # JAX itself promotes when it lowers a bfloat16 product that accumulates in float32.
    with jax.numpy_dtype_promotion("standard"):
        state, metrics = step(state, next(batches()))
    assert seen == [(jnp.bfloat16, jnp.float32), jnp.bfloat16] and metrics["loss"].dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(eqx.filter(state.model, eqx.is_array))} == {jnp.dtype("float32")}
    with pytest.raises(ValueError, match="must be float32 or bfloat16"):
        Precision(jnp.float16)


@pytest.mark.slow
def test_gradients_in_bfloat16_are_those_in_float32_however_many_tokens_share_a_row():
    config = MaskGITConfig(dim=16, num_layers=1, max_loops=2, num_heads=2, num_classes=3, grid=(4, 4), codebook_size=8)
    model, objective = config.build(key=jax.random.key(0)), VanillaLoss(config.loss(), max_loops=2)
    ids, labels = jax.random.randint(jax.random.key(1), (256, 4, 4), 0, 8), jnp.arange(256) % 3
    corrupted = config.corruption(label_drop=0.0)(ids, labels, key=jax.random.key(2))

    def gradient(precision):
        def loss_of(model):
            inputs = precision.cast_inputs(corrupted.inputs)
            weight = jnp.sum(corrupted.weight)
            options = {"student_loops": jnp.asarray(1), "progress": jnp.asarray(0.0), "keys": None}
            return batch_loss(
                precision.cast(model), corrupted._replace(inputs=inputs), objective, total_weight=weight, **options
            )[0]

        with jax.numpy_dtype_promotion("standard"):
            return eqx.filter_jit(eqx.filter_grad(loss_of))(model)

    exact, rounded = (named_arrays(gradient(Precision(dtype))) for dtype in (jnp.float32, jnp.bfloat16))
    for name, right in exact.items():
        assert np.linalg.norm(rounded[name] - right) <= 0.1 * np.linalg.norm(right), name


def test_the_time_that_a_bfloat16_network_is_told_is_the_targets():
    examples, labels = jnp.zeros((256, 4, 4, 1)), jnp.zeros(256, jnp.int32)
    corrupted = eqx.filter_jit(CORRUPTION)(examples, labels, key=jax.random.key(0))
    x_t, time, _ = Precision(jnp.bfloat16).cast_inputs(corrupted.inputs)
    assert x_t.dtype == jnp.bfloat16 and len(np.unique(time)) == 256
    np.testing.assert_allclose(jax.vmap(CORRUPTION.schedule.log_snr)(time), corrupted.target.log_snr, rtol=1e-5)


def test_data_parallel_steps_equal_one_device(plain_step):
    if len(jax.devices()) < 4:
        pytest.skip("needs 4 devices, such as those that conftest.py forces on a CPU")
    batch, run = next(batches()), eqx.filter_jit(plain_step)
    alone, _ = run(start(), batch)
    mesh = data_mesh(jax.devices()[:4])
    together, _ = run(replicate(start(), mesh), shard_batch(batch, mesh))
    for a, b in zip(arrays(alone.ema), arrays(together.ema), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    with pytest.raises(ValueError, match="A batch of 8 cannot be split over 3 devices"):
        shard_batch(batch, data_mesh(jax.devices()[:3]))
