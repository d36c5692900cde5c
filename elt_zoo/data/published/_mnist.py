from pathlib import Path
from typing import Literal

import numpy as np

from ...storage import PublishedFile
from .._image_arrays import ImageArrays
from .._source import DataError
from ._idx import read_idx
from ._image_set import ImageSet
from ._size import resized

CLASSES = tuple("0123456789")
_SIDE = 28
_NAMES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "heldout": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
_FETCH = "Fetch the files with `elt-zoo fetch --data mnist`, or give the path of their folder"


def mnist(
    root: str | Path | None,
    split: Literal["train", "heldout"],
    *,
    flip: bool = False,
    size: int | None = None,
) -> ImageArrays:
    """Reads MNIST from its official files into memory: 60,000 training and 10,000 test images of handwritten digits,
    28 × 28 grey pixels.

    **Arguments:**

    - `root`: the folder of `train-images-idx3-ubyte.gz` and the others, packed or not; `None` for
      `~/.cache/elt_zoo/mnist`, where [`fetch_images`][elt_zoo.data.fetch_images] puts them.
    - `split`: the official training images, or as "heldout" the official test images.
    - `flip`: mirror half of the images, which no longer are digits then.
    - `size`: 14, 7, 4, 2 or 1 to average pixels, up to 56 for a black border; default 28.

    **Raises:** `ValueError` for another split; `DataError` if there are no such files, or they are damaged.

    ??? cite "Reference"

        LeCun, Bottou, Bengio, Haffner, *Gradient-Based Learning Applied to Document Recognition* (1998).
    """
    call = f"`mnist({None if root is None else str(root)!r}, {split!r})`"
    if split not in _NAMES:
        raise ValueError(f"{call}: the splits are 'train' and 'heldout'.")
    folder = MNIST.folder if root is None else Path(root)
    files = [_file(folder, name) for name in _NAMES[split]]
    missing = [name for name, file in zip(_NAMES[split], files, strict=True) if file is None]
    if missing:
        raise DataError(f"{call}: {folder} lacks {' and '.join(missing)}, packed (.gz) or not. {_FETCH}.")
    pixels, labels = (read_idx(file) for file in files if file is not None)
    if pixels.shape[1:] != (_SIDE, _SIDE) or labels.shape != pixels.shape[:1] or not len(labels):
        raise DataError(
            f"{call}: {files[0]} holds an array {list(pixels.shape)} and {files[1]} one of {list(labels.shape)}; "
            f"expected [images, {_SIDE}, {_SIDE}] and [images]. {_FETCH}."
        )
    if labels.max() >= len(CLASSES):
        raise DataError(f"{call}: {files[1]} holds the label {labels.max()}; MNIST has 0 to 9. {_FETCH}.")
    images = resized(pixels[..., None], size, call, border=True)
    return ImageArrays(images, labels.astype(np.int32), CLASSES, flip=flip, title=f"mnist {split} image")


def _file(folder: Path, name: str) -> Path | None:
    return next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)


def _holds(path: Path) -> bool:
    return any(_file(path, name) is not None for names in _NAMES.values() for name in names)


MNIST = ImageSet(
    name="mnist",
    title="MNIST",
    shape=(_SIDE, _SIDE, 1),
    symmetric=False,
    address="https://storage.googleapis.com/cvdf-datasets/mnist",
    files=(
        PublishedFile(
            "train-images-idx3-ubyte.gz", 9_912_422, "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609"
        ),
        PublishedFile(
            "train-labels-idx1-ubyte.gz", 28_881, "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c"
        ),
        PublishedFile(
            "t10k-images-idx3-ubyte.gz", 1_648_877, "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6"
        ),
        PublishedFile(
            "t10k-labels-idx1-ubyte.gz", 4_542, "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6"
        ),
    ),
    holds=_holds,
    open=mnist,
)
