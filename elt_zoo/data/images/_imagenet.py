import gzip
import importlib.resources
import io
import os
import re
import tarfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Literal

import numpy as np

from ..._optional import optional_import
from .._class_folders import describe, list_folder
from .._source import DataError
from ._folder import FolderFiles, image_folder
from ._source import ImageSource, is_image_name
from ._tar import TarFiles, image_tar
from ._transform import ImageTransform

_DEVKIT = "ILSVRC2012_devkit_t12"
_GROUND_TRUTH = "data/ILSVRC2012_validation_ground_truth.txt"
_META = "data/meta.mat"


def imagenet_classes() -> Mapping[str, str]:
    """Returns the 1,000 classes of ImageNet (ILSVRC 2012) as WordNet id → words, in the order of the labels that all
    published models use: sorted by id.
    """
    text = importlib.resources.files("elt_zoo.data.images").joinpath("imagenet_classes.txt").read_text()
    return dict(line.split("\t") for line in text.splitlines() if not line.startswith("#"))


def imagenet(
    root: str | Path,
    split: Literal["train", "val"],
    transform: ImageTransform,
    *,
    classes: Sequence[str] | None = None,
    index: Path | None = None,
) -> ImageSource:
    """Reads ImageNet (ILSVRC 2012), unpacked or in its original archives.

    It reads the first of these that exists:

    | split | in `root` |
    |---|---|
    | train | `train/n01440764/*.JPEG` |
    | train | `ILSVRC2012_img_train.tar` |
    | val | `val/n01440764/*.JPEG` |
    | val | `val/ILSVRC2012_val_*.JPEG` and the development kit |
    | val | `ILSVRC2012_img_val.tar` and the development kit |

    The development kit is `ILSVRC2012_devkit_t12.tar.gz`, or the folder `ILSVRC2012_devkit_t12` from it. It numbers
    classes in another order, which is translated: labels are sorted by WordNet id, and `class_names` are the words. If
    only some classes exist, the labels number these.

    **Arguments:**

    - `root`: the folder.
    - `split`: training or validation images.
    - `transform`: how images are decoded and cropped.
    - `classes`: WordNet ids in the order of their labels, by default the sorted ids that exist; see
      [`image_folder`][elt_zoo.data.image_folder].
    - `index`: see [`image_tar`][elt_zoo.data.image_tar].

    **Raises:** `ValueError` for another split. `DataError` if none of the above exists, or it is not complete.
    """
    if split not in ("train", "val"):
        raise ValueError(f"`imagenet(split={split!r})`: the splits are 'train' and 'val'.")
    root = Path(root)
    call = f"`imagenet({str(root)!r}, {split!r})`"
    archive = root / f"ILSVRC2012_img_{split}.tar"
    expected = f"Expected {split}/<WordNet id>/*.JPEG or {archive.name}"
    if split == "val":
        expected += f", or val/ILSVRC2012_val_*.JPEG; the last two with {_DEVKIT}.tar.gz or the folder {_DEVKIT}"
    found = list_folder(root, call, expected)
    options = {"classes": classes, "names": imagenet_classes()}
    if split in found[0]:
        folders, files = list_folder(root / split, call, expected)
        images = [name for name in files if is_image_name(name)]
        if folders or split == "train" or not images:
            return image_folder(root / split, transform, **options)
        return ImageSource(FolderFiles(root / split, images), _validation(root, images, call), transform, **options)
    if archive.name not in found[1]:
        raise DataError(f"{call}: no such data. {expected}; found {describe(*found)}.")
    if split == "train":
        return image_tar(archive, transform, index=index, **options)
    tar = TarFiles(archive, index)
    images = [tar.member(number) for number in range(len(tar))]
    return ImageSource(tar, _validation(root, images, call), transform, **options)


def _validation(root: Path, images: Sequence[str], call: str) -> list[str]:
    """Returns the WordNet id of each image by the number in its name: line n of the ground truth is of image n."""
    truth = [int(line) for line in _devkit_file(root, _GROUND_TRUTH, call).split()]
    meta = io.BytesIO(_devkit_file(root, _META, call))
    synsets = np.atleast_1d(optional_import("scipy.io").loadmat(meta, squeeze_me=True)["synsets"])
    # The classes are those numbered 1 to 1,000; then come their hypernyms.
    wordnet_id = {int(synset["ILSVRC2012_ID"]): str(synset["WNID"]) for synset in synsets}
    ids = []
    for image in images:
        match = re.fullmatch(r"ILSVRC2012_val_(\d{8})", PurePosixPath(image).stem)
        if match is None or not 1 <= int(match[1]) <= len(truth):
            raise DataError(
                f"{call}: {image} is none of the validation images ILSVRC2012_val_00000001.JPEG to "
                f"{len(truth):08}, whose classes the development kit lists."
            )
        ids.append(wordnet_id[truth[int(match[1]) - 1]])
    return ids


def _devkit_file(root: Path, name: str, call: str) -> bytes:
    folder, archive = root / _DEVKIT, root / f"{_DEVKIT}.tar.gz"
    try:
        if os.path.isfile(folder / name):
            return (folder / name).read_bytes()
        if os.path.isfile(archive):
            with tarfile.open(archive) as tar:
                member = tar.extractfile(f"{_DEVKIT}/{name}")
                assert member is not None  # it is a file
                return member.read()
    except (KeyError, EOFError, zlib.error, tarfile.TarError, gzip.BadGzipFile) as error:
        raise DataError(f"{call}: {archive} is damaged ({error}). Fetch it again.") from error
    except OSError as error:
        raise DataError(f"{call}: {error.filename or archive} cannot be read ({error.strerror or error}).") from error
    raise DataError(
        f"{call}: the validation images do not say their classes. Expected the development kit, {archive} or "
        f"{folder / name}, or the images in one folder per class."
    )
