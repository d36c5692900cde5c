import dataclasses
import io
import math
import os
import threading
import weakref
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import jax.numpy as jnp
import numpy as np

BFLOAT16 = np.dtype(jnp.bfloat16)
_MAX_AXES = 32
_MAX_NAME = 1000
# Checksums are taken while a piece is still in the processor's cache.
_PIECE = 1 << 18


class WeightsError(RuntimeError):
    """A file of weights that cannot be used: damaged, of an unknown or unsafe format, newer than this version, or not
    of the network that was asked for. The message names the file and the tensors.
    """


@dataclasses.dataclass(frozen=True)
class StoredTensor:
    """A tensor that has not been read yet. `fill` writes its bytes, in row-major order, into a buffer of their size."""

    shape: tuple[int, ...]
    dtype: np.dtype
    fill: Callable[[memoryview], None]

    @property
    def num_bytes(self) -> int:
        """Bytes of its numbers."""
        return math.prod(self.shape) * self.dtype.itemsize

    def read(self) -> np.ndarray:
        """The tensor, in memory of its own.

        **Raises:** [`WeightsError`][elt_zoo.storage.WeightsError] if its bytes are damaged.
        """
        array = aligned_empty(self.shape, self.dtype)
        self.fill(bytes_of(array))
        return array


# What checks the types of arguments would read a tensor to look at its type.
_Tensors = Mapping[str, np.ndarray] if TYPE_CHECKING else Mapping


class TensorFile(_Tensors):
    """The tensors of a file by name. `file[name]` reads one; nothing is read before.

    It stays the file that was opened, also when another takes its place.

    **Attributes:** `path`: of the file; `metadata`: the text that a safetensors file carries by name, else empty.
    """

    def __init__(
        self,
        path: Path,
        tensors: Mapping[str, StoredTensor],
        metadata: Mapping[str, str] | None = None,
        *,
        file: "OpenFile | None" = None,
    ):
        self.path = path
        self.metadata = dict(metadata or {})
        self._tensors = dict(tensors)
        self._file = file

    def __getitem__(self, name: str) -> np.ndarray:
        return self._tensors[name].read()

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    # `Mapping` would read the tensor to answer.
    def __contains__(self, name: object) -> bool:
        return name in self._tensors

    def stored(self, name: str) -> StoredTensor:
        """Shape and dtype of a tensor, without reading it."""
        return self._tensors[name]

    def shape(self, name: str, *, axes: int | None = None) -> tuple[int, ...]:
        """Shape of a tensor, without reading it.

        **Arguments:** `name`; `axes`: how many it must have, none of them empty.

        **Raises:** [`WeightsError`][elt_zoo.storage.WeightsError] if the file has no such tensor, or it has other axes.
        """
        if name not in self._tensors:
            some = ", ".join(list(self._tensors)[:5]) or "none"
            raise WeightsError(f"{self.path} has no tensor {name!r}. It has {len(self)} tensors: {some}, …")
        shape = self._tensors[name].shape
        if axes is not None and (len(shape) != axes or 0 in shape):
            raise WeightsError(f"{self.path}: {name} is of shape {shape}, expected {axes} axes, none of them empty.")
        return shape

    def under(self, prefix: str) -> "TensorFile":
        """Only the tensors whose names start with `prefix`, without it."""
        tensors = {name.removeprefix(prefix): t for name, t in self._tensors.items() if name.startswith(prefix)}
        return TensorFile(self.path, tensors, self.metadata, file=self._file)

    def replacing(self, changes: Mapping[str, np.ndarray | None]) -> "TensorFile":
        """With some tensors added or replaced, or dropped where the change is `None`."""
        tensors = self._tensors | {name: in_memory(a) for name, a in changes.items() if a is not None}
        tensors = {name: t for name, t in tensors.items() if changes.get(name, True) is not None}
        return TensorFile(self.path, tensors, self.metadata, file=self._file)

    def is_current(self) -> bool:
        """Whether the file that was opened is still the one at its path."""
        try:
            return self._file is None or os.path.samestat(self.path.stat(), self._file.status)
        except OSError:
            return False


