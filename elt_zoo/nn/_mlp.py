from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from .._checks import checked
from ._linear import Initializer, Linear, side_by_side


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


class SwiGLU(eqx.Module):
    """A gated perceptron, `down(silu(gate) · value)`, on the last axis
    ([2002.05202](https://arxiv.org/abs/2002.05202)).

    It has three matrices where [`Mlp`][elt_zoo.nn.Mlp] has two, so that two thirds of an MLP's hidden width are as many
    parameters. Departs from the paper in that the maps have biases, as all maps of our layers.
    """

    up: Linear
    down: Linear

    def __init__(self, dim: int, hidden_dim: int, *, init: Initializer | None = None, key: PRNGKeyArray):
        """**Arguments:**

        - `dim`, `hidden_dim`: sizes of the last axis outside and inside.
        - `init`: initialiser of the weights, see [`Linear`][elt_zoo.nn.Linear]. Those of gate and value are drawn as
          two matrices and stored as one, (2·hidden_dim, dim) in that order.
        - `key`: PRNG key.
        """
        init = jax.nn.initializers.glorot_uniform() if init is None else init
        up_key, down_key = jax.random.split(key)
        self.up = Linear(dim, 2 * hidden_dim, init=side_by_side(init, 2), key=up_key)
        self.down = Linear(hidden_dim, dim, init=init, key=down_key)

    @checked
    def __call__(self, x: Float[Array, "*rest dim"]) -> Float[Array, "*rest dim"]:
        """Returns an array of the shape and dtype of `x`."""
        gate, value = jnp.split(self.up(x), 2, axis=-1)
        return self.down(jax.nn.silu(gate) * value)
