import json
import math
from collections.abc import Mapping

import jax
import numpy as np
from jax.experimental import multihost_utils

from ._decide import gather, is_first

# All processes get what all send, in rounds of so many bytes.
_ROUND = 2**28


def gather_arrays(arrays: Mapping[str, np.ndarray]) -> list[dict[str, np.ndarray]]:
    """The arrays of every process, by process and name, bit for bit. All must call it.

    **Arguments:** `arrays`: of any names, shapes and NumPy's own dtypes, which may differ between the processes.

    **Returns:** in process 0, one table for each process; in the others, an empty list.
    """
    if jax.process_count() == 1:
        return [dict(arrays)]
    mine = {name: (array.dtype.str, array.shape) for name, array in arrays.items()}
    described = [json.loads(said) for said in gather(json.dumps(mine))]
    sizes = [sum(_bytes(*of) for of in one.values()) for one in described]
    # As bytes: JAX would round float64.
    data = np.frombuffer(b"".join(array.tobytes() for array in arrays.values()), np.uint8)
    length = min(_ROUND // len(sizes), max(sizes))
    received = [bytearray() for _ in sizes]
    for start in range(0, max(sizes), length or 1):
        piece = data[start : start + length]
        rows = multihost_utils.process_allgather(np.pad(piece, (0, length - len(piece))))
        if is_first():
            for process, row in enumerate(np.asarray(rows)):
                received[process] += row[: max(sizes[process] - start, 0)].tobytes()
    return [_unpacked(one, bytes(data)) for one, data in zip(described, received, strict=True)] if is_first() else []


def _bytes(dtype: str, shape: list[int]) -> int:
    return np.dtype(dtype).itemsize * math.prod(shape)


def _unpacked(described: Mapping[str, tuple[str, list[int]]], data: bytes) -> dict[str, np.ndarray]:
    arrays, start = {}, 0
    for name, (dtype, shape) in described.items():
        arrays[name] = np.frombuffer(data, dtype, math.prod(shape), start).reshape(shape)
        start += _bytes(dtype, shape)
    return arrays
