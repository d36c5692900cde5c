from collections.abc import Callable, Sequence

import jax.numpy as jnp
from jaxtyping import Array, Int, PRNGKeyArray, PyTree, Shaped

from .._checks import checked
from ..models import BatchedPredict
from ..sampling import AbstractSampler


@checked
def sample_at_exits(
    model: Callable[..., PyTree[Array]],
    sampler: AbstractSampler,
    labels: Int[Array, " batch"],
    *,
    exits: Sequence[int],
    key: PRNGKeyArray,
) -> Shaped[Array, "exits batch *sample"]:
    """Samples at several loop counts with one key, so that the samples differ by their loops alone. Batched.

    One compilation serves all counts.

    **Arguments:** `model`: an [`ElasticModel`][elt_zoo.ElasticModel], or any function of one example's inputs and
    `loops`; `sampler`, `labels`, `key`: as for sampling; `exits`: the loop counts, such as `range(1, 5)`.

    **Returns:** the samples of every count, stacked along a new leading axis.

    **Raises:** `ValueError` if `exits` is empty, and the sampler's errors for a count below 1.
    """
    if len(exits) == 0:
        raise ValueError("`sample_at_exits(exits=[])` samples nothing: give the loop counts, such as `range(1, 5)`.")
    predict = BatchedPredict(model)
    return jnp.stack([sampler(predict, labels, loops=jnp.asarray(loops, jnp.int32), key=key) for loops in exits])
