import math
import os
import tarfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Int, UInt8

from ...storage import PickledArray, PickleError, PublishedFile, read_numpy_pickle
from .._image_arrays import ImageArrays
from .._messages import some
from .._source import DataError
from ._image_set import ImageSet
from ._size import resized

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
IMAGES_OF_A_FILE = 10_000
_SHAPE = (3, 32, 32)
_PIXELS = math.prod(_SHAPE)
_NAMES = {"train": tuple(f"data_batch_{number}" for number in range(1, 6)), "heldout": ("test_batch",)}
_MOST_MEMBERS = 100
# The files of 10,000 images have 31 MB, and a damaged archive may claim anything.
_LARGEST = 64 << 20

_Part = tuple[UInt8[np.ndarray, "examples 3072"], Int[np.ndarray, " examples"]]


def _from_binary(path: str, content: bytes) -> _Part:
    """One byte for the label, then the pixels."""
    record = 1 + _PIXELS
    if len(content) != IMAGES_OF_A_FILE * record:
        raise DataError(
            f"{path} has {len(content):,} bytes; {IMAGES_OF_A_FILE:,} images of {record:,} are "
            f"{IMAGES_OF_A_FILE * record:,}. It is cut off or something else: fetch it again."
        )
    rows = np.frombuffer(content, np.uint8).reshape(IMAGES_OF_A_FILE, record)
    return rows[:, 1:], rows[:, 0].astype(np.int32)


def _from_pickle(path: str, content: bytes) -> _Part:
    """A table with an array of pixels and a list of labels, as Python 2 pickled it."""
    try:
        table = read_numpy_pickle(content)
        data, labels = (table.get(key) for key in ("data", "labels")) if isinstance(table, dict) else (None, None)
        if not isinstance(data, PickledArray) or not isinstance(labels, list):
            raise DataError(f"{path} is a pickle without the `data` and `labels` of CIFAR-10: fetch it again.")
        pixels = data.read()
    except PickleError as error:
        raise DataError(f"{path}: {error} Fetch it again, from {_ADDRESS}.") from error
    if pixels.shape != (IMAGES_OF_A_FILE, _PIXELS) or len(labels) != IMAGES_OF_A_FILE:
        raise DataError(
            f"{path} holds pixels of shape {pixels.shape} and {len(labels)} labels; expected "
            f"({IMAGES_OF_A_FILE}, {_PIXELS}) and {IMAGES_OF_A_FILE}. Fetch it again."
        )
    if not all(type(label) is int and 0 <= label < len(CLASSES) for label in labels):
        raise DataError(f"{path} holds labels other than 0 to {len(CLASSES) - 1}. Fetch it again.")
    return pixels, np.asarray(labels, np.int32)


class _Version(NamedTuple):
    archive: str
    folder: str
    suffix: str
    read: Callable[[str, bytes], _Part]


_VERSIONS = (
    _Version("cifar-10-binary.tar.gz", "cifar-10-batches-bin", ".bin", _from_binary),
    _Version("cifar-10-python.tar.gz", "cifar-10-batches-py", "", _from_pickle),
)
_ADDRESS = "https://www.cs.toronto.edu/~kriz"
_EXPECTED = "Expected " + ", ".join(f"{each.archive} or its unpacked folder {each.folder}" for each in _VERSIONS)
_FETCH = "Fetch the files with `elt-zoo fetch --data cifar10`, or give the path of the archive or of its folder"


