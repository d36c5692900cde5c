from collections.abc import Callable

import equinox as eqx
import jax
from jaxtyping import Array, Float, PRNGKeyArray

from .._checks import checked
from ._linear import Initializer, Linear


class Mlp(eqx.Module):
    """The transformer's two-layer perceptron, `down(activation(up(x)))`, on the last axis."""

    up: Linear
    down: Linear
    activation: Callable[[Array], Array] = eqx.field(static=True)

    def __init__(
        self,
        dim: int,
        hidden_dim: int,
        *,
        activation: Callable[[Array], Array] = jax.nn.gelu,
        init: Initializer | None = None,
        key: PRNGKeyArray,
    ):
        """**Arguments:**

        - `dim`, `hidden_dim`: sizes of the last axis outside and inside.
        - `activation`: default `jax.nn.gelu`, the tanh form that MaskGIT, MAGVIT and DiT use.
        - `init`: initialiser of both weights, see [`Linear`][elt_zoo.nn.Linear].
        - `key`: PRNG key.
        """
        up_key, down_key = jax.random.split(key)
        self.up = Linear(dim, hidden_dim, init=init, key=up_key)
        self.down = Linear(hidden_dim, dim, init=init, key=down_key)
        self.activation = activation

    @checked
    def __call__(self, x: Float[Array, "*rest dim"]) -> Float[Array, "*rest dim"]:
        """Returns an array of the shape and dtype of `x`."""
        return self.down(self.activation(self.up(x)))
