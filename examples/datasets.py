"""Data sets by name or by path, for the scripts of this folder."""

from pathlib import Path
from typing import Literal

import numpy as np

from elt_zoo.data import (
    AbstractSource,
    ClipTransform,
    DataError,
    Images,
    ImageTransform,
    MovingDigits,
    ShardedImages,
    Visit,
    digits_to_pixels,
    from_pixels,
    image_folder,
    image_tar,
    imagenet,
    load_digits,
    ucf101,
    video_folder,
)

Split = Literal["train", "heldout"]


class DigitImages(AbstractSource):
    """The handwritten digits as images of 8 × 8 grey pixels."""

    def __init__(self, split: Split):
        digits = load_digits(split)
        self.class_names = tuple("0123456789")
        self._images = from_pixels(digits_to_pixels(digits.images))
        self._labels = digits.labels

    def __len__(self) -> int:
        return len(self._labels)

    def name(self, index: int) -> str:
        return f"digit {index}"

    def read(self, visit: Visit) -> Images:
        return Images(self._images[visit.index], np.asarray(self._labels[visit.index]))


def open_source(
    data: str, *, split: Split, size: int, frames: int | None = None, augment: bool = False, exact: bool = False
) -> AbstractSource:
    """Images, or with `frames` clips.

    **Arguments:**

    - `data`: `digits`; `moving-digits`; a folder of ImageNet as it was published, of packed images, or with a folder
      for each class; a tar archive; the folder of UCF-101 or of videos with a folder for each class.
    - `split`: where the data has one.
    - `size`, `frames`: of the pictures.
    - `augment`: random crops and flips, and clips that begin anywhere.
    - `exact`: resize as published models were trained, bit for bit, at twice the time.

    **Raises:** `DataError` if there is no such data.
    """
    if data == "digits":
        return DigitImages(split)
    if data == "moving-digits":
        if frames is None:
            raise DataError("`moving-digits` are clips; what was asked for are images.")
        return MovingDigits(split, frames=frames, size=size, augment=augment)
    root = Path(data)
    if not root.exists():
        raise DataError(f"There is no {data}. Give a folder, a tar archive, or one of 'digits' and 'moving-digits'.")
    if frames is not None:
        clips = ClipTransform(frames=frames, size=size, random_start=augment)
        if (root / "UCF-101").is_dir():
            return ucf101(root, clips, split="train" if split == "train" else "test")
        return video_folder(root, clips)
    transform = ImageTransform(size, augment=augment, exact=exact)
    if (root / "index.json").is_file():
        return ShardedImages(root, transform)
    if root.is_file():
        return image_tar(root, transform)
    if any((root / name).exists() for name in ("train", "ILSVRC2012_img_train.tar", "val", "ILSVRC2012_img_val.tar")):
        return imagenet(root, "train" if split == "train" else "val", transform)
    return image_folder(root, transform)
