from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from ..corruption import AbstractCorruption
from ..objectives import GroundTruthLoss


@eqx.filter_jit
def exit_losses(
    model: Any,
    ground_truth: GroundTruthLoss,
    corruption: AbstractCorruption,
    examples: Any,
    labels: Int[Array, " batch"],
    *,
    loops: int,
    key: PRNGKeyArray,
) -> Float[Array, " loops"]:
    """The ground-truth loss of every exit on one batch, all exits on the same corruption. Batched.

    With held-out examples and a fixed key it is deterministic: our primary figure for how good each exit is.

    **Arguments:** `model`: an [`ElasticModel`][elt_zoo.ElasticModel]; `ground_truth`, `corruption`: as in training;
    `examples`, `labels`: clean; `loops`: exits to measure; `key`: of the corruption.

    **Returns:** the loss after 1, …, `loops` loops, normalised as in training (masked: nats per masked token).
    """
    corrupted = corruption(examples, labels, key=key)

    def one(inputs, target):
        predictions = model.trajectory(*inputs, loops=loops)
        return jax.vmap(lambda prediction: ground_truth(prediction, target))(predictions)

    losses = jax.vmap(one)(corrupted.inputs, corrupted.target)
    return jnp.sum(losses, axis=0) / jnp.sum(corrupted.weight)
