import itertools
import math

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from .._checks import checked
from .._platform import platform
from ._linear import Initializer
from ._winograd import winograd, winograd_pays

Padding = str | tuple[tuple[int, int], ...]


class Conv(eqx.Module):
    """Convolution over any number of axes, channels last.

    The weight is (*kernel, in, out), as in Flax; PyTorch has (out, in, *kernel).
    """

    weight: Float[Array, "*kernel in_channels out_channels"]
    bias: Float[Array, " out_channels"] | None
    stride: int = eqx.field(static=True)
    padding: Padding = eqx.field(static=True)

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, ...],
        *,
        axes: int = 2,
        stride: int = 1,
        padding: Padding = "SAME",
        use_bias: bool = True,
        init: Initializer | None = None,
        key: PRNGKeyArray,
    ):
        """**Arguments:**

        - `in_channels`, `out_channels`: channels before and after.
        - `kernel_size`: taps along every axis, or of each.
        - `axes`: spatial and temporal axes.
        - `stride`: along every axis.
        - `padding`: "SAME", "VALID", or zeros before and after along each axis.
        - `use_bias`: whether to add a bias, which starts at zero.
        - `init`: initialiser of the weight; default LeCun normal, as Flax.
        - `key`: PRNG key.
        """
        init = jax.nn.initializers.lecun_normal() if init is None else init
        kernel = (kernel_size,) * axes if isinstance(kernel_size, int) else kernel_size
        self.weight = init(key, (*kernel, in_channels, out_channels), jnp.float32)
        self.bias = jnp.zeros(out_channels, jnp.float32) if use_bias else None
        self.stride = stride
        self.padding = padding

    @checked
    def __call__(self, x: Float[Array, "*grid in_channels"]) -> Float[Array, "*new_grid out_channels"]:
        """Returns the convolved `x`, in the dtype of `x`."""
        if math.prod(self.weight.shape[:-2]) == 1 and self.stride == 1:
            y = jnp.tensordot(x, jnp.reshape(self.weight, self.weight.shape[-2:]), axes=1)
        elif self.stride == 1 and self.padding == "SAME" and winograd_pays(x.shape[:-1], self.weight):
            y = winograd(x, self.weight)
        else:
            y = convolve(x, self.weight, self.stride, self.padding)
        return y if self.bias is None else y + jnp.broadcast_to(self.bias, y.shape)


class UpsampleConv(eqx.Module):
    """Nearest-neighbour upsampling by a factor of 2 (or 1) along each axis, then a convolution of three taps.

    Repeated pixels meet sums of neighbouring taps, so each of the 2ⁿ phases of the output is a convolution of the small
    input with two taps an axis: in two dimensions 16 products an input pixel instead of 36, and no large intermediate.
    """

    conv: Conv
    factors: tuple[int, ...] = eqx.field(static=True)

    def __init__(self, channels: int, *, factors: tuple[int, ...], key: PRNGKeyArray):
        """**Arguments:** `channels`: before and after; `factors`: 1 or 2 for each axis; `key`: PRNG key."""
        self.conv = Conv(channels, channels, 3, axes=len(factors), key=key)
        self.factors = factors

    @checked
    def __call__(self, x: Float[Array, "*grid channels"]) -> Float[Array, "*new_grid channels"]:
        """Returns an array of `factors` times the grid, in the dtype of `x`."""
        grid, axes = x.shape[:-1], len(self.factors)
        phases = [self._phase(x, phase) for phase in itertools.product(*map(range, self.factors))]
        y = jnp.reshape(jnp.stack(phases), (*self.factors, *grid, -1))
        # (factors, grid, channels) to each grid axis followed by its factor.
        y = jnp.transpose(y, [axis + offset for axis in range(axes) for offset in (axes, 0)] + [2 * axes])
        y = jnp.reshape(y, (*(size * factor for size, factor in zip(grid, self.factors, strict=True)), -1))
        return y if self.conv.bias is None else y + jnp.broadcast_to(self.conv.bias, y.shape)

    def _phase(self, x: Float[Array, "*grid channels"], phase: tuple[int, ...]) -> Float[Array, "*grid channels"]:
        kernel, padding = self.conv.weight, []
        for axis, (factor, position) in enumerate(zip(self.factors, phase, strict=True)):
            if factor == 1:
                padding.append((1, 1))
                continue
            before, here, after = jnp.split(kernel, 3, axis=axis)
            taps = (before, here + after) if position == 0 else (before + here, after)
            kernel = jnp.concatenate(taps, axis=axis)
            padding.append((1, 0) if position == 0 else (0, 1))
        return convolve(x, kernel, 1, tuple(padding))


def convolve(
    x: Float[Array, "*grid in_channels"],
    weight: Float[Array, "*kernel in_channels out_channels"],
    stride: int,
    padding: Padding,
) -> Float[Array, "*new_grid out_channels"]:
    if x.ndim == 4 and stride == 1 and platform() == "cpu":
        return _convolve_frames(x, weight, padding)
    axes = "DHW"[-(x.ndim - 1) :]
    y = jax.lax.conv_general_dilated(
        x[None],
        weight,
        (stride,) * (x.ndim - 1),
        padding,
        dimension_numbers=(f"N{axes}C", f"{axes}IO", f"N{axes}C"),
    )
    return y[0]


def _convolve_frames(
    x: Float[Array, "frames height width in_channels"],
    weight: Float[Array, "taps rows columns in_channels out_channels"],
    padding: Padding,
) -> Float[Array, "new_frames new_height new_width out_channels"]:
    """A convolution over time as a sum of convolutions of frames, one for each tap. On a CPU, XLA's kernels for
    images are faster than those for video (`benchmarks/video_convolution.py`).
    """
    taps, *kernel = weight.shape[:-2]
    if isinstance(padding, str):
        padding = tuple(jax.lax.padtype_to_pads(x.shape[:-1], (taps, *kernel), (1, 1, 1), padding))
    time, *space = padding
    padded = jnp.pad(x, (time, (0, 0), (0, 0), (0, 0)))
    frames = padded.shape[0] - taps + 1
    terms = [
        jax.lax.conv_general_dilated(
            padded[tap : tap + frames], weight[tap], (1, 1), space, dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        for tap in range(taps)
    ]
    return sum(terms[1:], terms[0])
