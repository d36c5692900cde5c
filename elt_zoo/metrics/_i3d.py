from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from .._checks import checked
from ..nn import Conv
from ._conv_norm import ConvNorm
from ._resize import resize_corner, resize_half_pixel

Clip = Float[Array, "frames height width channels"]
SmallClip = Float[Array, "steps rows columns new_channels"]

# Input width, then widths of the branches: 1×1; 1×1 and 3×3; 1×1 and 3×3; 1×1 after a pool.
_MIXED = {
    "mixed_3b": (192, 64, 96, 128, 16, 32, 32),
    "mixed_3c": (256, 128, 128, 192, 32, 96, 64),
    "mixed_4b": (480, 192, 96, 208, 16, 48, 64),
    "mixed_4c": (512, 160, 112, 224, 24, 64, 64),
    "mixed_4d": (512, 128, 128, 256, 24, 64, 64),
    "mixed_4e": (512, 112, 144, 288, 32, 64, 64),
    "mixed_4f": (528, 256, 160, 320, 32, 128, 128),
    "mixed_5b": (832, 256, 160, 320, 32, 128, 128),
    "mixed_5c": (832, 384, 192, 384, 48, 128, 128),
}
_SIZE, _MIN_FRAMES = 224, 9


class I3DFeatures(NamedTuple):
    """What metrics need from one clip."""

    logits: Float[Array, " 400"]
    """Logits of Kinetics' 400 classes, averaged over time: the features of FVD."""
    pool: Float[Array, " 1024"]
    """Average-pooled features before the classifier, averaged over time."""


class I3D(eqx.Module):
    """The RGB stream of the inflated 3D network ([1705.07750](https://arxiv.org/abs/1705.07750)), trained on
    Kinetics-400: the network of the Fréchet video distance ([1812.01717](https://arxiv.org/abs/1812.01717)). Its
    parameters have the names of the PyTorch port.

    Weights: see [`load_i3d`][elt_zoo.pretrained.load_i3d].
    """

    convs: dict[str, ConvNorm]
    classifier: Conv

    def __init__(self, *, key: PRNGKeyArray):
        """**Arguments:** `key`: PRNG key. Without published weights its features mean nothing."""
        sizes = _sizes()
        keys = jax.random.split(key, len(sizes) + 1)
        self.convs = {
            name: ConvNorm(before, after, taps, axes=3, stride=stride, eps=1e-3, key=k)
            for k, (name, (before, after, taps, stride)) in zip(keys, sizes.items(), strict=False)
        }
        self.classifier = Conv(1024, 400, 1, axes=3, key=keys[-1])

    @checked
    def __call__(self, video: Float[Array, "frames height width 3"]) -> I3DFeatures:
        """**Arguments:** `video`: 9 frames or more, 224 × 224 pixels in [−1, 1]; batch with `jax.vmap`.

        **Returns:** logits and pooled features, float32.

        **Raises:** `ValueError` for another size; see [`resize_video`][elt_zoo.metrics.resize_video].
        """
        if video.shape[1:3] != (_SIZE, _SIZE) or video.shape[0] < _MIN_FRAMES:
            raise ValueError(
                f"`I3D` got a clip of shape {video.shape}: it needs {_MIN_FRAMES} frames or more of {_SIZE} × {_SIZE} "
                "pixels. Use `resize_video` first."
            )
        run = self.convs
        x = _max_pool(run["conv3d_1a_7x7"](video), (1, 3, 3), (1, 2, 2))
        x = _max_pool(run["conv3d_2c_3x3"](run["conv3d_2b_1x1"](x)), (1, 3, 3), (1, 2, 2))
        for name in _MIXED:
            if name == "mixed_4b":
                x = _max_pool(x, (3, 3, 3), (2, 2, 2))
            elif name == "mixed_5b":
                x = _max_pool(x, (2, 2, 2), (2, 2, 2))
            x = self._mixed(x, name)
        # Means over windows of 2 × 7 × 7, of which 224 pixels leave one in space.
        windows = jnp.mean((x[:-1] + x[1:]) / 2.0, axis=(1, 2), keepdims=True)
        logits = self.classifier(windows)
        return I3DFeatures(jnp.mean(logits, axis=(0, 1, 2)), jnp.mean(windows, axis=(0, 1, 2)))

    def _mixed(self, x: Clip, block: str) -> SmallClip:
        run = self.convs
        pooled = _max_pool(x, (3, 3, 3), (1, 1, 1))
        branches = [
            run[f"{block}.branch_0"](x),
            run[f"{block}.branch_1.1"](run[f"{block}.branch_1.0"](x)),
            run[f"{block}.branch_2.1"](run[f"{block}.branch_2.0"](x)),
            run[f"{block}.branch_3.1"](pooled),
        ]
        return jnp.concatenate(branches, axis=-1)


def _sizes() -> dict[str, tuple[int, int, int, int]]:
    """Input channels, output channels, taps along each axis and stride of every convolution."""
    sizes = {"conv3d_1a_7x7": (3, 64, 7, 2), "conv3d_2b_1x1": (64, 64, 1, 1), "conv3d_2c_3x3": (64, 192, 3, 1)}
    for block, (before, single, one_in, one_out, two_in, two_out, pooled) in _MIXED.items():
        sizes[f"{block}.branch_0"] = (before, single, 1, 1)
        sizes[f"{block}.branch_1.0"] = (before, one_in, 1, 1)
        sizes[f"{block}.branch_1.1"] = (one_in, one_out, 3, 1)
        sizes[f"{block}.branch_2.0"] = (before, two_in, 1, 1)
        sizes[f"{block}.branch_2.1"] = (two_in, two_out, 3, 1)
        sizes[f"{block}.branch_3.1"] = (before, pooled, 1, 1)
    return sizes


@checked
def resize_video(
    video: Float[Array, "frames height width 3"], *, half_pixel: bool = True
) -> Float[Array, "frames 224 224 3"]:
    """Resizes a clip to the 224 × 224 pixels of I3D, bilinearly and without a low-pass filter.

    **Arguments:** `video`: the clip; `half_pixel`: interpolate between pixel centres, as PyTorch and StyleGAN-V do, or
    between pixel corners, as TensorFlow 1 and MAGVIT do.
    """
    return resize_half_pixel(video, _SIZE) if half_pixel else resize_corner(video, _SIZE)


def _max_pool(x: Clip, window: tuple[int, int, int], strides: tuple[int, int, int]) -> SmallClip:
    # TensorFlow's padding; after ReLU its zeros and our −∞ are the same.
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (*window, 1), (*strides, 1), "SAME")
