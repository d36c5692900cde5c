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
    """Decodes an image file and crops a square of `size` × `size` RGB pixels, as ADM does.

    Nothing is random by default: the shorter side is scaled to `size`, and the centre is kept. Train with
    `ImageTransform(256, random_crop=True, flip=True)`. Each choice draws its own numbers, so that turning one on or off
    leaves the other unchanged.

    **Arguments:**

    - `size`: height and width of the result in pixels.
    - `random_crop`: scale the shorter side to a random length between `size` and `size` / 0.8, and keep a random
      square.
    - `flip`: mirror half of the images.
    - `exact`: return the same bytes as ADM's code, which resizes with Pillow. By default the JPEG decoder halves large
      images and OpenCV resizes: about twice as many images per second, with a mean difference of 0.6 grey levels at
      256 pixels (`benchmarks/data.py`).

    **Raises:** `ValueError` if the size is not positive.

    ??? cite "Reference"

        Dhariwal and Nichol, *Diffusion Models Beat GANs on Image Synthesis* (2021).
    """

    size: int
    _: dataclasses.KW_ONLY
    random_crop: bool = False
    flip: bool = False
    exact: bool = False

    def __post_init__(self):
        if self.size < 1:
            raise ValueError(f"`ImageTransform(size={self.size})` must be at least 1 pixel.")

    def __call__(self, data: bytes, rng: np.random.Generator) -> UInt8[np.ndarray, "{self.size} {self.size} 3"]:
        """**Arguments:** `data`: the bytes of an image file; `rng`: source of randomness, such as `visit.rng()`.

        **Raises:** `UnreadableExample`, see [`decode_image`][elt_zoo.data.decode_image].
        """
        # All are drawn, used or not: switching one choice on leaves the others as they were.
        scale, down, right, mirrored = rng.random(4)
        longest = math.ceil(self.size / _SMALLEST_CROP)
        short = self.size + int(scale * (longest - self.size + 1)) if self.random_crop else self.size
        decoded = decode_reduced(data, None if self.exact else short)
        height, width = decoded.shape
        if max(height, width) > _MOST_ELONGATED * min(height, width):
            # With one pixel scaled to 256, a line of 60,000 becomes a picture of 12 GB.
            raise UnreadableExample(f"{width} × {height} pixels are too elongated to crop a square")
        resize = resize_exactly if self.exact else resize_fast
        image = resize(decoded, resized_shape((height, width), short))
        rows, columns = image.shape[0] - self.size, image.shape[1] - self.size
        top, left = (
            (int(down * (rows + 1)), int(right * (columns + 1))) if self.random_crop else (rows // 2, columns // 2)
        )
        square = image[top : top + self.size, left : left + self.size]
        return np.ascontiguousarray(square[:, ::-1] if self.flip and mirrored < 0.5 else square)
