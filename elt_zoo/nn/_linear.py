import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from .._checks import checked

Initializer = jax.nn.initializers.Initializer


def side_by_side(init: Initializer, matrices: int) -> Initializer:
    """Draws so many matrices one by one, each with the variance that its own shape asks for, and joins their outputs.
    So starts a `Linear` that computes several maps at once.
    """

    def init_each(key, shape, dtype=jnp.float32, out_sharding=None):
        keys = jax.random.split(key, matrices)
        return jnp.concatenate([init(key, (shape[0], shape[1] // matrices), dtype) for key in keys], axis=1)

    return init_each


class Linear(eqx.Module):
    """Affine map `weight @ x + bias` of the last axis.

    The weight keeps Equinox's and PyTorch's layout (out, in). Acting on the last axis, instead of one vector under
    `jax.vmap` as `equinox.nn.Linear` does, lets a whole token sequence be one matrix product without a transpose.
    """

    weight: Float[Array, "out_dim in_dim"]
    bias: Float[Array, " out_dim"] | None

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        *,
        use_bias: bool = True,
        init: Initializer | None = None,
        key: PRNGKeyArray,
    ):
        """**Arguments:**

        - `in_dim`, `out_dim`: sizes of the last axis before and after.
        - `use_bias`: whether to add a bias, which starts at zero.
        - `init`: initialiser called with the shape (in_dim, out_dim); default Glorot uniform.
        - `key`: PRNG key of the weight.
        """
        init = jax.nn.initializers.glorot_uniform() if init is None else init
        self.weight = init(key, (in_dim, out_dim), jnp.float32).T
        self.bias = jnp.zeros(out_dim, jnp.float32) if use_bias else None

    @checked
    def __call__(self, x: Float[Array, "*rest in_dim"]) -> Float[Array, "*rest out_dim"]:
        """Returns `x` with its last axis mapped; the leading axes are kept."""
        y = jax.lax.dot_general(x, self.weight, (((x.ndim - 1,), (1,)), ((), ())))
        if self.bias is None:
            return y
        return y + jnp.broadcast_to(self.bias, y.shape)
