import jax.numpy as jnp
import numpy as np
import pytest

from elt_zoo.sampling import (
    ConstantGuidance,
    IntervalGuidance,
    LoopBudget,
    average_loops,
    constant_budget,
    linear_budget,
    table_budget,
    total_loops,
)
from elt_zoo.sampling._budgets import resolve_loops

GUIDANCE = ConstantGuidance(2.0)


def test_ramps():
    assert constant_budget(3, 4).tolist() == [3, 3, 3, 3]
    assert linear_budget(1, 4, 4).tolist() == [1, 2, 3, 4]
    assert linear_budget(4, 1, 7).tolist() == [4, 4, 3, 3, 2, 2, 1]
    assert linear_budget(2, 5, 1).tolist() == [2]
    assert table_budget([1, 1, 5]).tolist() == [1, 1, 5]
    assert table_budget([1]).dtype == jnp.int32
    assert table_budget([2, 0, 1, 0]).tolist() == [2, 0, 1, 0]
    assert table_budget(np.asarray([2, 3], np.uint8)).tolist() == [2, 3]
    assert linear_budget(np.int64(1), np.int32(3), np.int64(3)).tolist() == [1, 2, 3]


def test_loops_are_counted_over_steps_and_branches():
    assert total_loops(3, 8) == 24
    assert total_loops(3, 8, guidance=GUIDANCE) == 48
    assert total_loops(linear_budget(1, 3, 8), 8) == 16
    assert total_loops(LoopBudget(4, 1), 8, guidance=GUIDANCE) == 40
    assert average_loops(linear_budget(1, 3, 8), 8) == 2.0
    assert average_loops(LoopBudget(4, 1), 8, guidance=GUIDANCE) == 2.5
    # Two of eight steps run the unconditional branch.
    interval = IntervalGuidance(GUIDANCE, start=0.25, stop=0.5)
    assert total_loops(LoopBudget(4, 1), 8, guidance=interval) == 34
    assert average_loops(3, 8, guidance=interval) == 3.0


def test_every_form_is_brought_to_an_int_or_one_count_per_step():
    for form in (3, np.int64(3), np.uint8(3)):
        counts = resolve_loops(form, steps=4, guidance=GUIDANCE)
        assert counts == (3, None) and type(counts.conditional) is int
    arrays = (
        jnp.asarray(3),
        np.asarray(3),
        np.full(4, 3, np.int64),
        np.full(4, 3, np.uint32),
        jnp.full(4, 3, jnp.uint8),
    )
    for form in arrays:
        conditional, unconditional = resolve_loops(form, steps=4, guidance=GUIDANCE)
        assert unconditional is None and not isinstance(conditional, int)
        assert conditional.dtype == jnp.int32 and conditional.tolist() == [3, 3, 3, 3]


def test_branches_share_a_call_where_they_have_one_count():
    assert resolve_loops(LoopBudget(4, 2), steps=4, guidance=GUIDANCE) == (4, 2)
    assert resolve_loops(LoopBudget(np.int64(400), np.uint16(400)), steps=4, guidance=GUIDANCE) == (400, None)
    # Values of arrays may change from call to call, one compilation serving all.
    count = jnp.asarray(3)
    assert resolve_loops(LoopBudget(count, count), steps=4, guidance=GUIDANCE).unconditional is not None


@pytest.mark.parametrize(
    ("loops", "error", "message"),
    [
        (0, ValueError, "`loops=0` draws nothing"),
        (True, TypeError, "`loops=True` is a bool"),
        (np.True_, TypeError, "`loops=True` is a bool"),
        (jnp.asarray(True), TypeError, "dtype bool: loop counts are integers"),
        (np.ones(4, bool), TypeError, "dtype bool: loop counts are integers"),
        (np.float32(2), TypeError, "dtype float32: loop counts are integers"),
        (np.int64(0), ValueError, "`loops=0` draws nothing"),
        (LoopBudget(2, True), TypeError, "`loops.unconditional=True` is a bool"),
        (jnp.ones(4), TypeError, "dtype float32: loop counts are integers"),
        (jnp.ones(3, jnp.int32), ValueError, r"shape \(3,\), but this sampler takes 4 steps"),
        (jnp.asarray([1, 2, 0, 3]), ValueError, r"no loop at a step, which needs a `predict`.*Got \[1, 2, 0, 3\]"),
        (jnp.asarray([0, 2, 1, 3]), ValueError, r"starts with at least one loop.*Got \[0, 2, 1, 3\]"),
        (LoopBudget(2, -1), ValueError, "`loops.unconditional=-1`"),
        (LoopBudget(jnp.asarray(0), 1), ValueError, "`loops.conditional` starts with at least"),
    ],
)
def test_bad_loops_are_named(loops, error, message):
    with pytest.raises(error, match=message):
        resolve_loops(loops, steps=4, guidance=GUIDANCE)


def test_an_unconditional_budget_needs_guidance():
    with pytest.raises(ValueError, match="this sampler has no guidance"):
        resolve_loops(LoopBudget(2, 1), steps=4, guidance=None)


@pytest.mark.parametrize("counts", [[2, True], np.asarray([1.5, 2.0]), np.ones(2, bool)])
def test_a_table_holds_integers(counts):
    with pytest.raises(TypeError, match="holds what is no integer"):
        table_budget(counts)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: linear_budget(1, 3, 0), "needs at least one step"),
        (lambda: linear_budget(0, 3, 4), "draws nothing with 0 loops"),
        (lambda: table_budget([]), "is empty"),
        (lambda: linear_budget(3, 0, 4), "0 loops: use at least one"),
        (lambda: table_budget([0, 2]), r"starts with at least one loop, and none is negative. Got \[0, 2\]"),
        (lambda: table_budget([2, -1]), r"none is negative. Got \[2, -1\]"),
    ],
)
def test_bad_ramps_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
