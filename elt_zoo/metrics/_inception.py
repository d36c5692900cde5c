import enum
from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, UInt8

from .._checks import checked
from ..nn import Linear
from ._conv_norm import ConvNorm
from ._resize import resize_corner, resize_half_pixel

_SIZE = 299
_NUM_LOGITS = 1008
_SPATIAL_CHANNELS = 7
Image = Float[Array, "height width channels"]
Activations = Float[Array, "rows columns new_channels"]
Sizes = dict[str, tuple[int, int, int | tuple[int, int], int]]
"""Input channels, output channels, kernel and stride of each convolution by name. Those of stride 2 pad nothing."""


class InceptionFeatures(NamedTuple):
    """What metrics need from one image."""

    pool: Float[Array, " 2048"]
    """Average-pooled features, for FID and for precision and recall."""
    logits: Float[Array, " 1008"]
    """Logits of the 1,008 classes of the network's training."""
    spatial: Float[Array, " 2023"]
    """The first 7 channels of the 1 × 1 branch of `Mixed_6d`, 17 × 17 × 7 values row by row: the features of sFID
    ([2103.03841](https://arxiv.org/abs/2103.03841)). TensorFlow counts the blocks from `Mixed_5b` as `mixed`,
    `mixed_1`, …, so this is ADM's `mixed_6/conv:0`; `Mixed_6e` would be `mixed_7`.
    """


class InceptionResize(enum.StrEnum):
    """How an image is resized and scaled for the network. The two ways give different features and distances.

    `PYTORCH_FID`: bilinear between pixel centres, then 2x/255 − 1. `TENSORFLOW`: bilinear between pixel corners, then
    (x − 128)/128, as in the original graph, ADM's evaluator and its reference files.
    """

    PYTORCH_FID = "pytorch-fid"
    TENSORFLOW = "tensorflow"