def cifar10(
    root: str | Path | None,
    split: Literal["train", "heldout"],
    *,
    flip: bool = False,
    size: int | None = None,
) -> ImageArrays:
    """Reads CIFAR-10 from its official files into memory: 50,000 training and 10,000 test images of 10 classes, 32 × 32
    RGB pixels.

    It takes the binary version, `cifar-10-binary.tar.gz`, and the one for Python, `cifar-10-python.tar.gz`, each packed
    or unpacked. Pickled code does not run: of a pickle, plain data are read and everything else is refused.

    **Arguments:**

    - `root`: the archive, the folder from it, or a folder that holds one of these; `None` for
      `~/.cache/elt_zoo/cifar10`, where [`fetch_images`][elt_zoo.data.fetch_images] puts them.
    - `split`: the official training images, or as "heldout" the official test images.
    - `flip`: mirror half of the images.
    - `size`: 16, 8, 4, 2 or 1 to average pixels; default 32.

    **Raises:** `ValueError` for another split; `DataError` if there are no such files, or they are damaged.

    ??? cite "Reference"

        Krizhevsky, *Learning Multiple Layers of Features from Tiny Images* (2009).
    """
    call = f"`cifar10({None if root is None else str(root)!r}, {split!r})`"
    if split not in _NAMES:
        raise ValueError(f"{call}: the splits are 'train' and 'heldout'.")
    path = CIFAR10.folder if root is None else Path(root)
    found = _find(path)
    if found is None:
        raise DataError(f"{call}: {_missing(path)}. {_EXPECTED}. {_FETCH}.")
    version, place = found
    wanted = [name + version.suffix for name in _NAMES[split]]
    contents = _packed(place, wanted, call) if place.is_file() else _unpacked(place, wanted, call)
    parts = [version.read(f"{place / name}", contents[name]) for name in wanted]
    for name, (_, labels) in zip(wanted, parts, strict=True):
        if labels.max() >= len(CLASSES):
            raise DataError(f"{place / name} holds the label {labels.max()}; CIFAR-10 has 0 to 9. Fetch it again.")
    planes = np.concatenate([pixels for pixels, _ in parts]).reshape(-1, *_SHAPE)
    images = np.ascontiguousarray(planes.transpose(0, 2, 3, 1))
    labels = np.concatenate([labels for _, labels in parts])
    return ImageArrays(resized(images, size, call), labels, CLASSES, flip=flip, title=f"cifar10 {split} image")


def _find(path: Path) -> tuple[_Version, Path] | None:
    """The version that a path has, and the archive or the folder of its files: the binary one if both are there,
    unpacked ones first, as they are faster.
    """
    for version in _VERSIONS:
        if path.name == version.archive and path.is_file():
            return version, path
        for place in (path, path / version.folder):
            if any((place / (name + version.suffix)).is_file() for names in _NAMES.values() for name in names):
                return version, place
        if (path / version.archive).is_file():
            return version, path / version.archive
    return None


def _missing(path: Path) -> str:
    if path.is_dir():
        return f"{path} holds no CIFAR-10, but {some(sorted(os.listdir(path))) or 'nothing'}"
    return f"{path} is no archive of CIFAR-10" if path.exists() else f"there is no {path}"


def _unpacked(folder: Path, wanted: list[str], call: str) -> Mapping[str, bytes]:
    contents = {}
    for name in wanted:
        try:
            if (folder / name).stat().st_size > _LARGEST:
                raise DataError(f"{call}: {folder / name} is far too large for CIFAR-10. Fetch it again.")
            contents[name] = (folder / name).read_bytes()
        except FileNotFoundError as error:
            raise DataError(f"{call}: {folder} lacks {name}. Unpack the whole archive.") from error
        except OSError as error:
            raise DataError(f"{call}: {folder / name} cannot be read ({error.strerror}).") from error
    return contents


def _packed(archive: Path, wanted: list[str], call: str) -> Mapping[str, bytes]:
    contents: dict[str, bytes] = {}
    try:
        with tarfile.open(archive, "r:gz") as tar:  # never rewound, so nothing is decompressed twice
            for member in _bounded(tar, archive, call):
                name = PurePosixPath(member.name).name
                if name in wanted and member.isfile():
                    file = tar.extractfile(member)
                    assert file is not None  # it is a file
                    contents[name] = file.read()
                    if len(contents) == len(wanted):
                        return contents
    except (EOFError, zlib.error, tarfile.TarError) as error:
        raise DataError(f"{call}: {archive} is cut off or damaged ({error}). {_FETCH}.") from error
    except OSError as error:  # of the file, or of gzip
        raise DataError(f"{call}: {archive} cannot be read ({error.strerror or error}).") from error
    missing = [name for name in wanted if name not in contents]
    raise DataError(f"{call}: {archive} lacks {some(missing)}: it is cut off or another archive. {_FETCH}.")


def _bounded(tar: tarfile.TarFile, archive: Path, call: str) -> Iterator[tarfile.TarInfo]:
    """The members, of a number and sizes that CIFAR-10 may have: to pass a member is to decompress it."""
    for count, member in enumerate(tar):
        if count >= _MOST_MEMBERS or member.size > _LARGEST:
            raise DataError(f"{call}: {archive} holds more than CIFAR-10, so it is another archive. {_FETCH}.")
        yield member


CIFAR10 = ImageSet(
    name="cifar10",
    title="CIFAR-10",
    shape=(32, 32, 3),
    symmetric=True,
    address=_ADDRESS,
    files=(
        PublishedFile(
            "cifar-10-binary.tar.gz", 170_052_171, "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"
        ),
    ),
    holds=lambda path: _find(path) is not None,
    open=cifar10,
)
