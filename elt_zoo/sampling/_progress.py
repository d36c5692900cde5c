from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import io_callback
from jaxtyping import Array, Int, Shaped

ProgressCallback = Callable[[int, int], None]
"""Called on the host as `callback(step, steps)` when a sampling step is done; `step` counts from 1 to `steps`."""


def report(
    callback: ProgressCallback | None,
    step: Int[Array, ""],
    steps: int,
    reported: Int[Array, ""],
    state: Shaped[Array, "..."],
) -> Int[Array, ""]:
    """Calls `callback` when `state` is computed and the previous call, whose result is `reported`, has returned.
    Without a callback does nothing.

    The order comes from these two dependencies rather than from an ordered effect, which JAX has for a single device
    only.
    """
    if callback is None:
        return reported

    def on_host(step, _reported, _state):
        callback(int(step) + 1, steps)
        return np.asarray(step, np.int32)

    return io_callback(on_host, jax.ShapeDtypeStruct((), jnp.int32), step, reported, jnp.ravel(state)[0])