class OpenFile:
    """A file that is read at any place, by any thread, and closed when nobody refers to it any more."""

    def __init__(self, path: Path):
        self.path = path
        self._file = io.FileIO(path)
        weakref.finalize(self, self._file.close)
        self._lock = threading.Lock()
        self.status = os.fstat(self._file.fileno())

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return self.status.st_size

    def readinto(self, start: int, buffer: memoryview) -> int:
        """Fills a buffer from a place on, as far as the file goes. **Returns:** the number of bytes."""
        done = 0
        try:
            with self._lock:
                self._file.seek(start)
                while done < len(buffer) and (count := self._file.readinto(buffer[done:])):
                    done += count
        except OSError as error:
            raise WeightsError(f"{self.path} cannot be read: {error}") from error
        return done

    def read(self, start: int, count: int) -> bytes:
        """Some bytes, or fewer at the end of the file."""
        buffer = bytearray(max(0, min(count, self.size - start)))
        return bytes(buffer[: self.readinto(start, memoryview(buffer))])

    def fill(self, start: int, buffer: memoryview, name: str, crc32: int = 0) -> int:
        """Fills a buffer. **Returns:** the CRC-32 of its bytes, as the continuation of a given one.

        **Raises:** `WeightsError` if the file ends before.
        """
        for begin in range(0, len(buffer), _PIECE):
            piece = buffer[begin : begin + _PIECE]
            if self.readinto(start + begin, piece) < len(piece):
                raise WeightsError(f"{self.path} ends within the tensor {name!r}: it was changed while it was read.")
            crc32 = zlib.crc32(piece, crc32)
        return crc32


def in_memory(array: np.ndarray) -> StoredTensor:
    """An array as a tensor of a file."""
    array = np.ascontiguousarray(array).reshape(array.shape)

    def fill(buffer: memoryview) -> None:
        buffer[:] = bytes_of(array)

    return StoredTensor(array.shape, array.dtype, fill)


def in_file(
    file: OpenFile,
    name: str,
    start: int,
    shape: tuple[int, ...],
    dtype: np.dtype,
    *,
    crc32: int | None = None,
    crc32_before: int = 0,
) -> StoredTensor:
    """A tensor whose bytes lie in the file as they are, with the CRC-32 of what went before and of it, if known."""

    def fill(buffer: memoryview) -> None:
        found = file.fill(start, buffer, name, crc32_before)
        if crc32 is not None and found != crc32:
            raise damaged(file.path, name)

    return StoredTensor(shape, dtype, fill)


def damaged(path: Path, name: str) -> WeightsError:
    """The error for bytes that are not those that were written."""
    return WeightsError(
        f"{path}: the tensor {name!r} is damaged: its checksum does not match. Restore the file or get it again."
    )


def check_tensor(path: Path, name: str, shape: tuple[int, ...], dtype: np.dtype) -> None:
    """**Raises:** `WeightsError` for a name that cannot be shown, or for a shape that no array can have."""
    if len(name) > _MAX_NAME or not name.isprintable():
        raise WeightsError(f"{path} has a tensor with a name that is no plain text: {name[:80]!r}.")
    if not all(type(size) is int and size >= 0 for size in shape):
        raise WeightsError(f"{path}: the tensor {name!r} is damaged: its shape is {str(shape)[:80]}.")
    # NumPy counts bytes in 63 bits even where one axis is empty.
    if len(shape) > _MAX_AXES or math.prod(max(size, 1) for size in shape) * dtype.itemsize >= 1 << 62:
        raise WeightsError(f"{path}: the tensor {name!r} is damaged: no array has the shape {str(shape)[:80]}.")


def aligned_empty(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """An uninitialised array at a multiple of 64 bytes, which JAX on a CPU takes over without a copy."""
    size = math.prod(shape) * dtype.itemsize
    raw = np.empty(size + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + size].view(dtype).reshape(shape)


def bytes_of(array: np.ndarray) -> memoryview:
    """The memory of a C-contiguous array."""
    return array.reshape(-1).view(np.uint8).data
