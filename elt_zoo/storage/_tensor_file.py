import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import jax.numpy as jnp
import numpy as np

BFLOAT16 = np.dtype(jnp.bfloat16)


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
        return math.prod(self.shape) * self.dtype.itemsize

    def read(self) -> np.ndarray:
        array = aligned_empty(self.shape, self.dtype)
        self.fill(bytes_of(array))
        return array


class TensorFile(Mapping[str, np.ndarray]):
    """The tensors of a file by name. `file[name]` reads one; nothing is read before."""

    def __init__(self, path: Path, tensors: Mapping[str, StoredTensor]):
        self.path = path
        self._tensors = dict(tensors)

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

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, without reading it.

        **Raises:** [`WeightsError`][elt_zoo.storage.WeightsError] if the file has no such tensor.
        """
        if name not in self._tensors:
            some = ", ".join(list(self._tensors)[:5]) or "none"
            raise WeightsError(f"{self.path} has no tensor {name!r}. It has {len(self)} tensors: {some}, …")
        return self._tensors[name].shape

    def under(self, prefix: str) -> "TensorFile":
        """Only the tensors whose names start with `prefix`, without it."""
        return TensorFile(
            self.path,
            {name.removeprefix(prefix): t for name, t in self._tensors.items() if name.startswith(prefix)},
        )

    def replacing(self, changes: Mapping[str, np.ndarray | None]) -> "TensorFile":
        """With some tensors added or replaced, or dropped where the change is `None`."""
        tensors = self._tensors | {name: in_memory(a) for name, a in changes.items() if a is not None}
        return TensorFile(self.path, {name: t for name, t in tensors.items() if changes.get(name, True) is not None})


def in_memory(array: np.ndarray) -> StoredTensor:
    array = np.ascontiguousarray(array).reshape(array.shape)

    def fill(buffer: memoryview) -> None:
        buffer[:] = bytes_of(array)

    return StoredTensor(array.shape, array.dtype, fill)


def in_file(path: Path, name: str, offset: int, shape: tuple[int, ...], dtype: np.dtype) -> StoredTensor:
    """A tensor whose bytes lie in the file as they are."""

    def fill(buffer: memoryview) -> None:
        with path.open("rb", buffering=0) as file:
            file.seek(offset)
            done = 0
            while done < len(buffer):
                count = file.readinto(buffer[done:])
                if not count:
                    raise WeightsError(f"{path} ends within the tensor {name!r}: it was changed while it was read.")
                done += count

    return StoredTensor(shape, dtype, fill)


def aligned_empty(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """An uninitialised array at a multiple of 64 bytes, which JAX on a CPU takes over without a copy."""
    size = math.prod(shape) * dtype.itemsize
    raw = np.empty(size + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + size].view(dtype).reshape(shape)


def bytes_of(array: np.ndarray) -> memoryview:
    """The memory of a C-contiguous array."""
    return array.reshape(-1).view(np.uint8).data
