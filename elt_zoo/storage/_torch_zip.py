import math
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np

from ._tensor_file import StoredTensor, TensorFile, WeightsError, check_tensor, damaged, in_file
from ._torch_pickle import PickledStorage, PickledTensor, read_pickle
from ._zip import Archive, has_crc32

# Of everything that is passed on the way to the tensors, often met again through shared lists.
_MAX_VISITS = 1_000_000
_MAX_DEPTH = 32
_MAX_NAME = 1000
_MAX_PICKLE = 256 << 20


def read_torch_zip(archive: Archive) -> TensorFile:
    """Reads what `torch.save` has written since PyTorch 1.6: a zip file with a pickle of the structure and one raw
    entry per storage. PyTorch is not needed, and no code of the pickle is executed: only the operations and names that
    describe tensors are known.

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
    order = archive.read(entries[f"{root}byteorder"], 16) if f"{root}byteorder" in entries else b"little"
    if order != b"little":
        raise WeightsError(f"{path} is big-endian. Save it on a little-endian machine.")
    if entries[pickles[0]].file_size > _MAX_PICKLE:
        raise WeightsError(f"{path}: its pickle has {entries[pickles[0]].file_size} bytes, more than tensors need.")
    found: dict[str, PickledTensor] = {}
    _collect(archive, read_pickle(path, archive.read(entries[pickles[0]], _MAX_PICKLE)), found)
    return TensorFile(path, {name: _stored(archive, entries, root, name, tensor) for name, tensor in found.items()})


def _collect(archive: Archive, tree: Any, found: dict[str, PickledTensor]) -> None:
    visits = 0

    def collect(tree: Any, prefix: str, depth: int) -> None:
        nonlocal visits
        visits += 1
        if depth > _MAX_DEPTH or visits > _MAX_VISITS or len(prefix) > _MAX_NAME:
            raise WeightsError(f"{archive.path} nests its tensors without end.")
        if isinstance(tree, PickledTensor):
            name = prefix.removesuffix("/")
            if name in found:
                raise WeightsError(f"{archive.path} holds the tensor {name!r} twice.")
            found[name] = tree
        elif isinstance(tree, dict | list):
            for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
                collect(value, f"{prefix}{key}/", depth + 1)

    collect(tree, "", 0)


def _stored(
    archive: Archive, entries: Mapping[str, zipfile.ZipInfo], root: str, name: str, tensor: PickledTensor
) -> StoredTensor:
    path, (storage, offset, shape, strides) = archive.path, tensor
    entry = entries.get(f"{root}data/{storage.key}") if isinstance(storage, PickledStorage) else None
    if entry is None:
        raise WeightsError(f"{path}: the storage of the tensor {name!r} is missing.")
    dtype, itemsize = storage.dtype, storage.dtype.itemsize
    numbers = (offset, *shape, *strides) if isinstance(shape, tuple) and isinstance(strides, tuple) else ("none",)
    if not all(type(number) is int and number >= 0 for number in numbers) or len(shape) != len(strides):
        raise WeightsError(
            f"{path}: the tensor {name!r} is damaged: {str(numbers)[:200]} are not its offset, shape and strides."
        )
    check_tensor(path, name, shape, dtype)
    last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    # Views that repeat numbers are small files which ask for much memory.
    fits = last < storage.size and math.prod(shape) <= storage.size
    if entry.file_size != storage.size * itemsize or (math.prod(shape) and not fits):
        raise WeightsError(
            f"{path}: the tensor {name!r} of shape {list(shape)} does not fit its storage, which has "
            f"{entry.file_size} bytes."
        )
    dense = tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
    contiguous = all(size < 2 or a == b for size, a, b in zip(shape, strides, dense, strict=True))
    if contiguous and entry.compress_type == zipfile.ZIP_STORED:
        start = archive.offset(entry) + offset * itemsize
        if math.prod(shape) == storage.size:
            return in_file(archive.file, name, start, shape, dtype, crc32=entry.CRC if has_crc32(entry) else None)
        part = in_file(archive.file, name, start, shape, dtype)

        def fill_part(buffer: memoryview) -> None:
            archive.check(entry)
            part.fill(buffer)

        return StoredTensor(shape, dtype, fill_part)

    def fill(buffer: memoryview) -> None:
        content = archive.read(entry, entry.file_size)
        if len(content) != entry.file_size:
            raise damaged(path, name)
        if not len(buffer):
            return
        values = np.frombuffer(content, dtype)[offset:]
        view = np.lib.stride_tricks.as_strided(values, shape, [stride * itemsize for stride in strides])
        buffer[:] = view.tobytes()

    return StoredTensor(shape, dtype, fill)
