import functools
from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from ..corruption import AbstractCorruption
from ..objectives import GroundTruthLoss
from ._exit_losses import loss_sums
from ._exits import AbstractExits
from ._protocols import HasExits
from ._sums import AbstractSums

_Exits = TypeVar("_Exits", bound=AbstractExits)
_Sums = TypeVar("_Sums", bound=AbstractSums)


def held_out_losses(
    model: HasExits,
    loss: GroundTruthLoss,
    corruption: AbstractCorruption,
    examples: PyTree[Array | np.ndarray],
    labels: Int[Array | np.ndarray, " examples"],
    *,
    loops: int,
    copies: int = 1,
    batch_size: int = 64,
    key: PRNGKeyArray,
) -> Float[Array, " loops"]:
    """[`exit_losses`][elt_zoo.diagnostics.exit_losses] of a whole held-out set, batch by batch.

    Every example counts, those of a last smaller batch too, and every batch by the weight of its corruption: the result
    is that of one large batch with the same corruption. A set that fits in one batch gives what `exit_losses` gives for
    this key.

    **Arguments:**

    - `model`, `loss`, `corruption`: as for `exit_losses`.
    - `examples`, `labels`: the clean held-out set, arrays with one leading axis.
    - `loops`: exits to measure.
    - `copies`: how many times to corrupt each example.
    - `batch_size`: examples at a time. Part of the corruption, because times and ratios are spread evenly over a batch.
    - `key`: of the corruption.

    **Returns:** the loss after 1, …, `loops` loops, normalised as in training.

    **Raises:** `ValueError` if there are no examples, or a count is below 1.
    """
    measure = functools.partial(loss_sums, model, loss, corruption, loops=loops)
    sums = over_batches("held_out_losses", measure, examples, labels, copies=copies, batch_size=batch_size, key=key)
    return sums.losses / sums.weight


def held_out_exits(
    compare: Callable[..., _Exits],
    examples: PyTree[Array | np.ndarray],
    labels: Int[Array | np.ndarray, " examples"],
    *,
    copies: int = 1,
    batch_size: int = 64,
    key: PRNGKeyArray,
) -> _Exits:
    """What the exits say about a whole held-out set, batch by batch.

    With the same copies, batch size and key, the examples are corrupted as
    [`held_out_losses`][elt_zoo.diagnostics.held_out_losses] corrupts them.

    **Arguments:**

    - `compare`: compares the exits on one batch, called as `compare(examples, labels, key=key)`: such as
      `functools.partial(config.compare_exits, model, corruption, loops=8)` for any family, or a `functools.partial` of
      [`token_exits`][elt_zoo.diagnostics.token_exits] or [`diffusion_exits`][elt_zoo.diagnostics.diffusion_exits].
    - `examples`, `labels`, `copies`, `batch_size`, `key`: as for `held_out_losses`.

    **Returns:** the sum of the results of `compare`.

    **Raises:** `ValueError` if there are no examples, or a count is below 1.
    """
    return over_batches("held_out_exits", compare, examples, labels, copies=copies, batch_size=batch_size, key=key)


def over_batches(
    caller: str,
    measure: Callable[..., _Sums],
    examples: PyTree[Array | np.ndarray],
    labels: Int[Array | np.ndarray, " examples"],
    *,
    copies: int,
    batch_size: int,
    key: PRNGKeyArray,
) -> _Sums:
    """The sum of a measure over all batches of `copies` times the set."""
    count = len(labels)
    if min(count, copies, batch_size) < 1:
        raise ValueError(
            f"`{caller}(copies={copies}, batch_size={batch_size})` got {count} examples: each must be at least 1."
        )
    result = None
    for start in range(0, copies * count, batch_size):
        rows = np.arange(start, min(start + batch_size, copies * count)) % count
        batch, batch_labels = jax.tree.map(lambda leaf, rows=rows: jnp.asarray(leaf[rows]), (examples, labels))
        sums = measure(batch, batch_labels, key=jax.random.fold_in(key, start) if start else key)
        result = sums if result is None else result + sums
    assert result is not None
    return result
