"""Reading data: images per second and core, beside the same work with Pillow in PyTorch's `DataLoader`.

    python benchmarks/data.py --csv benchmarks/results/data.csv                  # JPEGs made here
    python benchmarks/data.py --images imagenet/val                              # or those of a folder per class

Requirement: at least 1.5 times as many decoded images of 256 × 256 pixels per second on ordinary JPEGs of 500 × 375.
Both sides read the same files with one thread on one core. Needs `pip install torch`.
"""

import argparse
import os
import random
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from timing import compare, environment, write_csv

from elt_zoo.data import ImageSource, ImageTransform, Visit, image_folder, training_batches

SIZE = 256
BATCH = 32


def make_jpegs(root: Path, count: int = 320) -> None:
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
        self.augment = source.transform.augment

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        with Image.open(self.paths[index]) as image:
            return adm_crop(image.convert("RGB"), self.augment), self.labels[index]


def forever(loader: torch.utils.data.DataLoader) -> Iterator[Any]:
    while True:
        yield from loader


def compare_streams(
    case: str, ours: Iterator[Any], baseline: Iterator[Any], *, batches: int, per_batch: int, rounds: int
) -> dict[str, Any]:
    """Reads as many batches from both sides in turn. The ratio is that of the rates: above 1, ours is the faster."""

    def read(stream: Iterator[Any]) -> Callable[[], None]:
        def call() -> None:
            for _ in range(batches):
                next(stream)

        return call

    times = compare(read(ours), read(baseline), rounds=rounds)
    examples = 1e3 * batches * per_batch
    row = {
        "case": case,
        "rounds": rounds,
        "ours_per_second": examples / times["ours_ms"],
        "baseline_per_second": examples / times["baseline_ms"],
        "ratio": 1 / times["ratio"],
        "ratio_low": 1 / times["ratio_high"],
        "ratio_high": 1 / times["ratio_low"],
    }
    print(
        f"{case:42}{row['ours_per_second']:10.0f}/s{row['baseline_per_second']:10.0f}/s{row['ratio']:8.2f}"
        f"{row['ratio_low']:8.2f} to {row['ratio_high']:.2f}",
        flush=True,
    )
    return row


def images(root: Path, rounds: int) -> list[dict[str, Any]]:
    """Decoded and cropped images, and what the faster resizing changes."""
    rows = []
    transforms = {
        "images, centre crop": ImageTransform(SIZE, augment=False),
        "images, random crop and flip": ImageTransform(SIZE, augment=True),
        "images, centre crop, exact": ImageTransform(SIZE, augment=False, exact=True),
    }
    for case, transform in transforms.items():
        source = image_folder(root, transform)
        loader = torch.utils.data.DataLoader(PillowImages(source), batch_size=BATCH, shuffle=True, drop_last=True)
        row = compare_streams(
            case,
            training_batches(source, batch_size=BATCH, seed=0, workers=0),
            forever(loader),
            batches=len(source) // BATCH,
            per_batch=BATCH,
            rounds=rounds,
        )
        rows.append({**row, **grey_levels(source)})
    mean, most = rows[0]["mean_difference"], rows[0]["max_difference"]
    print(f"Centre crop, grey levels away from ADM's: {mean:.2f} on average, {most} at most")
    return rows


def grey_levels(source: ImageSource) -> dict[str, Any]:
    """How far the crops are from ADM's, made by Pillow from the same random numbers."""
    exact = ImageTransform(SIZE, augment=source.transform.augment, exact=True)
    differences = []
    for index in range(len(source)):
        visit = Visit(index)
        difference = np.abs(source.read(visit).images.astype(int) - exact(source.encoded(index), visit.rng()))
        differences.append((difference.mean(), difference.max()))
    means, most = zip(*differences, strict=True)
    return {"mean_difference": float(np.mean(means)), "max_difference": int(max(most))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--images", type=Path, help="a folder of class folders of images, instead of JPEGs made here")
    parser.add_argument("--csv", type=Path, help="also write the table here")
    arguments = parser.parse_args()
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    print(f"{environment()}, torch {torch.__version__}; one core, median and quartiles of {arguments.rounds} rounds")
    print(f"{'':42}{'elt_zoo':>12}{'baseline':>12}{'ratio':>8}{'quartiles':>16}")
    with tempfile.TemporaryDirectory() as folder:
        root = arguments.images or Path(folder)
        if arguments.images is None:
            make_jpegs(root)
        rows = images(root, arguments.rounds)
    write_csv(arguments.csv, rows)


if __name__ == "__main__":
    main()
