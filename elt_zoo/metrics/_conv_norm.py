import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from ..nn import Conv


class ConvNorm(eqx.Module):
    """Convolution without a bias, batch normalisation with stored statistics, ReLU."""

    conv: Conv
    weight: Float[Array, " channels"]
    bias: Float[Array, " channels"]
    mean: Float[Array, " channels"]
    variance: Float[Array, " channels"]
    eps: float = eqx.field(static=True)

    def __init__(
        self,
        in_channels: int,
        channels: int,
        kernel: int | tuple[int, ...],
        *,
        axes: int = 2,
        stride: int = 1,
        padding: str = "SAME",
        eps: float,
        key: PRNGKeyArray,
    ):
        self.conv = Conv(
            in_channels, channels, kernel, axes=axes, stride=stride, padding=padding, use_bias=False, key=key
        )
        self.weight, self.variance = jnp.ones(channels), jnp.ones(channels)
        self.bias, self.mean = jnp.zeros(channels), jnp.zeros(channels)
        self.eps = eps

    def __call__(self, x: Float[Array, "*grid channels"]) -> Float[Array, "*new_grid new_channels"]:
        y = self.conv(x)
        scale = self.weight * jax.lax.rsqrt(self.variance + self.eps)
        return jax.nn.relu(
            y * jnp.broadcast_to(scale, y.shape) + jnp.broadcast_to(self.bias - self.mean * scale, y.shape)
        )
