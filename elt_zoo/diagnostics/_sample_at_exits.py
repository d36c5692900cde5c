from collections.abc import Sequence

import jax.numpy as jnp
from jaxtyping import Array, Int, PRNGKeyArray, Shaped

from .._checks import checked
from ..models import BatchedPredict, ElasticModel
from ..sampling import DiffusionSampler, MaskedSampler


@checked
def sample_at_exits(
    model: ElasticModel,
    sampler: DiffusionSampler | MaskedSampler,
    labels: Int[Array, " batch"],
    *,
    exits: Sequence[int],
    key: PRNGKeyArray,
) -> Shaped[Array, "exits batch *sample"]:
    """Draws the same samples at several loop counts: from one key, so that nothing but the loops differs. Batched.

    One compilation serves all counts.

    **Arguments:** `model`, `sampler`, `labels`, `key`: as for drawing samples; `exits`: the loop counts, such as
    `range(1, 5)`.

    **Returns:** the samples of every count, a row of a grid each.

    **Raises:** `ValueError` for no counts, and what the sampler raises for one below 1.
    """
    if len(exits) == 0:
        raise ValueError("`sample_at_exits(exits=[])` draws nothing: give the loop counts, such as `range(1, 5)`.")
    predict = BatchedPredict(model)
    return jnp.stack([sampler(predict, labels, loops=jnp.asarray(loops, jnp.int32), key=key) for loops in exits])
