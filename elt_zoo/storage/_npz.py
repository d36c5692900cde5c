import ast
import math
import re
import zipfile
import zlib
from typing import Any

import numpy as np

from ._tensor_file import StoredTensor, TensorFile, WeightsError, check_tensor, damaged, in_file
from ._zip import Archive, has_crc32

# NumPy's own limit for headers that are to be trusted, and the bytes before them.
_HEADER_LIMIT = 10_000 + 12


def read_npz(archive: Archive) -> TensorFile:
    """Reads the headers of an npz file, compressed or not. Pickled objects are refused."""
    tensors: dict[str, StoredTensor] = {}
    for entry in archive.entries:
        name = entry.filename.removesuffix(".npy")
        if name in tensors:
            raise WeightsError(f"{archive.path} holds the tensor {name!r} twice.")
        tensors[name] = _tensor(archive, entry, name)
    return TensorFile(archive.path, tensors)


def _tensor(archive: Archive, entry: zipfile.ZipInfo, name: str) -> StoredTensor:
    path = archive.path
    head = archive.read(entry, _HEADER_LIMIT)
    try:
        shape, fortran_order, kind, start = _header(head)
    except (ValueError, TypeError, KeyError, SyntaxError, MemoryError, RecursionError) as error:
        raise WeightsError(f"{path}: the header of the tensor {name!r} is damaged: {error}") from error
    if kind.lstrip("|<>=").startswith("O"):
        raise WeightsError(f"{path}: {name!r} holds pickled Python objects, which could run code. Save plain arrays.")
    if not re.fullmatch(r"[|<>=]?(f[248]|[iu][1248]|b1|\?)", kind):
        raise WeightsError(f"{path}: the tensor {name!r} is of type {kind[:80]}, but only plain numbers are read.")
    dtype = np.dtype(kind)
    if dtype.byteorder == ">":
        raise WeightsError(f"{path}: the tensor {name!r} is big-endian ({dtype.str}). Save it in little-endian order.")
    check_tensor(path, name, shape, dtype)
    size = math.prod(shape) * dtype.itemsize
    if entry.file_size - start != size:
        raise WeightsError(
            f"{path}: the tensor {name!r} has {entry.file_size - start} bytes, but {dtype}{list(shape)} takes {size}."
        )
    if entry.compress_type == zipfile.ZIP_STORED and not fortran_order:
        crc32 = entry.CRC if has_crc32(entry) else None
        before = zlib.crc32(head[:start])
        return in_file(
            archive.file, name, archive.offset(entry) + start, shape, dtype, crc32=crc32, crc32_before=before
        )

    def fill(buffer: memoryview) -> None:
        content = archive.read(entry, entry.file_size)[start:]
        if len(content) != len(buffer):
            raise damaged(path, name)
        if fortran_order:
            content = np.frombuffer(content, dtype).reshape(shape, order="F").tobytes()
        buffer[:] = content

    return StoredTensor(shape, dtype, fill)


def _header(head: bytes) -> tuple[tuple[Any, ...], bool, str, int]:
    """Shape, order, type and length of a npy header. NumPy's reader warns of some, and builds any type it is asked
    for.
    """
    if head[:6] != b"\x93NUMPY" or head[6:8] not in (b"\x01\x00", b"\x02\x00", b"\x03\x00"):
        raise ValueError("it is none of NumPy")
    digits = 2 if head[6] == 1 else 4
    start = 8 + digits + int.from_bytes(head[8 : 8 + digits], "little")
    if start > min(len(head), _HEADER_LIMIT):
        raise ValueError("it is too long")
    fields = ast.literal_eval(head[8 + digits : start].decode("utf-8" if head[6] == 3 else "latin-1"))
    if not isinstance(fields, dict) or set(fields) != {"descr", "fortran_order", "shape"}:
        raise ValueError("it has other fields than NumPy's")
    shape, order = fields["shape"], fields["fortran_order"]
    if not isinstance(shape, tuple) or not isinstance(order, bool):
        raise ValueError("its shape or order is damaged")
    return shape, order, str(fields["descr"]), start
