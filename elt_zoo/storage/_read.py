import os
from pathlib import Path

from ._msgpack import read_msgpack
from ._npz import read_npz
from ._safetensors import read_safetensors
from ._tensor_file import OpenFile, TensorFile, WeightsError
from ._torch_zip import read_torch_zip
from ._zip import Archive


def read_tensors(path: str | os.PathLike) -> TensorFile:
    """Opens a file of tensors: safetensors, Flax msgpack, npz, or PyTorch's zip format. Its content says which.

    PyTorch and Flax are not needed, and nothing that a pickle asks for is executed. Tensors are read when they are
    asked for; names inside nested tables are joined by `/`. Where the file has checksums (zip files have, and
    safetensors that this library wrote), they are compared with what is read.

    **Arguments:** `path`: a local file.

    **Returns:** a mapping from names to NumPy arrays.

    **Raises:** `FileNotFoundError` if there is no such file, `PermissionError` if it may not be read;
    [`WeightsError`][elt_zoo.storage.WeightsError] if it is truncated, damaged, of an unknown format, big-endian, asks
    for code to be run, or for more memory than weights of its size need. Damage within a tensor is found when that is
    read.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {str(path)!r} to read tensors from.")
    file = OpenFile(path)
    start = file.read(0, 16)
    if start[:4] == b"PK\x03\x04":
        archive = Archive(file)
        if all(entry.filename.endswith(".npy") for entry in archive.entries):
            return read_npz(archive)
        return read_torch_zip(archive)
    if start[8:9] == b"{":
        return read_safetensors(file)
    # The length that starts a safetensors file can begin with the same byte, so a stump of one is no pickle.
    stump = 1 < len(start) <= 8 and not start.endswith(b".")
    if start[:1] == b"\x80" and len(start) > 1 and not stump:
        raise WeightsError(
            f"{path} is a pickle, as PyTorch wrote before version 1.6. Reading it would run its code. Load it with "
            "PyTorch where you trust it and save it again with `torch.save` or as safetensors."
        )
    if start[:1] and not stump and (start[0] & 0xF0 == 0x80 or start[0] in (0xDE, 0xDF)):
        return read_msgpack(file)
    raise WeightsError(
        f"{path} is empty, truncated or of an unknown format. Known are safetensors, Flax msgpack, npz and PyTorch's "
        "zip format."
    )
