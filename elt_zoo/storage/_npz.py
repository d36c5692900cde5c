import io
import math
import zipfile

import numpy as np

from ._tensor_file import StoredTensor, TensorFile, WeightsError, in_file
from ._zip import Archive

_READ_HEADER = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
_HEADER_LIMIT = 1 << 16


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
    head = io.BytesIO(archive.read(entry, _HEADER_LIMIT))
    try:
        shape, fortran_order, dtype = _READ_HEADER[np.lib.format.read_magic(head)](head)
    except (ValueError, KeyError, EOFError) as error:
        raise WeightsError(f"{path}: the header of the tensor {name!r} is damaged: {error}") from error
    if dtype.hasobject:
        raise WeightsError(f"{path}: {name!r} holds pickled Python objects, which could run code. Save plain arrays.")
    if dtype.kind not in "fiub":
        raise WeightsError(f"{path}: the tensor {name!r} is of type {dtype}, but only plain numbers are read.")
    if dtype.byteorder == ">":
        raise WeightsError(f"{path}: the tensor {name!r} is big-endian ({dtype.str}). Save it in little-endian order.")
    start = head.tell()
    if entry.file_size - start != math.prod(shape) * dtype.itemsize:
        raise WeightsError(
            f"{path}: the tensor {name!r} has {entry.file_size - start} bytes, but {dtype}{list(shape)} takes "
            f"{math.prod(shape) * dtype.itemsize}."
        )
    if entry.compress_type == zipfile.ZIP_STORED and not fortran_order:
        return in_file(path, name, archive.offset(entry) + start, shape, dtype)

    def fill(buffer: memoryview) -> None:
        content = archive.read(entry)[start:]
        if fortran_order:
            content = np.frombuffer(content, dtype).reshape(shape, order="F").tobytes()
        buffer[:] = content

    return StoredTensor(shape, dtype, fill)