class InceptionV3(eqx.Module):
    """The Inception-v3 ([1512.00567](https://arxiv.org/abs/1512.00567)) that defines the Fréchet Inception
    distance ([1706.08500](https://arxiv.org/abs/1706.08500)): the TensorFlow network of 2015, with the structure and
    names of pytorch-fid.

    It differs from torchvision's network in its weights, in pooling (averages at the border count existing pixels only,
    and the last block takes maxima) and in its 1,008 logits. Weights: see
    [`load_inception`][elt_zoo.pretrained.load_inception].
    """

    convs: dict[str, ConvNorm]
    fc: Linear

    def __init__(self, *, key: PRNGKeyArray):
        """**Arguments:** `key`: PRNG key. Without published weights its features mean nothing."""
        sizes = inception_sizes()
        keys = jax.random.split(key, len(sizes) + 1)
        self.convs = {
            name: ConvNorm(before, after, kernel, stride=stride, padding=_padding(name, stride), eps=1e-3, key=k)
            for k, (name, (before, after, kernel, stride)) in zip(keys, sizes.items(), strict=False)
        }
        self.fc = Linear(2048, _NUM_LOGITS, key=keys[-1])

    @checked
    def __call__(
        self,
        image: UInt8[Array, "height width 3"] | Float[Array, "height width 3"],
        *,
        resize: InceptionResize = InceptionResize.PYTORCH_FID,
    ) -> InceptionFeatures:
        """**Arguments:** `image`: any size, values 0 to 255, uint8 or float32; batch with `jax.vmap`; `resize`: how to
        resize it to 299 × 299.

        **Returns:** pooled features, logits and spatial features, float32.
        """
        blocks, spatial = self._blocks(_RESIZES[resize](image.astype(jnp.float32)))
        pool = jnp.mean(blocks[-1], axis=(0, 1))
        return InceptionFeatures(pool, self.fc(pool), jnp.reshape(spatial, -1))

    @checked
    def activations(
        self, image: UInt8[Array, "height width 3"] | Float[Array, "height width 3"]
    ) -> tuple[Float[Array, "..."], ...]:
        """The activations of pytorch-fid's blocks 0 to 3 before the mean, with 64, 192, 768 and 2,048 channels.

        **Arguments:** as `__call__`.
        """
        return self._blocks(resize_for_inception(image.astype(jnp.float32)))[0]

    def _blocks(self, x: Image) -> tuple[tuple[Activations, ...], Activations]:
        """Blocks 0 to 3 of a prepared image, and the spatial features."""
        run = self.convs
        for name in ("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3"):
            x = run[name](x)
        first = x = _max_pool(x)
        second = x = _max_pool(run["Conv2d_4a_3x3"](run["Conv2d_3b_1x1"](x)))
        for name in ("Mixed_5b", "Mixed_5c", "Mixed_5d"):
            x = self._branches(x, name, _average_pool, ["1x1"], ["5x5_1", "5x5_2"], _chain("3x3dbl", 3))
        x = self._shrink(x, "Mixed_6a", ["3x3"], _chain("3x3dbl", 3))
        spatial = x
        for name in ("Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e"):
            if name == "Mixed_6d":
                # The block computes this once more; the compiler sees that it is the same.
                spatial = run["Mixed_6d.branch1x1"](x)[..., :_SPATIAL_CHANNELS]
            x = self._branches(x, name, _average_pool, ["1x1"], _chain("7x7", 3), _chain("7x7dbl", 5))
        third = x
        x = self._shrink(x, "Mixed_7a", _chain("3x3", 2), _chain("7x7x3", 4))
        for name, pool in (("Mixed_7b", _average_pool), ("Mixed_7c", _max_pool_same)):
            x = self._branches(
                x,
                name,
                pool,
                ["1x1"],
                ["3x3_1", ("3x3_2a", "3x3_2b")],
                ["3x3dbl_1", "3x3dbl_2", ("3x3dbl_3a", "3x3dbl_3b")],
            )
        return (first, second, third, x), spatial

    def _branches(self, x: Image, block: str, pool: Callable[[Image], Image], *branches: list) -> Activations:
        """A block that keeps the grid: its branches, then a pooled one, side by side."""
        outputs = [self._run(x, block, branch) for branch in branches]
        return jnp.concatenate([*outputs, self.convs[f"{block}.branch_pool"](pool(x))], axis=-1)

    def _shrink(self, x: Image, block: str, *branches: list) -> Activations:
        """A block that halves the grid: its branches, then the pooled input."""
        return jnp.concatenate([*(self._run(x, block, branch) for branch in branches), _max_pool(x)], axis=-1)

    def _run(self, x: Image, block: str, branch: list) -> Activations:
        for step in branch:
            if isinstance(step, tuple):
                x = jnp.concatenate([self.convs[f"{block}.branch{name}"](x) for name in step], axis=-1)
            else:
                x = self.convs[f"{block}.branch{step}"](x)
        return x


def _chain(name: str, length: int) -> list[str]:
    return [f"{name}_{index}" for index in range(1, length + 1)]


