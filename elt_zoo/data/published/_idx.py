import contextlib
import gzip
import math
import struct
import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np

from .._source import DataError

_BYTES = 0x08
_MOST_AXES = 8
# MNIST's largest file has 47 MB, and a damaged header may claim anything.
_LARGEST = 1 << 30


def read_idx(path: str | Path) -> np.ndarray:
    """Reads an array of bytes in MNIST's format, packed with gzip or not: two zeros, 8, the number of axes, their sizes
    (big-endian), the values.

    **Arguments:** `path`: the file; it is packed if it begins as gzip files do.

    **Returns:** the array, uint8.

    **Raises:** `DataError` for another kind of file, or one that is cut off or longer than it says.
    """
    path = Path(path)
    try:
        with contextlib.ExitStack() as stack:
            file: BinaryIO = stack.enter_context(path.open("rb"))
            if path.suffix == ".gz" or file.peek(2)[:2] == b"\x1f\x8b":  # pyright: ignore[reportAttributeAccessIssue]
                file = stack.enter_context(gzip.GzipFile(fileobj=file))  # pyright: ignore[reportAssignmentType]
            return _read(path, file)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path} is no whole gzip file ({error}); fetch it again.") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror or error}).") from error


def _read(path: Path, file: BinaryIO) -> np.ndarray:
    start = file.read(4)
    if len(start) < 4 or start[:3] != bytes([0, 0, _BYTES]) or start[3] > _MOST_AXES:
        raise DataError(f"{path} is not an idx file of bytes: it begins with {start.hex() or 'nothing'}, not 000008.")
    header = file.read(4 * start[3])
    if len(header) < 4 * start[3]:
        raise DataError(f"{path} ends within its header; fetch it again.")
    sizes = struct.unpack(f">{start[3]}I", header)
    promised = math.prod(sizes)
    if promised > _LARGEST:
        raise DataError(f"{path} claims {promised:,} values, more than any file of MNIST has; fetch it again.")
    content = file.read(promised + 1)
    if len(content) != promised:
        found = "more" if len(content) > promised else f"{len(content):,}"
        raise DataError(f"{path} holds {found} values; {promised:,} were promised. Fetch it again.")
    return np.frombuffer(content, np.uint8).reshape(sizes)
