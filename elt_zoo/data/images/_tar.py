import logging
import os
import tarfile
import weakref
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import BinaryIO

import numpy as np

from ...storage import atomic_write
from .._messages import some
from .._source import DataError
from ._source import ImageSource, is_image_name
from ._transform import ImageTransform

_LOGGER = logging.getLogger("elt_zoo.data")


class TarFiles:
    """Image files inside a tar archive, or in tar archives inside it, read without unpacking.

    To find them, every header is read once. The positions are kept in a file beside the archive.

    **Raises:** `DataError` if the archive is missing, truncated, compressed or without images.
    """

    def __init__(self, path: Path, index: Path | None = None):
        self._path = path
        if not os.path.isfile(path):
            raise DataError(f"`{path}` does not exist. Expected an uncompressed tar archive of images.")
        try:
            # Read with `os.pread`, which moves no common position: all threads share it.
            self._descriptor = os.open(path, os.O_RDONLY)
        except OSError as error:
            raise DataError(f"`{path}` cannot be read ({error.strerror}).") from error
        weakref.finalize(self, os.close, self._descriptor)
        index = path.with_name(path.name + ".index.npz") if index is None else index
        self._names, self._offsets, self._sizes = _load(path, index) or _scan_and_save(path, index)

    def __len__(self) -> int:
        return len(self._names)

    def read(self, index: int) -> bytes:
        """Returns the bytes of a file."""
        data = os.pread(self._descriptor, int(self._sizes[index]), int(self._offsets[index]))
        if len(data) < self._sizes[index]:
            raise OSError(f"{self._path} has become shorter")
        return data

    def name(self, index: int) -> str:
        """Returns the path of the archive and the path within it."""
        return f"{self._path}/{self.member(index)}"

    def member(self, index: int) -> str:
        """Returns the path within the archive; a file of `cat.tar` is in `cat`."""
        return os.fsdecode(self._names[index])


def image_tar(
    path: str | Path,
    transform: ImageTransform,
    *,
    classes: Sequence[str] | None = None,
    names: Mapping[str, str] | None = None,
    index: Path | None = None,
) -> ImageSource:
    """Reads images from a tar archive without unpacking it. The archive holds one folder per class, or one tar archive
    per class as ImageNet's.

    **Arguments:**

    - `path`: an uncompressed tar archive.
    - `transform`, `classes`, `names`: as in [`image_folder`][elt_zoo.data.image_folder].
    - `index`: the file that keeps the positions of the images, so that the archive is searched once. Default:
      `<archive>.index.npz` beside it. It is written again when the archive has changed.

    **Raises:** `DataError` if the archive is missing, truncated or compressed, or has no images in classes.
    """
    files = TarFiles(Path(path), index)
    members = [files.member(number) for number in range(len(files))]
    class_of_each = [PurePosixPath(member).parent.name for member in members]
    if "" in class_of_each:
        loose = [member for member, name in zip(members, class_of_each, strict=True) if not name]
        raise DataError(
            f"`image_tar({str(path)!r})`: {len(loose)} images are in no class: {some(loose)}. Expected one folder or "
            "one tar per class, such as cat/1.jpg or cat.tar."
        )
    return ImageSource(files, class_of_each, transform, classes=classes, names=names)


_Index = tuple[np.ndarray, np.ndarray, np.ndarray]


def _stamp(path: Path) -> np.ndarray:
    status = path.stat()
    return np.asarray([status.st_size, status.st_mtime_ns])


def _load(path: Path, index: Path) -> _Index | None:
    """Returns the result of an earlier search if the archive is still the same."""
    try:
        with index.open("rb") as file, np.load(file, allow_pickle=False) as saved:
            if np.array_equal(saved["stamp"], _stamp(path)):
                return saved["names"], saved["offsets"], saved["sizes"]
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile):
        pass  # not there, or not whole: it is written again
    return None


def _scan_and_save(path: Path, index: Path) -> _Index:
    stamp = _stamp(path)
    with path.open("rb") as file:
        try:
            found = sorted(_images(file, 0, int(stamp[0]), ""))
        except (tarfile.TarError, EOFError) as error:
            raise DataError(
                f"`{path}` is no complete, uncompressed tar archive ({error}). Unpack it if it is compressed, fetch it "
                "again if it is cut off."
            ) from error
    if not found:
        raise DataError(f"`{path}` holds no images.")
    names, offsets, sizes = zip(*found, strict=True)
    arrays = np.asarray(names), np.asarray(offsets, np.int64), np.asarray(sizes, np.int64)
    try:
        with atomic_write(index) as part, part.open("wb") as out:
            np.savez(out, stamp=stamp, names=arrays[0], offsets=arrays[1], sizes=arrays[2])
    except OSError as error:
        _LOGGER.warning(
            "cannot keep what was found in %s (%s), so every start will search it again; give a place with `index`",
            path,
            error,
        )
    return arrays


def _images(file: BinaryIO, start: int, end: int, prefix: str) -> Iterator[tuple[bytes, int, int]]:
    """Yields path, offset and size of each image in the archive from `start` to `end` of a file."""
    file.seek(start)
    # `tarfile` counts offsets from the start of the file, also where the archive begins further on.
    with tarfile.TarFile(fileobj=file, mode="r") as archive:
        for member in archive:
            after = member.offset_data + member.size
            if after > end:
                raise tarfile.ReadError(f"{member.name} goes on past its end")
            path = PurePosixPath(prefix + member.name)
            if member.isfile() and path.suffix == ".tar":
                yield from _images(file, member.offset_data, after, f"{path.with_suffix('')}/")
            elif member.isfile() and is_image_name(path.name):
                yield os.fsencode(str(path)), member.offset_data, member.size
        # It takes a damaged header for the end, which is a block of zeros.
        file.seek(archive.offset)
        if any(file.read(min(tarfile.BLOCKSIZE, end - archive.offset))):
            raise tarfile.ReadError(f"no header at byte {archive.offset}")