def inception_sizes() -> Sizes:
    """Every convolution of the network."""
    sizes: Sizes = {
        "Conv2d_1a_3x3": (3, 32, 3, 2),
        "Conv2d_2a_3x3": (32, 32, 3, 1),
        "Conv2d_2b_3x3": (32, 64, 3, 1),
        "Conv2d_3b_1x1": (64, 80, 1, 1),
        "Conv2d_4a_3x3": (80, 192, 3, 1),
    }

    def add(block: str, before: int, branches: Sizes) -> None:
        sizes.update({f"{block}.branch{name}": (size[0] or before, *size[1:]) for name, size in branches.items()})

    # A first entry of 0 stands for the width of the block's input.
    for block, before, pooled in (("Mixed_5b", 192, 32), ("Mixed_5c", 256, 64), ("Mixed_5d", 288, 64)):
        double: Sizes = {"3x3dbl_1": (0, 64, 1, 1), "3x3dbl_2": (64, 96, 3, 1), "3x3dbl_3": (96, 96, 3, 1)}
        single: Sizes = {"1x1": (0, 64, 1, 1), "5x5_1": (0, 48, 1, 1), "5x5_2": (48, 64, 5, 1)}
        add(block, before, single | double | {"_pool": (0, pooled, 1, 1)})
    double = {"3x3dbl_1": (0, 64, 1, 1), "3x3dbl_2": (64, 96, 3, 1), "3x3dbl_3": (96, 96, 3, 2)}
    add("Mixed_6a", 288, {"3x3": (0, 384, 3, 2)} | double)
    row, column = (1, 7), (7, 1)
    for block, width in (("Mixed_6b", 128), ("Mixed_6c", 160), ("Mixed_6d", 160), ("Mixed_6e", 192)):
        single = {"7x7_1": (0, width, 1, 1), "7x7_2": (width, width, row, 1), "7x7_3": (width, 192, column, 1)}
        double = {"7x7dbl_1": (0, width, 1, 1), "7x7dbl_2": (width, width, column, 1)}
        double |= {"7x7dbl_3": (width, width, row, 1), "7x7dbl_4": (width, width, column, 1)}
        double |= {"7x7dbl_5": (width, 192, row, 1)}
        add(block, 768, {"1x1": (0, 192, 1, 1)} | single | double | {"_pool": (0, 192, 1, 1)})
    single = {"7x7x3_1": (0, 192, 1, 1), "7x7x3_2": (192, 192, row, 1), "7x7x3_3": (192, 192, column, 1)}
    add("Mixed_7a", 768, {"3x3_1": (0, 192, 1, 1), "3x3_2": (192, 320, 3, 2)} | single | {"7x7x3_4": (192, 192, 3, 2)})
    for block, before in (("Mixed_7b", 1280), ("Mixed_7c", 2048)):
        single = {"3x3_1": (0, 384, 1, 1), "3x3_2a": (384, 384, (1, 3), 1), "3x3_2b": (384, 384, (3, 1), 1)}
        double = {"3x3dbl_1": (0, 448, 1, 1), "3x3dbl_2": (448, 384, 3, 1)}
        double |= {"3x3dbl_3a": (384, 384, (1, 3), 1), "3x3dbl_3b": (384, 384, (3, 1), 1)}
        add(block, before, {"1x1": (0, 320, 1, 1)} | single | double | {"_pool": (0, 192, 1, 1)})
    return sizes


def resize_for_inception(image: Image) -> Float[Array, "299 299 3"]:
    """Values 0 to 255 of any size to [−1, 1] at 299 × 299: bilinear between pixel centres, no low-pass filter."""
    return 2.0 * resize_half_pixel(image / 255.0, _SIZE) - 1.0


def resize_as_tensorflow(image: Image) -> Float[Array, "299 299 3"]:
    """Values 0 to 255 of any size to [−1, 1) at 299 × 299, as the graph of 2015 does it."""
    return (resize_corner(image, _SIZE) - 128.0) / 128.0


_RESIZES = {InceptionResize.PYTORCH_FID: resize_for_inception, InceptionResize.TENSORFLOW: resize_as_tensorflow}


def _padding(name: str, stride: int) -> str:
    return "VALID" if stride == 2 or name in ("Conv2d_2a_3x3", "Conv2d_4a_3x3") else "SAME"


def _max_pool(x: Image) -> Float[Array, "rows columns channels"]:
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (3, 3, 1), (2, 2, 1), "VALID")


def _max_pool_same(x: Image) -> Image:
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (3, 3, 1), (1, 1, 1), "SAME")


def _average_pool(x: Image) -> Image:
    """Means over 3 × 3 pixels; at the border over those that exist."""
    sums = jax.lax.reduce_window(x, 0.0, jax.lax.add, (3, 3, 1), (1, 1, 1), "SAME")
    ones = jnp.ones((*x.shape[:2], 1), x.dtype)
    counts = jax.lax.reduce_window(ones, 0.0, jax.lax.add, (3, 3, 1), (1, 1, 1), "SAME")
    return sums / jnp.broadcast_to(counts, sums.shape)
