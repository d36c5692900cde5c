import json
import math
import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ._atomic import atomic_write, unique_keys
from ._tensor_file import BFLOAT16, OpenFile, StoredTensor, TensorFile, WeightsError, bytes_of, check_tensor, in_file

_DTYPES = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": BFLOAT16,
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U64": np.dtype("<u8"),
    "U32": np.dtype("<u4"),
    "U16": np.dtype("<u2"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}
_MAX_HEADER = 100_000_000
# Name of our metadata: the checksums of the other metadata and of the tensors.
_CHECKSUMS = "crc32"


def read_safetensors(file: OpenFile) -> TensorFile:
    """Reads the header of a safetensors file: eight bytes of length, JSON, then the tensors without gaps. Checksums
    that [`write_safetensors`][] has put into it are compared when a tensor is read.

    The `safetensors` package would copy each tensor once more than [`assemble`][] needs.
    """
    path, size = file.path, file.size
    length = int.from_bytes(file.read(0, 8), "little")
    if size < 8 or length > min(size - 8, _MAX_HEADER):
        raise WeightsError(f"{path} is truncated or not a safetensors file: its header would have {length} bytes.")
    try:
        header = json.loads(file.read(8, length), object_pairs_hook=unique_keys)
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"{path} has a damaged safetensors header: {error}") from error
    if not isinstance(header, dict):
        raise WeightsError(f"{path} has a damaged safetensors header: it is not a table of tensors.")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(text, str) for text in metadata.values()):
        raise WeightsError(f"{path} has a damaged safetensors header: its metadata are not texts by name.")
    checksums = _checksums(path, metadata, header)
    tensors: dict[str, StoredTensor] = {}
    end, order = 0, []
    for name, entry in header.items():
        try:
            dtype, shape, (start, stop) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
            if not all(type(number) is int and number >= 0 for number in (*shape, start, stop)):
                raise ValueError("sizes and offsets must be whole numbers")
        except (TypeError, KeyError, ValueError) as error:
            raise WeightsError(
                f"{path}: the entry of the tensor {name[:80]!r} is damaged: {str(entry)[:200]}"
            ) from error
        if not isinstance(dtype, str) or dtype not in _DTYPES:
            raise WeightsError(
                f"{path}: the tensor {name!r} is of type {str(dtype)[:80]!r}; known are {', '.join(_DTYPES)}."
            )
        check_tensor(path, name, shape, _DTYPES[dtype])
        if stop - start != math.prod(shape) * _DTYPES[dtype].itemsize:
            raise WeightsError(
                f"{path}: the tensor {name!r} has {stop - start} bytes, but {dtype}{list(shape)} takes "
                f"{math.prod(shape) * _DTYPES[dtype].itemsize}."
            )
        order.append((start, stop, name))
        before = _crc32_of_layout(shape, _DTYPES[dtype])
        tensors[name] = in_file(
            file, name, 8 + length + start, shape, _DTYPES[dtype], crc32=checksums.get(name), crc32_before=before
        )
    for start, stop, name in sorted(order):
        if start != end:
            raise WeightsError(f"{path}: the tensor {name!r} starts at byte {start}, but the one before ends at {end}.")
        end = stop
    if end != size - 8 - length:
        raise WeightsError(
            f"{path} is truncated or has been appended to: its tensors take {end} bytes, but it holds "
            f"{size - 8 - length}."
        )
    return TensorFile(path, tensors, metadata, file=file)


def write_safetensors(
    path: str | os.PathLike, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None
) -> None:
    """Writes a safetensors file whole or not at all, with checksums (CRC-32) that
    [`read_tensors`][elt_zoo.storage.read_tensors] compares.

    **Arguments:** `path`: of the file; `tensors`: by name; `metadata`: texts by name, to be found in
    `TensorFile.metadata`.

    **Raises:** `TypeError` for arrays of a type that safetensors do not know; `OSError` in one line if the file cannot
    be written.
    """
    tensors = {name: np.ascontiguousarray(array).reshape(array.shape) for name, array in tensors.items()}
    checksums = {
        name: zlib.crc32(bytes_of(array), _crc32_of_layout(array.shape, array.dtype)) for name, array in tensors.items()
    }
    names = {dtype: name for name, dtype in _DTYPES.items()}
    if unknown := sorted({str(array.dtype) for array in tensors.values()} - {str(dtype) for dtype in names}):
        raise TypeError(f"safetensors hold no arrays of type {', '.join(unknown)}.")
    text = json.dumps({"metadata": _crc32_of_metadata(metadata or {}), "tensors": checksums})
    header: dict[str, Any] = {"__metadata__": {**(metadata or {}), _CHECKSUMS: text}}
    # The widest first: each starts at a multiple of its own width.
    order, end = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name)), 0
    for name in order:
        array = tensors[name]
        offsets = [end, end + array.nbytes]
        header[name] = {"dtype": names[array.dtype], "shape": list(array.shape), "data_offsets": offsets}
        end += array.nbytes
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    # Not by the `safetensors` package, whose own unfinished file would stay behind a killed process.
    with atomic_write(path) as temporary, temporary.open("wb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        for name in order:
            file.write(bytes_of(tensors[name]))


def _checksums(path: Path, metadata: Mapping[str, str], header: Mapping[str, Any]) -> dict[str, int]:
    """The checksums of the tensors, if the file has any; those of the metadata are compared at once."""
    if _CHECKSUMS not in metadata:
        return {}
    try:
        table = json.loads(metadata[_CHECKSUMS])
        of_metadata, of_tensors = table["metadata"], table["tensors"]
        if not isinstance(of_tensors, dict) or of_tensors.keys() != header.keys():
            raise ValueError("they are of other tensors")
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise WeightsError(f"{path} has a damaged header: its checksums cannot be used: {error!r}") from error
    if of_metadata != _crc32_of_metadata({name: text for name, text in metadata.items() if name != _CHECKSUMS}):
        raise WeightsError(f"{path} has a damaged header: the checksum of its metadata does not match. Restore it.")
    return of_tensors


def _crc32_of_layout(shape: tuple[int, ...], dtype: np.dtype) -> int:
    return zlib.crc32(f"{dtype.name}{list(shape)}".encode())


def _crc32_of_metadata(metadata: Mapping[str, str]) -> int:
    return zlib.crc32(json.dumps(metadata, sort_keys=True).encode())
