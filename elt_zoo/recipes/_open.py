import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from ..data import (
    AbstractSource,
    ClipTransform,
    DataError,
    DigitImages,
    ImageSource,
    ImageTransform,
    MovingDigits,
    ShardedImages,
    ShardedLatents,
    ShardedTokens,
    Subset,
    VideoSource,
    hold_out,
    image_folder,
    image_tar,
    imagenet,
    open_shards,
    ucf101,
    video_folder,
)
from ._image_sets import named_images
from ._split import Split

DIGITS = "digits"
"""The name of the handwritten digits."""
MOVING_DIGITS = "moving-digits"
"""The name of the clips of moving digits."""


class Opened(NamedTuple):
    """Sources to train on and to measure on, and the former without random crops, flips and clips."""

    train: AbstractSource
    heldout: AbstractSource
    plain: AbstractSource
    shards: ShardedTokens | ShardedLatents | None = None
    """The whole, if it is precomputed."""


def open_source(
    data: str, *, split: Split, size: int, frames: int | None = None, augment: bool = False, exact: bool = False
) -> AbstractSource:
    """Images, or with `frames` clips, of one split; all of them where the data has no splits.

    **Arguments:**

    - `data`: `digits`; `moving-digits`; `cifar10`, `mnist` or the path of their official files; a folder of ImageNet as
      it was published, of packed images, or with a folder for each class; a tar archive; the folder of UCF-101 or of
      videos with a folder for each class.
    - `split`: where the data has one.
    - `size`, `frames`: of the pictures.
    - `augment`: random crops and flips, and clips that begin anywhere.
    - `exact`: resize as published models were trained, bit for bit, at twice the time.

    **Raises:** `DataError` if there is no such data.
    """
    if data == DIGITS:
        return DigitImages(split)
    if data == MOVING_DIGITS:
        if frames is None:
            raise DataError("`moving-digits` are clips; what was asked for are images.")
        return MovingDigits(split, frames=frames, size=size, augment=augment)
    if (named := named_images(data)) is not None and frames is None:
        return named.open(split, size=size, flip=augment)
    root = existing(data)
    if frames is not None:
        return open_videos(root, ClipTransform(frames, size=size, random_start=augment), split=split)
    transform = ImageTransform(size, random_crop=augment, flip=augment, exact=exact)
    return ShardedImages(root, transform) if is_shards(root) else open_image_files(root, transform, split=split)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Augmentation:
    """What training does to images: random crops, flips, and whether resizing is exact.

    **Fields:**

    - `random_crop`: scale the shorter side at random and keep a random square. CIFAR-10 and MNIST are never cropped.
    - `flip`: mirror half of the images. Those of MNIST never are.
    - `exact_resize`: resize as ADM did, to the last bit, instead of fast.
    """

    random_crop: bool = True
    flip: bool = True
    exact_resize: bool = False


def open_images(
    data: str,
    *,
    size: int,
    heldout: int,
    augmentation: Augmentation = Augmentation(),
    tokenizer: Any = None,
) -> Opened:
    """Images from files or packed, or tokens or latents precomputed from them, with a held-out part: the official test
    images of CIFAR-10 and MNIST, ImageNet's validation images where they are there, else `heldout` examples that are
    kept from training.

    Precomputed data must have been made with `tokenizer`, if one is given.
    """
    if (named := named_images(data)) is not None:
        train = named.open("train", size=size)
        flip = augmentation.flip and named.images.symmetric
        return Opened(train.with_flip(flip), named.open("heldout", size=size), train)
    exact = augmentation.exact_resize
    augmented = ImageTransform(size, random_crop=augmentation.random_crop, flip=augmentation.flip, exact=exact)
    plain = ImageTransform(size, exact=exact)
    root = existing(data)
    if is_shards(root):
        if open_shards(root).kind == "images":
            return parted(ShardedImages(root, augmented), ShardedImages(root, plain), heldout=heldout)
        return parted_shards(root, tokenizer, heldout=heldout)
    train = open_image_files(root, augmented, split="train")
    if has_split(root, "val"):
        unseen = imagenet(root, "val", plain, classes=train.classes)
        return Opened(train, unseen, train.with_transform(plain))
    return parted(train, train.with_transform(plain), heldout=heldout)


