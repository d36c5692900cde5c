"""Encoded images that the tests make themselves."""

import io

import numpy as np
from PIL import Image


def smooth(height: int = 60, width: int = 80, seed: int = 0) -> np.ndarray:
    """A colourful picture without noise, which survives JPEG."""
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def encode(pixels: np.ndarray, format: str = "JPEG", mode: str = "RGB", **options) -> bytes:
    """An image file's bytes."""
    with io.BytesIO() as file:
        Image.fromarray(pixels).convert(mode).save(file, format, **options)
        return file.getvalue()


def write_folders(root, counts: dict[str, int], *, extension: str = ".JPEG") -> None:
    """`root/<name>/<name>_<number>.JPEG`, each of its own seed."""
    for label, (name, count) in enumerate(counts.items()):
        (root / name).mkdir(parents=True)
        for number in range(count):
            data = encode(smooth(seed=100 * label + number))
            (root / name / f"{name}_{number}{extension}").write_bytes(data)
