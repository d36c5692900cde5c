import io
import os
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8

from .._checks import checked
from .._optional import optional_import
from ..data import from_pixels, write_video
from ..storage import atomic_write


@checked
def save_png(
    path: str | os.PathLike, images: Float[np.ndarray, "*images height width channels"], *, scale: int = 1
) -> Path:
    """Writes one image, or a row of them side by side, as a PNG.

    **Arguments:** `path`: where to; `images`: pixels in [−1, 1] with one or three channels, with or without a leading
    axis; `scale`: pixels of the file per pixel of the image.

    **Returns:** the path. **Raises:** `ImportError` without Pillow, the extra `data`.
    """
    images = images[None] if images.ndim == 3 else images
    return _write(path, tile(images[None]), scale)


@checked
def png_bytes(image: UInt8[np.ndarray, "height width channels"]) -> bytes:
    """An image as the bytes of a PNG file.

    **Arguments:** `image`: bytes of 0 to 255 with one or three channels.

    **Raises:** `ImportError` without Pillow, the extra `data`.
    """
    file = io.BytesIO()
    optional_import("PIL.Image").fromarray(image[:, :, 0] if image.shape[2] == 1 else image).save(file, "PNG")
    return file.getvalue()


@checked
def save_gif(
    path: str | os.PathLike,
    clips: Float[np.ndarray, "*clips frames height width channels"],
    *,
    rate: float = 8.0,
    scale: int = 1,
) -> Path:
    """Writes one clip, or a row of them side by side, as a GIF.

    **Arguments:** `path`: where to; `clips`: pixels in [−1, 1], with or without a leading axis; `rate`: frames per
    second; `scale`: pixels of the file per pixel of a frame.

    **Returns:** the path. **Raises:** `ImportError` without PyAV, the extra `data`.
    """
    path = Path(path)
    clips = clips[None] if clips.ndim == 4 else clips
    film = np.stack([_enlarged(tile(clips[None, :, frame]), scale) for frame in range(clips.shape[1])])
    write_video(path, film, rate=rate)
    return path


@checked
def tile(
    images: Float[np.ndarray, "rows columns height width channels"], *, gap: int = 1
) -> UInt8[np.ndarray, "all_rows all_columns channels"]:
    """Rows and columns of images as one, with a grey line of `gap` pixels around each. Bytes of 0 to 255."""
    padded = np.pad(images, ((0, 0), (0, 0), (gap, gap), (gap, gap), (0, 0)))
    rows, columns, height, width, channels = padded.shape
    return from_pixels(padded.transpose(0, 2, 1, 3, 4).reshape(rows * height, columns * width, channels))


@checked
def save_reconstructions(
    path: str | os.PathLike,
    originals: Float[np.ndarray, "examples ..."],
    reconstructions: Float[np.ndarray, "examples ..."],
    *,
    scale: int = 3,
) -> Path:
    """Writes originals above their reconstructions: images side by side, or clips on their own rows, frame by frame.

    **Arguments:** `originals`, `reconstructions`: pixels in [−1, 1], images or clips, channels last; `scale`: pixels of
    the file per pixel.
    """
    pairs = [originals, reconstructions]
    if originals.ndim == 5:
        pairs = [part[index] for index in range(len(originals)) for part in (originals, reconstructions)]
    return _write(path, tile(np.stack(pairs)), scale)


def _enlarged(image: np.ndarray, scale: int) -> np.ndarray:
    return np.kron(image, np.ones((scale, scale, 1), np.uint8))


def _write(path: str | os.PathLike, image: np.ndarray, scale: int) -> Path:
    path, content = Path(path), png_bytes(_enlarged(image, scale))
    with atomic_write(path) as file:
        file.write_bytes(content)
    return path
