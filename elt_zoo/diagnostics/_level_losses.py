import functools
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from ..corruption import AbstractCorruption
from ..objectives import GroundTruthLoss
from ._held_out import over_batches
from ._protocols import HasExits
from ._sums import AbstractSums


class LevelLosses(AbstractSums):
    """The losses of every exit, apart for each range of levels of corruption: how much of an example is hidden.

    Range i of n holds the levels from i / n to (i + 1) / n.

    **Fields:**

    - `num_examples`: corrupted examples in each range.
    - `total_level`: the sum of their levels.
    - `total_loss`: the sum of their losses, for every exit.
    - `total_weight`: the sum of their weights.
    """

    num_examples: Int[Array, " ranges"]
    total_level: Float[Array, " ranges"]
    total_loss: Float[Array, "ranges loops"]
    total_weight: Float[Array, " ranges"]

    @property
    def level(self) -> Float[Array, " ranges"]:
        """The mean level in each range; NaN in one without examples."""
        return self.total_level / self.num_examples.astype(jnp.float32)

    @property
    def loss(self) -> Float[Array, "ranges loops"]:
        """The loss of every exit in each range, normalised as in training; NaN in one without examples."""
        return self.total_loss / self.total_weight[:, None]


def held_out_level_losses(
    model: HasExits,
    loss: GroundTruthLoss,
    corruption: AbstractCorruption,
    level: Callable[..., Float[Array, ""] | None],
    examples: PyTree[Array | np.ndarray],
    labels: Int[Array | np.ndarray, " examples"],
    *,
    loops: int,
    ranges: int = 10,
    copies: int = 1,
    batch_size: int = 64,
    key: PRNGKeyArray,
) -> LevelLosses:
    """[`held_out_losses`][elt_zoo.diagnostics.held_out_losses], apart for each range of levels of corruption.

    **Arguments:**

    - `level`: the level of one example, in [0, 1], from the model's inputs: the `level` of a family's config. Where it
      returns `None`, all examples are in one range, at level 0.
    - `ranges`: of levels, of equal width.
    - the others: as for `held_out_losses`.

    **Returns:** [`LevelLosses`][elt_zoo.diagnostics.LevelLosses].

    **Raises:** `ValueError` if there are no examples, or a count is below 1.
    """
    if ranges < 1:
        raise ValueError(f"`held_out_level_losses(ranges={ranges})` must be at least 1.")
    measure = functools.partial(_level_losses, model, loss, corruption, level, loops=loops, ranges=ranges)
    return over_batches(
        "held_out_level_losses", measure, examples, labels, copies=copies, batch_size=batch_size, key=key
    )


@eqx.filter_jit
def _level_losses(
    model: HasExits,
    loss: GroundTruthLoss,
    corruption: AbstractCorruption,
    level: Callable[..., Float[Array, ""] | None],
    examples: PyTree[Array],
    labels: Int[Array, " batch"],
    *,
    loops: int,
    ranges: int,
    key: PRNGKeyArray,
) -> LevelLosses:
    corrupted = corruption(examples, labels, key=key)

    def one(inputs, target):
        hidden = level(*inputs)
        predictions = model.trajectory(*inputs, loops=loops)
        losses = jax.vmap(lambda prediction: loss(prediction, target))(predictions)
        return losses, jnp.zeros((), jnp.float32) if hidden is None else hidden.astype(jnp.float32)

    losses, levels = jax.vmap(one)(corrupted.inputs, corrupted.target)
    index = jnp.clip(jnp.floor(levels * ranges).astype(jnp.int32), 0, ranges - 1)
    add = functools.partial(jax.ops.segment_sum, segment_ids=index, num_segments=ranges)
    return LevelLosses(add(jnp.ones_like(index)), add(levels), add(losses), add(corrupted.weight))
