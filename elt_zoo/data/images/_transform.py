import dataclasses
import math

import numpy as np
from jaxtyping import UInt8

from .._source import UnreadableExample
from ._crop import resize_exactly, resize_fast, resized_shape
from ._decode import decode_reduced

_SMALLEST_CROP = 0.8
_MOST_ELONGATED = 100


@dataclasses.dataclass(frozen=True)
class ImageTransform:
    """From an encoded image to a square of `size` pixels in RGB, cropped as ADM crops.

    The shorter side is scaled to `size` and the middle is kept. With `augment` the shorter side is scaled to a random
    length from `size` to `size` / 0.8, a random square is kept, and half of them are mirrored.

    **Arguments:**

    - `size`: pixels a side.
    - `augment`: random crop and flip, for training; else the centre crop.
    - `exact`: give the very bytes of ADM's recipe, which resizes with Pillow. Otherwise large JPEGs are halved while
      they are decoded and OpenCV resizes: about twice as many images a second, and at 256 pixels a mean difference of
      0.6 grey levels (`benchmarks/data.py`).

    **Raises:** `ValueError` if the size is not positive.

    ??? cite "Reference"

        Dhariwal and Nichol, *Diffusion Models Beat GANs on Image Synthesis* (2021).
    """

    size: int
    augment: bool = dataclasses.field(kw_only=True)
    exact: bool = dataclasses.field(default=False, kw_only=True)

    def __post_init__(self):
        if self.size < 1:
            raise ValueError(f"`ImageTransform(size={self.size})` must be at least 1 pixel.")

    def __call__(self, data: bytes, rng: np.random.Generator) -> UInt8[np.ndarray, "{self.size} {self.size} 3"]:
        """**Arguments:** `data`: a whole image file; `rng`: what a random crop depends on, such as `visit.rng()`.

        **Raises:** `UnreadableExample`, see [`decode_image`][elt_zoo.data.decode_image].
        """
        short = self.size
        if self.augment:
            short = int(rng.integers(self.size, math.ceil(self.size / _SMALLEST_CROP), endpoint=True))
        decoded = decode_reduced(data, None if self.exact else short)
        height, width = decoded.shape
        if max(height, width) > _MOST_ELONGATED * min(height, width):
            # With one pixel scaled to 256, a line of 60,000 becomes a picture of 12 GB.
            raise UnreadableExample(f"{width} × {height} pixels are too elongated to crop a square")
        resize = resize_exactly if self.exact else resize_fast
        image = resize(decoded, resized_shape((height, width), short))
        rows, columns = image.shape[0] - self.size, image.shape[1] - self.size
        if not self.augment:
            top, left, mirrored = rows // 2, columns // 2, False
        else:
            top, left = int(rng.integers(rows, endpoint=True)), int(rng.integers(columns, endpoint=True))
            mirrored = rng.random() < 0.5
        square = image[top : top + self.size, left : left + self.size]
        return np.ascontiguousarray(square[:, ::-1] if mirrored else square)
