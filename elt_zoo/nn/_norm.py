import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._checks import checked


class LayerNorm(eqx.Module):
    """Layer normalisation of the last axis, computed in float32 whatever the input's dtype
    ([1607.06450](https://arxiv.org/abs/1607.06450)).
    """

    weight: Float[Array, " dim"] | None
    bias: Float[Array, " dim"] | None
    eps: float = eqx.field(static=True)

    def __init__(self, dim: int, *, eps: float, affine: bool = True):
        """**Arguments:**

        - `dim`: size of the last axis.
        - `eps`: added to the variance. There is no default because the networks around us differ: 1e-12 in MaskGIT and
          MAGVIT, 1e-6 in DiT.
        - `affine`: whether to have a trainable scale and shift. adaLN layers have none: theirs come from conditioning.
        """
        self.weight = jnp.ones(dim, jnp.float32) if affine else None
        self.bias = jnp.zeros(dim, jnp.float32) if affine else None
        self.eps = eps

    @checked
    def __call__(self, x: Float[Array, "*rest dim"]) -> Float[Array, "*rest dim"]:
        """Returns the normalised `x`, in the dtype of `x`."""
        wide = x.astype(jnp.float32)
        centred = wide - jnp.mean(wide, axis=-1, keepdims=True)
        y = centred * jax.lax.rsqrt(jnp.mean(jnp.square(centred), axis=-1, keepdims=True) + self.eps)
        if self.weight is not None and self.bias is not None:
            y = y * jnp.broadcast_to(self.weight.astype(jnp.float32), y.shape)
            y = y + jnp.broadcast_to(self.bias.astype(jnp.float32), y.shape)
        return y.astype(x.dtype)


class RMSNorm(eqx.Module):
    """Divides the last axis by its root mean square, `x / √(mean(x²) + eps)`, without centring it, in float32 whatever
    the input's dtype ([1910.07467](https://arxiv.org/abs/1910.07467)).
    """

    weight: Float[Array, " dim"] | None
    eps: float = eqx.field(static=True)

    def __init__(self, dim: int, *, eps: float, affine: bool = True):
        """**Arguments:**

        - `dim`: size of the last axis.
        - `eps`: added to the mean square.
        - `affine`: whether to have a trainable scale. adaLN layers have none: theirs comes from conditioning.
        """
        self.weight = jnp.ones(dim, jnp.float32) if affine else None
        self.eps = eps

    @checked
    def __call__(self, x: Float[Array, "*rest dim"]) -> Float[Array, "*rest dim"]:
        """Returns the normalised `x`, in the dtype of `x`."""
        wide = x.astype(jnp.float32)
        y = wide * jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + self.eps)
        if self.weight is not None:
            y = y * jnp.broadcast_to(self.weight.astype(jnp.float32), y.shape)
        return y.astype(x.dtype)
