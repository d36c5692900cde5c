import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree


def ema_decay_at(step: Int[Array, ""], decay: float) -> Float[Array, ""]:
    """The decay of the average at a step t = 0, 1, …: min(decay, (1 + t) / (10 + t)), so that early averages are not
    stuck at the initialisation."""
    step = step.astype(jnp.float32)
    return jnp.minimum(jnp.asarray(decay, jnp.float32), (1.0 + step) / (10.0 + step))


def update_ema(ema: PyTree, model: PyTree, step: Int[Array, ""], decay: float) -> PyTree:
    """Moves the exponential moving average of the parameters by one step.

    **Arguments:** `ema`, `model`: of one structure; `step`: steps taken before this one; `decay`: in [0, 1), 0 for no
    average.

    **Returns:** the new average.
    """
    weight = ema_decay_at(step, decay)

    def move(old, new):
        return old * weight + new * (1.0 - weight) if eqx.is_inexact_array(new) else new

    return jax.tree.map(move, ema, model)
