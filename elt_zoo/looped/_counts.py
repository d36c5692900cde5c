import operator

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Integer

from .._checks import check_range

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
    """A count as an int32 array, checked if its value is known."""
    count = count if isinstance(count, jax.Array) else jnp.asarray(static_count(name, count))
    bounds = "at least 1" if limit is None else f"in [1, {limit}]"
    check_range(count, 1, limit, f"`{name}` of a looped transformer must be {bounds}.")
    return count.astype(jnp.int32)


def poison(state: Float[Array, "*shape"], wrong: Bool[Array, ""]) -> Float[Array, "*shape"]:
    """The state, or NaN where a traced count turns out to be wrong."""
    return jnp.where(wrong, jnp.nan, state)
