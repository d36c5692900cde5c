import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from ._tensor_file import BFLOAT16, StoredTensor, TensorFile, WeightsError, in_file

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


def read_safetensors(path: Path) -> TensorFile:
    """Reads the header of a safetensors file: eight bytes of length, JSON, then the tensors without gaps.

    The `safetensors` package would copy each tensor once more than [`assemble`][] needs.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > size - 8:
            raise WeightsError(f"{path} is truncated or not a safetensors file: its header would have {length} bytes.")
        try:
            header = json.loads(file.read(length), object_pairs_hook=_unique)
        except (ValueError, RecursionError) as error:
            raise WeightsError(f"{path} has a damaged safetensors header: {error}") from error
    if not isinstance(header, dict):
        raise WeightsError(f"{path} has a damaged safetensors header: it is not a table of tensors.")
    header.pop("__metadata__", None)
    tensors: dict[str, StoredTensor] = {}
    end, order = 0, []
    for name, entry in header.items():
        try:
            dtype, shape, (start, stop) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
            if not all(type(number) is int and number >= 0 for number in (*shape, start, stop)):
                raise ValueError("sizes and offsets must be whole numbers")
        except (TypeError, KeyError, ValueError) as error:
            raise WeightsError(f"{path}: the entry of the tensor {name!r} is damaged: {entry!r}") from error
        if dtype not in _DTYPES:
            raise WeightsError(f"{path}: the tensor {name!r} is of type {dtype!r}; known are {', '.join(_DTYPES)}.")
        if stop - start != math.prod(shape) * _DTYPES[dtype].itemsize:
            raise WeightsError(
                f"{path}: the tensor {name!r} has {stop - start} bytes, but {dtype}{list(shape)} takes "
                f"{math.prod(shape) * _DTYPES[dtype].itemsize}."
            )
        order.append((start, stop, name))
        tensors[name] = in_file(path, name, 8 + length + start, shape, _DTYPES[dtype])
    for start, stop, name in sorted(order):
        if start != end:
            raise WeightsError(f"{path}: the tensor {name!r} starts at byte {start}, but the one before ends at {end}.")
        end = stop
    if end != size - 8 - length:
        raise WeightsError(
            f"{path} is truncated or has been appended to: its tensors take {end} bytes, but it holds "
            f"{size - 8 - length}."
        )
    return TensorFile(path, tensors)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ValueError("a name occurs twice")
    return table
