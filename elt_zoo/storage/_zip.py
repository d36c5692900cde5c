import lzma
import struct
import zipfile
import zlib
from pathlib import Path

from ._tensor_file import WeightsError

# A damaged directory can raise any of these; the last for encryption and unknown compression.
_ERRORS = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, EOFError, OSError, ValueError, RuntimeError)


class Archive:
    """A zip file of tensors, NumPy's or PyTorch's. It is opened for each access and never left open."""

    def __init__(self, path: Path):
        self.path = path
        try:
            with zipfile.ZipFile(path) as file:
                self.entries = [entry for entry in file.infolist() if not entry.is_dir()]
        except _ERRORS as error:
            raise WeightsError(f"{path} is truncated or damaged: {error}") from error
        for entry in self.entries:
            if entry.flag_bits & 1:
                raise WeightsError(f"{path}: {entry.filename!r} is encrypted.")

    def read(self, entry: zipfile.ZipInfo, limit: int | None = None) -> bytes:
        """The content of an entry, or its first `limit` bytes."""
        try:
            with zipfile.ZipFile(self.path) as file, file.open(entry) as content:
                return content.read() if limit is None else content.read(limit)
        except _ERRORS as error:
            raise WeightsError(f"{self.path}: {entry.filename!r} is damaged: {error}") from error

    def offset(self, entry: zipfile.ZipInfo) -> int:
        """Where the content of an uncompressed entry starts in the file."""
        with self.path.open("rb") as file:
            file.seek(entry.header_offset)
            header = file.read(30)
        if len(header) < 30 or header[:4] != b"PK\x03\x04":
            raise WeightsError(f"{self.path}: {entry.filename!r} is damaged: it has no header of its own.")
        name_length, extra_length = struct.unpack("<HH", header[26:30])
        start = entry.header_offset + 30 + name_length + extra_length
        if start + entry.file_size > self.path.stat().st_size:
            raise WeightsError(f"{self.path}: {entry.filename!r} is damaged: it ends beyond the file.")
        return start
