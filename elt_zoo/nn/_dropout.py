import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray


def dropout(x: Float[Array, "*shape"], rate: float, *, key: PRNGKeyArray | None) -> Float[Array, "*shape"]:
    """Zeroes each entry with probability `rate` and scales the rest by 1/(1 − rate); without a `key`, the identity.

    The key doubles as the switch between training and inference, so a module needs no mode flag that can be forgotten.
    The rate is rounded to a multiple of 2⁻¹⁶, so that one random word serves two entries.
    """
    kept = max(round((1.0 - rate) * 2**16), 1)
    if key is None or kept == 2**16:
        return x
    # JAX would take a word of 32 bits for each 16 that it is asked for.
    words = jax.random.bits(key, ((x.size + 1) // 2,), jnp.uint32)
    numbers = jnp.reshape(jax.lax.bitcast_convert_type(words, jnp.uint16), (-1,))[: x.size]
    keep = jnp.reshape(numbers < jnp.asarray(kept, jnp.uint16), x.shape)
    return jnp.where(keep, x * (2**16 / kept), jnp.zeros_like(x))
