"""Sampling steps without loops: beside the same steps written out, and what each branch of guidance remembers."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import elt_zoo
from elt_zoo.generator import ExitGuidance
from elt_zoo.models import BatchedPredict, CachedPredict
from elt_zoo.sampling import (
    AbstractGuidance,
    AbstractSampler,
    ConstantGuidance,
    IntervalGuidance,
    LoopBudget,
    table_budget,
)

KEY, LABELS, STEPS = jax.random.key(5), np.arange(3), 5


@pytest.fixture(scope="module", params=["digits-dit", "digits-maskgit"])
def generator(request):
    return elt_zoo.load(request.param)


def sample(generator, **given):
    return generator.sample(LABELS, steps=STEPS, key=KEY, **given)


def written_out(generator, counts):
    """The samples of the first batch, step by step, from the parts of the model."""
    sampler, (head, trunk) = generator.sampler(steps=STEPS), (generator.model.head, generator.model.trunk)
    labels, (key, keys) = jnp.asarray(LABELS), sampler.split_key(jax.random.fold_in(KEY, 0))
    state, table, added = sampler.init(labels, key, None), sampler.table(), None
    for step, loops in enumerate(counts):
        now = jax.tree.map(lambda leaf, step=step: leaf[step], table)
        tokens, conditioning = jax.vmap(head.embed)(*sampler.inputs(state, now), labels)
        if loops:
            added = jax.vmap(lambda *example, loops=loops: trunk(*example, loops=loops))(tokens, conditioning) - tokens
        prediction = jax.vmap(head)(tokens + added, conditioning)
        state = sampler.step(state, prediction, now, keys[step])
    return np.stack([generator.decode(each) for each in sampler.output(state)])


@pytest.mark.parametrize("counts", [[2, 0, 3, 0, 1], [2, 0, 0, 2, 0]])
def test_steps_without_loops_do_what_the_same_steps_written_out_do(generator, counts):
    cached = sample(generator, loops=table_budget(counts))
    np.testing.assert_allclose(cached, written_out(generator, counts), atol=1e-4)
    assert np.abs(cached - sample(generator, loops=2)).max() > 1e-3, "a step without loops is as one with them"


def test_loops_at_every_step_leave_nothing_to_remember(generator):
    sampler, labels = generator.sampler(steps=STEPS), jnp.asarray(LABELS)
    for loops in (2, table_budget([1, 2, 3, 2, 1])):
        with_memory, without = (
            sampler(predict(generator.model), labels, loops=loops, key=KEY)
            for predict in (CachedPredict, BatchedPredict)
        )
        np.testing.assert_allclose(with_memory, without, atol=1e-4)
    asked = [leaf[0] for leaf in sampler.step_inputs(BatchedPredict(generator.model), labels, loops=2, key=KEY)]
    plain = BatchedPredict(generator.model)(*asked, labels, loops=2)
    np.testing.assert_allclose(CachedPredict(generator.model)(*asked, labels, loops=2), plain, atol=1e-4)


def test_steps_without_loops_work_with_a_key_for_each_label_and_with_guidance():
    generator, counts = elt_zoo.load("digits-dit"), table_budget([2, 0, 2, 0, 2])
    keys = jax.random.split(KEY, len(LABELS))
    each = generator.sample(LABELS, steps=STEPS, loops=counts, key=keys)
    alone = generator.sample(LABELS[1:2], steps=STEPS, loops=counts, key=keys[1:2])
    np.testing.assert_allclose(each[1:2], alone, atol=1e-4)
    shared = sample(generator, loops=counts, guidance=1.5)
    np.testing.assert_allclose(shared, sample(generator, loops=LoopBudget(counts, counts), guidance=1.5), atol=1e-4)
    assert np.abs(shared - sample(generator, loops=counts)).max() > 1e-3
    assert np.abs(shared - sample(generator, loops=LoopBudget(counts, 2), guidance=1.5)).max() > 1e-4


class Counting(eqx.Module):
    """Predicts how often a branch has been asked, and for class 10 (none) a hundred more."""

    def __call__(self, *inputs, loops):
        raise AssertionError("a sampler asks what recalls to recall")

    def blank(self, x, labels):
        return jnp.zeros(len(labels))

    def recall(self, memory, x, labels, *, loops):
        memory = memory + 1.0
        return memory + jnp.where(labels == 10, 100.0, 0.0), memory


class Keeping(AbstractSampler):
    """Its samples are the last prediction: under guidance that of the class and 1,000 times that of none."""

    steps: int = eqx.field(static=True)
    guidance: AbstractGuidance | None
    null_label: int | None = eqx.field(static=True, default=10)

    def init(self, labels, key, initial):
        return jnp.zeros(len(labels))

    def inputs(self, state, now):
        return (state,)

    def step(self, state, prediction, now, key):
        return prediction

    def output(self, state):
        return state

    def guide(self, conditional, unconditional, scale):
        return conditional + 1000.0 * unconditional


@pytest.mark.parametrize("loops", [2, LoopBudget(2, 1)], ids=["shared", "apart"])
def test_each_branch_of_guidance_remembers_its_own_steps(loops):
    half = IntervalGuidance(ConstantGuidance(2.0), start=0.5, stop=1.0)
    seen = Keeping(steps=4, guidance=half).trajectory(Counting(), jnp.asarray([3]), loops=loops, key=KEY)
    assert seen[:, 0].tolist() == [1.0, 2.0, 101_003.0, 102_004.0]


def test_a_run_that_may_stop_early_remembers_too(generator):
    sampler, predict = generator.sampler(steps=STEPS), CachedPredict(generator.model)
    budget = table_budget([2, 0, 1, 0, 0])
    whole = sampler(predict, jnp.asarray(LABELS), loops=budget, key=KEY)
    parts, steps = sampler.until(predict, jnp.asarray(LABELS), fits=lambda done: 1, loops=budget, key=KEY)
    assert steps == STEPS
    np.testing.assert_allclose(parts, whole, atol=1e-4)


def test_steps_that_nothing_comes_before_are_refused():
    generator, counts = elt_zoo.load("digits-dit"), table_budget([2, 0, 0, 1, 2])
    late = IntervalGuidance(ConstantGuidance(2.0), start=0.4, stop=1.0)
    with pytest.raises(ValueError, match="`loops` has no loop at step 2, the first with guidance"):
        sample(generator, loops=counts, guidance=late)
    with pytest.raises(ValueError, match=r"`loops.unconditional` has no loop at step 2"):
        sample(generator, loops=LoopBudget(3, counts), guidance=late)
    with pytest.raises(ValueError, match="and `exit_guidance` needs loops at every step"):
        sample(generator, loops=counts, exit_guidance=ExitGuidance(2.0))
    sampler, predict = generator.sampler(steps=STEPS), BatchedPredict(generator.model)
    with pytest.raises(ValueError, match="needs a `predict` that remembers the step before"):
        sampler(predict, jnp.asarray(LABELS), loops=counts, key=KEY)
    traced = jax.jit(lambda counts: sampler(CachedPredict(generator.model), jnp.asarray(LABELS), loops=counts, key=KEY))
    assert np.isnan(traced(jnp.asarray([0, 1, 1, 1, 1]))).all() and np.isfinite(traced(counts)).all()
