import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, PRNGKeyArray, PyTree


class TrainState(eqx.Module):
    """Everything that a training step reads and writes."""

    model: PyTree
    ema: PyTree
    optimizer_state: PyTree
    step: Int[Array, ""]
    """Steps taken, each of one batch and one update of the optimiser."""
    skipped: Int[Array, ""]
    """Steps whose loss or gradient was not finite; their updates were not applied."""
    key: PRNGKeyArray

    @classmethod
    def create(cls, model: PyTree, optimizer: optax.GradientTransformation, *, key: PRNGKeyArray) -> "TrainState":
        """The state before the first step. The average starts as a copy: a donated buffer must not be in two places."""
        model, ema = [
            jax.tree.map(lambda leaf: jnp.array(leaf) if eqx.is_array(leaf) else leaf, model) for _ in range(2)
        ]
        return cls(
            model=model,
            ema=ema,
            optimizer_state=optimizer.init(eqx.filter(model, eqx.is_inexact_array)),
            step=jnp.zeros((), jnp.int32),
            skipped=jnp.zeros((), jnp.int32),
            key=key,
        )
