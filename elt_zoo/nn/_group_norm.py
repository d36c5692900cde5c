import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._checks import checked


class GroupNorm(eqx.Module):
    """Group normalisation over all positions and the channels of a group, computed in float32 whatever the input's
    dtype ([1803.08494](https://arxiv.org/abs/1803.08494)).
    """

    weight: Float[Array, " channels"]
    bias: Float[Array, " channels"]
    groups: int = eqx.field(static=True)
    eps: float = eqx.field(static=True)

    def __init__(self, channels: int, *, groups: int = 32, eps: float = 1e-6):
        """**Arguments:** `channels`, a multiple of `groups`; `eps`: added to the variance; default as in Flax, MaskGIT
        and Stable Diffusion.

        **Raises:** `ValueError` if the groups do not divide the channels.
        """
        if groups < 1 or channels % groups:
            raise ValueError(f"`GroupNorm({channels}, groups={groups})`: the groups must divide the channels.")
        self.weight = jnp.ones(channels, jnp.float32)
        self.bias = jnp.zeros(channels, jnp.float32)
        self.groups = groups
        self.eps = eps

    @checked
    def __call__(self, x: Float[Array, "*grid channels"]) -> Float[Array, "*grid channels"]:
        """Returns the normalised `x`, in the dtype of `x`."""
        wide = jnp.reshape(x.astype(jnp.float32), (-1, x.shape[-1]))
        # Over positions first: such sums run along memory, those over groups of a few channels would not.
        mean = self._over_groups(jnp.mean(wide, axis=0))
        variance = self._over_groups(jnp.mean(jnp.square(wide - mean[None]), axis=0))
        # One multiplication and one addition for every entry, with all that is the same for a channel done before.
        scale = self.weight.astype(jnp.float32) * jax.lax.rsqrt(variance + self.eps)
        shift = self.bias.astype(jnp.float32) - mean * scale
        return jnp.reshape(wide * scale[None] + shift[None], x.shape).astype(x.dtype)

    def _over_groups(self, means: Float[Array, " channels"]) -> Float[Array, " channels"]:
        """The mean of each group, for each of its channels."""
        groups = jnp.mean(jnp.reshape(means, (self.groups, -1)), axis=1, keepdims=True)
        return jnp.ravel(jnp.broadcast_to(groups, (self.groups, means.size // self.groups)))