def open_clips(
    data: str, *, shape: tuple[int, ...], heldout: int, stride: int = 1, fold: int = 1, tokenizer: Any = None
) -> Opened:
    """Clips of `shape` (frames, height, width, channels), or tokens precomputed from them, with a held-out part: the
    test list of UCF-101 where it is there, else `heldout` examples that are kept from training.
    """
    root = existing(data)
    if is_shards(root):
        return parted_shards(root, tokenizer, heldout=heldout)
    frames, height, width, _ = shape
    if height != width:
        raise ValueError(f"Videos are cut to squares, and this tokenizer wants clips of {height} × {width} pixels.")
    train = open_videos(root, ClipTransform(frames, stride, height, random_start=True), split="train", fold=fold)
    middle = ClipTransform(frames, stride, height)
    if has_lists(root):
        return Opened(train, open_videos(root, middle, split="heldout", fold=fold), train.with_transform(middle))
    return parted(train, train.with_transform(middle), heldout=heldout)


def open_image_files(root: Path, transform: ImageTransform, *, split: Split) -> ImageSource:
    """Image files: a split of a folder that has splits, a tar archive, or a folder of class folders."""
    if root.is_file():
        return image_tar(root, transform)
    if has_split(root, "train") or has_split(root, "val"):
        return imagenet(root, "train" if split == "train" else "val", transform)
    return image_folder(root, transform)


def open_videos(root: Path, transform: ClipTransform, *, split: Split, fold: int = 1) -> VideoSource:
    """Video files: a list of UCF-101 where its lists are there, else every file of its folder or of any folder of class
    folders. The first time, the length of every file is read, with a bar.
    """
    with tqdm(desc="reading lengths", unit="video", disable=None) as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        if has_lists(root):
            return ucf101(
                root, transform, split="train" if split == "train" else "test", fold=fold, on_progress=progress
            )
        if (root / "UCF-101").is_dir():
            return ucf101(root, transform, split="all", on_progress=progress)
        return video_folder(root, transform, on_progress=progress)


def parted_shards(root: Path, tokenizer: Any, *, heldout: int) -> Opened:
    """Tokens or latents in shards. **Raises:** `DataError` if another tokenizer made them."""
    match open_shards(root).kind:
        case "tokens":
            shards = ShardedTokens(root, tokenizer=tokenizer)
        case "latents":
            shards = ShardedLatents(root, tokenizer=tokenizer)
        case _:
            raise DataError(f"{root} holds packed images; what is needed are tokens: run `elt-zoo precompute` on it.")
    return parted(shards, shards, heldout=heldout)._replace(shards=shards)


def existing(data: str) -> Path:
    """**Raises:** `DataError` if there is nothing at that path, or a set of images where other data are expected."""
    if (named := named_images(data)) is not None:
        raise DataError(f"`{data}` is {named.images.title}, which are images; what was asked for are clips.")
    if not Path(data).exists():
        raise DataError(f"There is no {data}. Give a folder, a tar archive, or the name of a set that is always there.")
    return Path(data)


def is_shards(root: str | Path) -> bool:
    """Whether the folder holds shards that `elt-zoo precompute` wrote."""
    return (Path(root) / "index.json").is_file()


def has_split(root: Path, split: str) -> bool:
    """Whether ImageNet's images of a split are there, unpacked or not."""
    return (root / split).is_dir() or (root / f"ILSVRC2012_img_{split}.tar").is_file()


def has_lists(root: Path) -> bool:
    """Whether UCF-101's official lists lie in the root, or beside or in the folder of videos."""
    places = [root, root / "UCF-101", *([root.parent] if root.name == "UCF-101" else [])]
    return any((place / "ucfTrainTestlist").is_dir() for place in places)


def parted(train: AbstractSource, plain: AbstractSource, *, heldout: int) -> Opened:
    """Keeps `heldout` examples from training, a tenth of all at most."""
    kept, unseen = hold_out(len(train), min(heldout, len(train) // 10))
    if not len(unseen):
        raise DataError(f"{len(train)} examples are too few to keep a tenth of them from training. Use 10 or more.")
    return Opened(Subset(train, kept), Subset(plain, unseen), Subset(plain, kept))


def moving_digits(shape: tuple[int, ...], *, clips: int, heldout: int) -> Opened:
    """Rendered clips of real digits, other digits in the held-out part."""
    frames, size = shape[:2]
    return Opened(
        MovingDigits("train", frames=frames, size=size, length=clips),
        MovingDigits("heldout", frames=frames, size=size, length=heldout, augment=False),
        MovingDigits("train", frames=frames, size=size, length=clips, augment=False),
    )
