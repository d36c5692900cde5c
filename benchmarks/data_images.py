"""Decoded and cropped images, beside Pillow: the section `images` of `data.py`."""

import dataclasses
import random
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch  # pyright: ignore[reportMissingImports]
from PIL import Image
from sklearn.datasets import load_sample_images
from throughput import compare_streams, endless

from elt_zoo.data import ImageSource, ImageTransform, Visit, image_folder, training_batches

SIZE = 256
BATCH = 32
COMPARED = 320  # images whose grey levels are compared, evenly spaced over the classes


def make_jpegs(root: Path, count: int = COMPARED) -> None:
    """Parts of two photographs at several scales, as JPEGs of 500 × 375 pixels."""
    generator = np.random.default_rng(0)
    for number in range(count):
        photograph = Image.fromarray(load_sample_images().images[number % 2])
        width = int(generator.integers(320, 513))
        height = width * 3 // 4
        left = int(generator.integers(photograph.width - width))
        top = int(generator.integers(photograph.height - height))
        part = photograph.crop((left, top, left + width, top + height)).resize((500, 375), Image.Resampling.BICUBIC)
        folder = root / f"photograph_{number % 2}"
        folder.mkdir(exist_ok=True)
        part.save(folder / f"{number}.jpg", quality=90)


def adm_crop(image: Image.Image, augment: bool) -> np.ndarray:
    """ADM's centre crop, or its random crop and flip, with Pillow."""
    short = random.randrange(SIZE, SIZE * 5 // 4 + 1) if augment else SIZE
    while min(image.size) >= 2 * short:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = short / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    rows, columns = image.height - SIZE, image.width - SIZE
    top, left = (random.randrange(rows + 1), random.randrange(columns + 1)) if augment else (rows // 2, columns // 2)
    pixels = np.array(image)[top : top + SIZE, left : left + SIZE]
    return np.ascontiguousarray(pixels[:, ::-1] if augment and random.random() < 0.5 else pixels)


class PillowImages(torch.utils.data.Dataset):
    """The same files, read as PyTorch's users read them."""

    def __init__(self, source: ImageSource):
        self.paths = [source.name(index) for index in range(len(source))]
        self.labels = [source.label(index) for index in range(len(source))]
        self.augment = source.transform.random_crop

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        with Image.open(self.paths[index]) as image:
            return adm_crop(image.convert("RGB"), self.augment), self.labels[index]


def grey_levels(source: ImageSource) -> dict[str, Any]:
    """How far the crops are from ADM's: centre crops from those of `adm_crop`, random ones, whose random numbers it
    does not share, from those of the exact mode.
    """
    transform = source.transform
    exact = dataclasses.replace(transform, exact=True)
    pillow = PillowImages(source)
    differences = []
    for index in range(0, len(source), max(1, len(source) // COMPARED)):
        visit = Visit(index)
        expected = exact(source.encoded(index), visit.rng()) if transform.random_crop else pillow[index][0]
        difference = np.abs(source.read(visit).images.astype(int) - expected)
        differences.append((difference.mean(), difference.max()))
    means, most = zip(*differences, strict=True)
    return {"mean_difference": float(np.mean(means)), "max_difference": int(max(most))}


def rows(root: Path | None = None, *, rounds: int) -> list[dict[str, Any]]:
    """A row for each way to crop. **Arguments:** `root`: a folder of class folders; by default JPEGs are made."""
    with tempfile.TemporaryDirectory() as scratch:
        if root is None:
            root = Path(scratch)
            make_jpegs(root)
        transforms = {
            "centre crop": ImageTransform(SIZE),
            "random crop and flip": ImageTransform(SIZE, random_crop=True, flip=True),
            "centre crop, exact": ImageTransform(SIZE, exact=True),
        }
        return [_row(f"images, {name}", image_folder(root, each), rounds) for name, each in transforms.items()]


def _row(case: str, source: ImageSource, rounds: int) -> dict[str, Any]:
    loader = torch.utils.data.DataLoader(PillowImages(source), batch_size=BATCH, shuffle=True, drop_last=True)
    row = compare_streams(
        case,
        training_batches(source, batch_size=BATCH, seed=0, workers=0),
        endless(loader),
        batches=min(len(source) // BATCH, 10),
        batch_size=BATCH,
        rounds=rounds,
    )
    return {**row, **grey_levels(source)}
