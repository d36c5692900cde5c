import collections
import io
import math
import pickle
import zipfile
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from ._tensor_file import BFLOAT16, StoredTensor, TensorFile, WeightsError, in_file
from ._zip import Archive

_STORAGES = {
    "DoubleStorage": np.dtype("<f8"),
    "FloatStorage": np.dtype("<f4"),
    "HalfStorage": np.dtype("<f2"),
    "BFloat16Storage": BFLOAT16,
    "LongStorage": np.dtype("<i8"),
    "IntStorage": np.dtype("<i4"),
    "ShortStorage": np.dtype("<i2"),
    "CharStorage": np.dtype("i1"),
    "ByteStorage": np.dtype("u1"),
    "BoolStorage": np.dtype("?"),
}
_MAX_TENSORS = 1_000_000
_MAX_DEPTH = 32


class _Storage(NamedTuple):
    key: str
    dtype: np.dtype
    size: int


class _Tensor(NamedTuple):
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def read_torch_zip(archive: Archive) -> TensorFile:
    """Reads what `torch.save` has written since PyTorch 1.6: a zip file with a pickle of the structure and one raw
    entry per storage. PyTorch is not needed, and no code of the pickle is executed: only the functions that describe
    a tensor are known, and they are ours.

    Tensors of nested tables are named by their keys joined with `/`, such as `ema/blocks.0.mlp.fc1.weight`. What is not
    a tensor is left out.
    """
    path = archive.path
    entries = {entry.filename: entry for entry in archive.entries}
    pickles = [name for name in entries if name == "data.pkl" or name.endswith("/data.pkl")]
    if len(pickles) != 1 or len(entries) != len(archive.entries):
        raise WeightsError(f"{path} is a zip file, but neither NumPy's nor PyTorch's: it has {len(pickles)} data.pkl.")
    root = pickles[0].removesuffix("data.pkl")
    if f"{root}code/" in {name[: len(root) + 5] for name in entries}:
        raise WeightsError(f"{path} is a TorchScript program. Save the `state_dict()` of the module instead.")
    order = archive.read(entries[f"{root}byteorder"]) if f"{root}byteorder" in entries else b"little"
    if order != b"little":
        raise WeightsError(f"{path} is big-endian. Save it on a little-endian machine.")
    try:
        tree = _Unpickler(path, archive.read(entries[pickles[0]])).load()
    except WeightsError:
        raise
    except Exception as error:  # A damaged pickle can raise almost anything.
        raise WeightsError(f"{path}: its pickle is damaged: {error!r}") from error
    found: dict[str, _Tensor] = {}
    _collect(archive, tree, "", 0, found)
    return TensorFile(path, {name: _stored(archive, entries, root, name, tensor) for name, tensor in found.items()})


class _Unpickler(pickle.Unpickler):
    """Knows the few names that describe tensors, and refuses every other one before anything is called."""

    def __init__(self, path, content: bytes):
        super().__init__(io.BytesIO(content), encoding="utf-8")
        self.path = path

        # Made anew for every file: a pickle may set attributes of what it gets hold of.
        class Ignored:
            """Stands for training arguments and the like."""

        def rebuild(storage, offset, shape, strides, *_):
            return _Tensor(storage, offset, tuple(shape), tuple(strides))

        def rebuild_parameter(tensor, *_):
            return tensor

        self.known: dict[tuple[str, str], Any] = {
            ("collections", "OrderedDict"): collections.OrderedDict,
            ("argparse", "Namespace"): Ignored,
            ("torch._utils", "_rebuild_tensor_v2"): rebuild,
            ("torch._utils", "_rebuild_parameter"): rebuild_parameter,
        }

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in _STORAGES:
            return _STORAGES[name]
        if (module, name) not in self.known:
            raise WeightsError(
                f"{self.path}: its pickle asks for {module}.{name}, which could run code, so the file is refused. "
                "Only plain tensors in tables are read: save a `state_dict()`, or better a safetensors file."
            )
        return self.known[module, name]

    def persistent_load(self, pid: Any) -> _Storage:
        kind, dtype, key, _, size = pid
        if kind != "storage" or not isinstance(dtype, np.dtype) or type(size) is not int:
            raise WeightsError(f"{self.path}: its pickle refers to an unknown kind of storage: {pid!r}.")
        return _Storage(str(key), dtype, size)


def _collect(archive: Archive, tree: Any, prefix: str, depth: int, found: dict[str, _Tensor]) -> None:
    if depth > _MAX_DEPTH or len(found) > _MAX_TENSORS:
        raise WeightsError(f"{archive.path} nests its tensors without end.")
    if isinstance(tree, _Tensor):
        found[prefix.removesuffix("/")] = tree
    elif isinstance(tree, Mapping):
        for key, value in tree.items():
            _collect(archive, value, f"{prefix}{key}/", depth + 1, found)
    elif isinstance(tree, list):
        for index, value in enumerate(tree):
            _collect(archive, value, f"{prefix}{index}/", depth + 1, found)


def _stored(
    archive: Archive, entries: Mapping[str, zipfile.ZipInfo], root: str, name: str, tensor: _Tensor
) -> StoredTensor:
    path, (storage, offset, shape, strides) = archive.path, tensor
    entry = entries.get(f"{root}data/{storage.key}") if isinstance(storage, _Storage) else None
    if entry is None:
        raise WeightsError(f"{path}: the storage of the tensor {name!r} is missing.")
    itemsize = storage.dtype.itemsize
    numbers = (offset, *shape, *strides)
    if len(shape) != len(strides) or not all(type(number) is int and number >= 0 for number in numbers):
        raise WeightsError(f"{path}: the tensor {name!r} is damaged: {numbers} are not its offset, shape and strides.")
    last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    if entry.file_size != storage.size * itemsize or (math.prod(shape) and last >= storage.size):
        raise WeightsError(
            f"{path}: the tensor {name!r} of shape {list(shape)} does not fit its storage, which has "
            f"{entry.file_size} bytes."
        )
    dense = tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
    contiguous = all(size < 2 or a == b for size, a, b in zip(shape, strides, dense, strict=True))
    if contiguous and entry.compress_type == zipfile.ZIP_STORED:
        return in_file(path, name, archive.offset(entry) + offset * itemsize, shape, storage.dtype)

    def fill(buffer: memoryview) -> None:
        values = np.frombuffer(archive.read(entry), storage.dtype)[offset:]
        view = np.lib.stride_tricks.as_strided(values, shape, [stride * itemsize for stride in strides])
        buffer[:] = view.tobytes()

    return StoredTensor(shape, storage.dtype, fill)
