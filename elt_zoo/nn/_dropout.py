import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray


def dropout(x: Float[Array, "*shape"], rate: float, *, key: PRNGKeyArray | None) -> Float[Array, "*shape"]:
    """Zeroes each entry with probability `rate` and scales the rest by 1/(1 − rate); without a `key`, the identity.

    The key doubles as the switch between training and inference, so a module needs no mode flag that can be forgotten.
    """
    if key is None or rate == 0.0:
        return x
    keep = jax.random.bernoulli(key, 1.0 - rate, x.shape)
    return jnp.where(keep, x / (1.0 - rate), jnp.zeros_like(x))
