import operator

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Integer

StaticCount = int | np.integer | Integer[np.ndarray, ""]
"""A number that is known while tracing: an integer of Python or NumPy. `True` and `False` are refused."""

LoopCount = StaticCount | Integer[Array, ""]
"""A number of loops: a static one, or an integer JAX array, which may be traced."""


def static_count(name: str, count: StaticCount) -> int:
    """A count that Python knows, checked, as an `int`."""
    if isinstance(count, bool):
        raise TypeError(f"`{name}={count}`: a number of loops is an integer, and this is a truth value.")
    if count < 1:
        raise ValueError(f"`{name}={count}`: a looped transformer runs at least one loop. Use `{name}=1` or more.")
    return operator.index(count)


def traced_count(name: str, count: LoopCount, limit: int | None = None) -> Integer[Array, ""]:
    """A count as an int32 array, checked when the program runs: a traced count cannot raise while tracing."""
    count = count if isinstance(count, jax.Array) else jnp.asarray(static_count(name, count))
    count = count.astype(jnp.int32)
    outside = count < 1 if limit is None else (count < 1) | (count > limit)
    bounds = "at least 1" if limit is None else f"in [1, {limit}]"
    return eqx.error_if(count, outside, f"`{name}` of a looped transformer must be {bounds}.")
