from typing import Any

import msgpack
import numpy as np

from ._tensor_file import BFLOAT16, OpenFile, StoredTensor, TensorFile, WeightsError, check_tensor, in_memory

# Flax's extension types of msgpack.
_ARRAY, _SCALAR = 1, 3
_MAX_DEPTH = 32
_MAX_NAME = 1000
# A list takes its memory when its length is read, before its entries are there.
_MAX_LIST = 1 << 16
_CHUNKED = "__msgpack_chunked_array__"
_DTYPES = {name: np.dtype(name) for name in "float64 float32 float16 int64 int32 int16 int8 bool".split()}
_DTYPES |= {name: np.dtype(name) for name in "uint64 uint32 uint16 uint8".split()} | {"bfloat16": BFLOAT16}


def read_msgpack(file: OpenFile) -> TensorFile:
    """Reads what `flax.serialization.msgpack_serialize` writes: nested tables of arrays, whose names are joined by `/`.

    Arrays beyond a gigabyte, which Flax cuts into chunks, are put together again. What is not an array is left out.
    """
    path = file.path
    try:
        tree = msgpack.unpackb(
            file.read(0, file.size),
            ext_hook=_array,
            strict_map_key=False,
            raw=False,
            max_array_len=_MAX_LIST,
            object_pairs_hook=_table,
        )
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError, msgpack.UnpackException) as error:
        raise WeightsError(f"{path} is truncated, damaged or not a msgpack file of Flax: {error}") from error
    if not isinstance(tree, dict):
        raise WeightsError(f"{path} is not a msgpack file of Flax: it holds no table of arrays.")
    tensors: dict[str, StoredTensor] = {}
    _collect(file, tree, "", 0, tensors)
    return TensorFile(path, tensors)


def _table(pairs: list[tuple[Any, Any]]) -> dict[str, Any]:
    table: dict[str, Any] = {}
    for key, value in pairs:
        if not isinstance(key, str | int) or str(key) in table:
            raise ValueError(f"a key that is no text, or is there twice: {str(key)[:80]!r}")
        table[str(key)] = value
    return table


def _array(code: int, data: bytes) -> Any:
    if code not in (_ARRAY, _SCALAR):
        raise ValueError(f"an array of complex numbers or of unknown kind (extension type {code})")
    shape, dtype, content = msgpack.unpackb(data, raw=False, max_array_len=_MAX_LIST)
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        raise ValueError(f"an array of type {str(dtype)[:80]!r}; known are {', '.join(_DTYPES)}")
    if not isinstance(shape, list) or not all(type(size) is int and size >= 0 for size in shape):
        raise ValueError(f"an array of shape {str(shape)[:80]}")
    return np.frombuffer(content, _DTYPES[dtype]).reshape(shape)


def _collect(file: OpenFile, tree: dict[str, Any], prefix: str, depth: int, tensors: dict[str, StoredTensor]) -> None:
    if depth > _MAX_DEPTH:
        raise WeightsError(f"{file.path} nests its tables more than {_MAX_DEPTH} deep.")
    if len(prefix) > _MAX_NAME:
        raise WeightsError(f"{file.path} has names of more than {_MAX_NAME} characters.")
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict) and _CHUNKED in value:
            value = _joined(file, name, value)
        if isinstance(value, dict):
            _collect(file, value, f"{name}/", depth + 1, tensors)
        elif isinstance(value, np.ndarray):
            check_tensor(file.path, name, value.shape, value.dtype)
            if name in tensors:
                raise WeightsError(f"{file.path} holds the tensor {name!r} twice.")
            tensors[name] = in_memory(value)


def _joined(file: OpenFile, name: str, value: dict[str, Any]) -> np.ndarray:
    try:
        shape = [value["shape"][str(axis)] for axis in range(len(value["shape"]))]
        chunks = [value["chunks"][str(index)] for index in range(len(value["chunks"]))]
        if not all(type(size) is int and size >= 0 for size in shape):
            raise ValueError(f"a shape of {str(shape)[:80]}")
        if not all(isinstance(chunk, np.ndarray) and chunk.ndim == 1 for chunk in chunks):
            raise ValueError("a chunk that is no list of numbers")
        if len({chunk.dtype for chunk in chunks}) > 1:
            raise ValueError("chunks of several types")
        return np.concatenate(chunks).reshape(shape)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise WeightsError(f"{file.path}: the chunks of the tensor {name!r} are damaged: {error!r}") from error
