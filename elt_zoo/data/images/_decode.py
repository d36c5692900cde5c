import io
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8

from ..._optional import optional_import
from .._source import UnreadableExample

# A damaged header may claim 65,535 × 65,535 pixels, which is 12 GiB. Pillow refuses the same.
_MOST_PIXELS = 178_956_970
_MOST_HALVINGS = 3
"""libjpeg-turbo scales by 1/2, 1/4 and 1/8 at full speed."""


class Decoded(NamedTuple):
    """Pixels of an image of `shape`, perhaps halved a few times, rounding up."""

    image: UInt8[np.ndarray, "h w 3"]
    shape: tuple[int, int]
    halvings: int = 0


def decode_image(data: bytes) -> UInt8[np.ndarray, "height width 3"]:
    """The bytes of an image file → its pixels in RGB.

    Ordinary JPEGs are decoded by libjpeg-turbo, to the same bytes that Pillow gives. CMYK, and what is no JPEG whatever
    its name, goes through Pillow. Grey is repeated, palettes are looked
    up, transparency is dropped, and of 16 bits the upper 8 are kept. The orientation in EXIF is ignored, as it was when
    the published generators and classifiers were trained.

    **Arguments:** `data`: a whole file.

    **Raises:** `UnreadableExample` if the file is empty, cut off, damaged or no image.
    """
    return decode_reduced(data, None).image


def decode_reduced(data: bytes, shortest: int | None) -> Decoded:
    """`decode_image`, which may halve a JPEG on the way while both sides keep at least `shortest` pixels. That is
    faster, and close to averaging 2 × 2 pixels.
    """
    if not data:
        raise UnreadableExample("an empty file (0 bytes)")
    simplejpeg = optional_import("simplejpeg")
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:  # no JPEG, or one that is odd or broken: Pillow says which
        return _decode_with_pillow(data)
    if colours in ("CMYK", "YCCK"):  # it rounds otherwise than Pillow
        return _decode_with_pillow(data)
    if height * width > _MOST_PIXELS:
        raise UnreadableExample(f"its header claims {width} × {height} pixels")
    halvings = 0
    while shortest is not None and halvings < _MOST_HALVINGS and min(height, width) >> halvings >= 2 * shortest:
        halvings += 1
    least = {"min_height": height >> halvings, "min_width": width >> halvings}
    try:
        # Strict makes errors of the decoder's warnings; by default it fills what is missing with grey.
        image = simplejpeg.decode_jpeg(data, "RGB", **least, strict=True)
    except ValueError:
        return _decode_with_pillow(data)
    return Decoded(image, (height, width), halvings)


def _decode_with_pillow(data: bytes) -> Decoded:
    pillow = optional_import("PIL.Image")
    try:
        with pillow.open(io.BytesIO(data)) as file:
            image = _rgb(file)
    except pillow.UnidentifiedImageError as error:
        raise UnreadableExample(f"no image; it begins with {data[:8]!r}") from error
    except Exception as error:  # its readers raise nearly everything: OSError, SyntaxError, struct.error, zlib.error
        raise UnreadableExample(f"an image that cannot be decoded ({error})") from error
    return Decoded(image, image.shape[:2])


def _rgb(image: Any) -> np.ndarray:
    if image.mode.startswith("I"):  # 16 bits; Pillow would clip them to 255 instead of scaling
        grey = (np.asarray(image) >> 8).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=-1)
    return np.array(image.convert("RGB"))
