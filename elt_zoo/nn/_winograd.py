"""Winograd's convolution F(4×4, 3×3) (1509.09308): fewer products for wide layers on a CPU.

A tile of 4 × 4 outputs of a 3 × 3 convolution takes 36 products a pair of channels instead of 144, between transforms
of the input, the kernel and the output. In float32 it is exact to about 5e-6.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .._platform import platform

_TILE = 4
# The transforms for interpolation at 0, ±1, ±2 and infinity (1509.09308, section 4.3).
_INPUT = np.array(
    [
        [4, 0, -5, 0, 1, 0],
        [0, -4, -4, 1, 1, 0],
        [0, 4, -4, -1, 1, 0],
        [0, -2, -1, 2, 1, 0],
        [0, 2, -1, -2, 1, 0],
        [0, 4, 0, -5, 0, 1],
    ]
)
_KERNEL = np.array([[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]]) / 24
_OUTPUT = np.array([[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]])


def winograd_pays(grid: tuple[int, ...], weight: Float[Array, "*kernel in_channels out_channels"]) -> bool:
    """Whether a convolution that keeps its grid is faster this way, which it is on a CPU (`benchmarks/networks.py`).

    Narrow layers are bound by memory, and on small grids the kernel's transform is most of the work.
    """
    fits = weight.shape[:-2] == (3, 3) and len(grid) == 2 and all(size % _TILE == 0 and size >= 64 for size in grid)
    wide = min(weight.shape[-2:]) >= 256 and weight.dtype == jnp.float32
    return fits and wide and platform() == "cpu"


def winograd(
    x: Float[Array, "height width in_channels"], weight: Float[Array, "3 3 in_channels out_channels"]
) -> Float[Array, "height width out_channels"]:
    """The convolution with zeros around, for heights and widths that are multiples of 4."""
    taps = _TILE + 2
    height, width, channels = x.shape
    rows, columns = height // _TILE, width // _TILE
    padded = jnp.pad(x, ((1, 1), (1, 1), (0, 0)))
    # Entry (i, j) of every tile at once, so that a transform is a few sums of whole arrays.
    bands = _combine(_INPUT, [padded[i : i + height - 3 : _TILE] for i in range(taps)])
    tiles = [_combine(_INPUT, [band[:, j : j + width - 3 : _TILE] for j in range(taps)]) for band in bands]
    slopes = _combine(_KERNEL, [weight[i] for i in range(3)])
    kernels = [_combine(_KERNEL, [slope[j] for j in range(3)]) for slope in slopes]
    stacked = jnp.stack([tile for row in tiles for tile in row]).reshape(taps * taps, rows * columns, channels)
    products = jnp.matmul(stacked, jnp.stack([kernel for row in kernels for kernel in row]))
    products = products.reshape(taps, taps, rows, columns, -1)
    bands = _combine(_OUTPUT, [products[i] for i in range(taps)])
    outputs = [jnp.stack(_combine(_OUTPUT, [band[j] for j in range(taps)]), axis=2) for band in bands]
    return jnp.stack(outputs, axis=1).reshape(height, width, -1)


def _combine(matrix: np.ndarray, arrays: list[jax.Array]) -> list[jax.Array]:
    """The matrix times a vector of arrays; its many zeros and ones cost nothing."""
    results = []
    for row in matrix:
        terms = [a if c == 1 else -a if c == -1 else np.float32(c) * a for c, a in zip(row, arrays, strict=True) if c]
        results.append(sum(terms[1:], terms[0]))
    return results
