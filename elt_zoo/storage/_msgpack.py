from pathlib import Path
from typing import Any

import msgpack
import numpy as np

from ._tensor_file import BFLOAT16, StoredTensor, TensorFile, WeightsError, in_memory

# Flax's extension types of msgpack.
_ARRAY, _SCALAR = 1, 3
_MAX_DEPTH = 32
_CHUNKED = "__msgpack_chunked_array__"
_DTYPES = {name: np.dtype(name) for name in "float64 float32 float16 int64 int32 int16 int8 bool".split()}
_DTYPES |= {name: np.dtype(name) for name in "uint64 uint32 uint16 uint8".split()} | {"bfloat16": BFLOAT16}


def read_msgpack(path: Path) -> TensorFile:
    """Reads what `flax.serialization.msgpack_serialize` writes: nested tables of arrays, whose names are joined by `/`.

    Arrays beyond a gigabyte, which Flax cuts into chunks, are put together again. What is not an array is left out.
    """
    try:
        tree = msgpack.unpackb(path.read_bytes(), ext_hook=_array, strict_map_key=False, raw=False)
    except (ValueError, TypeError, KeyError, msgpack.UnpackException) as error:
        raise WeightsError(f"{path} is truncated, damaged or not a msgpack file of Flax: {error}") from error
    if not isinstance(tree, dict):
        raise WeightsError(f"{path} is not a msgpack file of Flax: it holds no table of arrays.")
    tensors: dict[str, StoredTensor] = {}
    _collect(path, tree, "", 0, tensors)
    return TensorFile(path, tensors)


def _array(code: int, data: bytes) -> Any:
    if code not in (_ARRAY, _SCALAR):
        raise ValueError(f"an array of complex numbers or of unknown kind (extension type {code})")
    shape, dtype, content = msgpack.unpackb(data, raw=False)
    if dtype not in _DTYPES:
        raise ValueError(f"an array of type {dtype!r}; known are {', '.join(_DTYPES)}")
    if not all(type(size) is int and size >= 0 for size in shape):
        raise ValueError(f"an array of shape {shape}")
    return np.frombuffer(content, _DTYPES[dtype]).reshape(shape)


def _collect(path: Path, tree: dict, prefix: str, depth: int, tensors: dict[str, StoredTensor]) -> None:
    if depth > _MAX_DEPTH:
        raise WeightsError(f"{path} nests its tables more than {_MAX_DEPTH} deep.")
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict) and _CHUNKED in value:
            value = _joined(path, name, value)
        if isinstance(value, dict):
            _collect(path, value, f"{name}/", depth + 1, tensors)
        elif isinstance(value, np.ndarray):
            if name in tensors:
                raise WeightsError(f"{path} holds the tensor {name!r} twice.")
            tensors[name] = in_memory(value)


def _joined(path: Path, name: str, value: dict) -> np.ndarray:
    try:
        shape = [value["shape"][str(axis)] for axis in range(len(value["shape"]))]
        chunks = [value["chunks"][str(index)] for index in range(len(value["chunks"]))]
        return np.concatenate(chunks).reshape(shape)
    except (KeyError, TypeError, ValueError) as error:
        raise WeightsError(f"{path}: the chunks of the tensor {name!r} are damaged: {error!r}") from error
