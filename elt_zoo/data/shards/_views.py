import enum

import numpy as np
from jaxtyping import UInt8


class Views(enum.Enum):
    """Which views of an image or a clip are encoded in advance, in place of random crops and flips. Training samples
    one of them at every visit.
    """

    ONE = "one"
    """The centre crop."""
    FLIP = "flip"
    """The centre crop and its mirror image."""
    TEN_CROPS = "ten_crops"
    """Crops at the four corners and the centre, and their mirror images, as in LlamaGen
    ([2406.06525](https://arxiv.org/abs/2406.06525)), which crops images 1.1 times as large. The crops differ only if
    the source is larger than the crop."""

    @property
    def count(self) -> int:
        """Number of views of an example."""
        return {Views.ONE: 1, Views.FLIP: 2, Views.TEN_CROPS: 10}[self]

    def cut(
        self, pixels: UInt8[np.ndarray, "*frames height width channels"], size: int
    ) -> UInt8[np.ndarray, "views *frames size size channels"]:
        """Crops the views of an image, or of a clip, whose frames are all cropped alike.

        **Arguments:** `pixels`: an image or a clip; `size`: height and width of the crops.

        **Returns:** the views, mirror images last.

        **Raises:** `ValueError` if the image is smaller than the crop.
        """
        down, right = (length - size for length in pixels.shape[-3:-1])
        if min(down, right) < 0 or size < 1:
            raise ValueError(
                f"`Views.cut(size={size})` got pictures of {pixels.shape[-3]} × {pixels.shape[-2]}. Let the source "
                "make them at least as large as the crop, or cut smaller."
            )
        corners = [(down // 2, right // 2)]
        if self is Views.TEN_CROPS:
            corners = [(0, 0), (0, right), (down, 0), (down, right), *corners]
        crops = [pixels[..., top : top + size, left : left + size, :] for top, left in corners]
        mirrored = [] if self is Views.ONE else [crop[..., ::-1, :] for crop in crops]
        return np.stack(crops + mirrored)
