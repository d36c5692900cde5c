"""The resizing of ADM (guided-diffusion, `image_datasets.py`), as published and in a faster approximation."""

import numpy as np
from jaxtyping import UInt8

from ..._optional import optional_import
from ._decode import Decoded


def resized_shape(shape: tuple[int, int], short: int) -> tuple[int, int]:
    """Returns height and width after ADM has scaled the shorter side to `short`: it halves, rounding down, while the
    image is at least twice as large, then scales.
    """
    while min(shape) >= 2 * short:
        shape = (shape[0] // 2, shape[1] // 2)
    scale = short / min(shape)
    return round(shape[0] * scale), round(shape[1] * scale)


def resize_exactly(decoded: Decoded, shape: tuple[int, int]) -> UInt8[np.ndarray, "height width 3"]:
    """Resizes with Pillow as ADM does: halves with a box filter while the image is at least twice as large, then
    resamples with a bicubic filter that widens when it shrinks.
    """
    pillow = optional_import("PIL.Image")
    picture = pillow.fromarray(decoded.image)
    while min(picture.size) >= 2 * min(shape):
        picture = picture.resize((picture.width // 2, picture.height // 2), pillow.Resampling.BOX)
    return np.asarray(picture.resize(shape[::-1], pillow.Resampling.BICUBIC))


def resize_fast(decoded: Decoded, shape: tuple[int, int]) -> UInt8[np.ndarray, "height width 3"]:
    """Resizes with OpenCV an image that the decoder may have halved.

    OpenCV's bicubic filter is vectorised but does not widen, so that it aliases when it shrinks. After the halvings the
    image is less than twice too large. Resampling it to twice the shape therefore does not shrink it, and averaging 2 ×
    2 pixels then does. The result is closer to Pillow's filter than that of OpenCV's area filter (0.6 against 0.8 grey
    levels), in half the time.
    """
    cv2 = optional_import("cv2")
    image = decoded.image
    # The decoder rounds halves up: the last pixel of 313 may stand for one of 625. Left out, edges would be off by one.
    covered = [side / (pixels << decoded.halvings) for side, pixels in zip(decoded.shape, image.shape[:2], strict=True)]
    while min(image.shape[:2]) >= 2 * min(shape):
        image = cv2.resize(image, (image.shape[1] // 2, image.shape[0] // 2), interpolation=cv2.INTER_AREA)
    shrinks = min(image.shape[:2]) > min(shape)
    height, width = (2 * shape[0], 2 * shape[1]) if shrinks else shape
    # A scale and not a size, which need not divide what is covered.
    scale = {"fx": width / (covered[1] * image.shape[1]), "fy": height / (covered[0] * image.shape[0])}
    image = cv2.resize(image, None, **scale, interpolation=cv2.INTER_CUBIC)[:height, :width]
    return cv2.resize(image, shape[::-1], interpolation=cv2.INTER_AREA) if shrinks else image
