import io
import lzma
import struct
import zipfile
import zlib
from typing import Any

from ._tensor_file import OpenFile, WeightsError

# A damaged directory can raise any of these; the last for encryption and unknown compression.
_ERRORS = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    EOFError,
    OSError,
    ValueError,
    RuntimeError,
    LookupError,
    OverflowError,
)
# Weights hardly compress: trained ones by a tenth, freshly initialised zeros by much more, but those are small.
_MAX_RATIO, _ALWAYS_ALLOWED = 100, 64 << 20
_PIECE = 1 << 20


class Archive:
    """A zip file of tensors, NumPy's or PyTorch's."""

    def __init__(self, file: OpenFile):
        self.file, self.path = file, file.path
        try:
            self._zip = zipfile.ZipFile(io.BufferedReader(_Cursor(file)))
            self.entries = [entry for entry in self._zip.infolist() if not entry.is_dir()]
        except WeightsError:
            raise
        except _ERRORS as error:
            raise WeightsError(f"{self.path} is truncated or damaged: {error}") from error
        for entry in self.entries:
            if entry.flag_bits & 1:
                raise WeightsError(f"{self.path}: {entry.filename!r} is encrypted.")
            if entry.compress_type == zipfile.ZIP_STORED and entry.compress_size != entry.file_size:
                raise WeightsError(f"{self.path}: {entry.filename!r} is damaged: it has two sizes.")
        total = sum(entry.file_size for entry in self.entries)
        if total > max(_ALWAYS_ALLOWED, _MAX_RATIO * file.size):
            raise WeightsError(
                f"{self.path} has {file.size} bytes and would unpack to {total}, which no weights do. If it is sound, "
                "save it without compression."
            )
        self._sound: set[str] = set()

    def read(self, entry: zipfile.ZipInfo, limit: int) -> bytes:
        """The first bytes of an entry, all of it if it has no more than `limit`; then its checksum is compared."""
        if entry.compress_type == zipfile.ZIP_STORED:
            start, count = self.offset(entry), min(limit, entry.file_size)
            content = self.file.read(start, count)
            if count == entry.file_size and has_crc32(entry) and zlib.crc32(content) != entry.CRC:
                raise self._damaged(entry, "its checksum does not match")
            return content
        try:
            with self._zip.open(entry) as opened:
                # One more byte than there should be, or zlib never comes to compare.
                return opened.read(limit + 1)[:limit]
        except WeightsError:
            raise
        except _ERRORS as error:
            raise self._damaged(entry, str(error)) from error

    def offset(self, entry: zipfile.ZipInfo) -> int:
        """Where the content of an uncompressed entry starts in the file."""
        header = self.file.read(entry.header_offset, 30)
        if len(header) < 30 or header[:4] != b"PK\x03\x04":
            raise self._damaged(entry, "it has no header of its own")
        name_length, extra_length = struct.unpack("<HH", header[26:30])
        start = entry.header_offset + 30 + name_length + extra_length
        if start + entry.file_size > self.file.size:
            raise self._damaged(entry, "it ends beyond the file")
        return start

    def check(self, entry: zipfile.ZipInfo) -> None:
        """Compares the checksum of a whole uncompressed entry, once."""
        if entry.filename in self._sound or not has_crc32(entry):
            return
        start, crc32, buffer = self.offset(entry), 0, bytearray(_PIECE)
        for begin in range(0, entry.file_size, _PIECE):
            piece = memoryview(buffer)[: min(_PIECE, entry.file_size - begin)]
            crc32 = self.file.fill(start + begin, piece, entry.filename, crc32)
        if crc32 != entry.CRC:
            raise self._damaged(entry, "its checksum does not match")
        self._sound.add(entry.filename)

    def _damaged(self, entry: zipfile.ZipInfo, reason: str) -> WeightsError:
        return WeightsError(f"{self.path}: {entry.filename!r} is damaged: {reason}.")


def has_crc32(entry: zipfile.ZipInfo) -> bool:
    """Whether an entry has a checksum: PyTorch writes 0 if it is told to take none."""
    return entry.CRC != 0


class _Cursor(io.RawIOBase):
    """What `zipfile` needs to read an open file: a place in it."""

    def __init__(self, file: OpenFile):
        self._file, self._place = file, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._file.size}[whence]
        if base + offset < 0:
            raise ValueError("a place before the start of the file")
        self._place = base + offset
        return self._place

    def tell(self) -> int:
        return self._place

    def readinto(self, buffer: Any) -> int:
        count = self._file.readinto(self._place, memoryview(buffer))
        self._place += count
        return count
