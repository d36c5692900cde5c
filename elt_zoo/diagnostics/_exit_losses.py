import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from ..corruption import AbstractCorruption
from ..objectives import GroundTruthLoss
from ._protocols import HasExits
from ._sums import AbstractSums


class LossSums(AbstractSums):
    """The losses of a batch's examples and their weights, summed."""

    losses: Float[Array, " loops"]
    weight: Float[Array, ""]


@eqx.filter_jit
def loss_sums(
    model: HasExits,
    loss: GroundTruthLoss,
    corruption: AbstractCorruption,
    examples: PyTree[Array],
    labels: Int[Array, " batch"],
    *,
    loops: int,
    key: PRNGKeyArray,
) -> LossSums:
    corrupted = corruption(examples, labels, key=key)

    def one(inputs, target):
        predictions = model.trajectory(*inputs, loops=loops)
        return jax.vmap(lambda prediction: loss(prediction, target))(predictions)

    losses = jax.vmap(one)(corrupted.inputs, corrupted.target)
    return LossSums(jnp.sum(losses, axis=0), jnp.sum(corrupted.weight))


def exit_losses(
    model: HasExits,
    loss: GroundTruthLoss,
    corruption: AbstractCorruption,
    examples: PyTree[Array],
    labels: Int[Array, " batch"],
    *,
    loops: int,
    key: PRNGKeyArray,
) -> Float[Array, " loops"]:
    """The ground-truth loss of every exit on one batch, all exits on the same corruption. Batched.

    It is deterministic for a fixed key, which makes it the first measure of how good each exit is.

    **Arguments:** `model`: an [`ElasticModel`][elt_zoo.ElasticModel], or any with its `trajectory`; `loss`,
    `corruption`: as in training, without dropped labels; `examples`, `labels`: clean; `loops`: exits to measure; `key`:
    of the corruption.

    **Returns:** the loss after 1, …, `loops` loops, normalised as in training (masked: nats per masked token).
    """
    sums = loss_sums(model, loss, corruption, examples, labels, loops=loops, key=key)
    return sums.losses / sums.weight
