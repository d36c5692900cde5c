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
    """The pixels of an image of `shape`, halved `halvings` times, rounding up."""

    image: UInt8[np.ndarray, "h w 3"]
    shape: tuple[int, int]
    halvings: int = 0


def decode_image(data: bytes) -> UInt8[np.ndarray, "height width 3"]:
    """Decodes an image file to RGB.

    libjpeg-turbo decodes ordinary JPEGs, to the same bytes as Pillow; Pillow decodes CMYK and all other formats,
    whatever the file is called. Grey is repeated, palettes are looked up, transparency is dropped, and the upper 8 of
    16 bits are kept. The orientation in EXIF is ignored, as in the training of published generators and classifiers.

    **Arguments:** `data`: the bytes of a file.

    **Raises:** `UnreadableExample` if the file is empty, truncated, damaged or not an image.
    """
    return decode_reduced(data, None).image


def decode_reduced(data: bytes, shortest: int | None) -> Decoded:
    """Decodes like `decode_image`, and halves a JPEG while both sides keep at least `shortest` pixels. That is faster,
    and close to averaging 2 × 2 pixels.
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
