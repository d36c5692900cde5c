import os
import struct
from collections.abc import Callable, Iterator
from typing import Any, Protocol, runtime_checkable

import grain
import numpy as np

from .._batches import Images
from .._source import AbstractSource, DataError, UnreadableExample, Visit
from ._index import ShardIndex, ShardPlan
from ._options import ShardOptions
from ._source import ShardReader
from ._write import Skipped, write_shards

_LABEL = struct.Struct("<i")


@runtime_checkable
class EncodedImages(Protocol):
    """What `pack_images` takes: a source that can also return its files unchanged."""

    class_names: tuple[str, ...]

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """Where the example comes from, for messages."""
        ...

    def label(self, index: int) -> int:
        """The class of one image."""
        ...

    def encoded(self, index: int) -> bytes:
        """One file as it is stored. **Raises:** `UnreadableExample`."""
        ...


def pack_images(
    source: AbstractSource,
    folder: str | os.PathLike,
    *,
    check: Callable[[bytes], Any] | None = None,
    options: ShardOptions | None = None,
) -> ShardIndex | None:
    """Copies image files, byte for byte, into a folder of shards, which disks and file systems read faster than a
    million files. Call it again after an interruption: complete shards are kept.

    **Arguments:**

    - `source`: images in files, from [`image_folder`][elt_zoo.data.image_folder],
      [`image_tar`][elt_zoo.data.image_tar], [`imagenet`][elt_zoo.data.imagenet] or
      [`ShardedImages`][elt_zoo.data.ShardedImages].
    - `folder`: where the shards go. A folder holds the shards of one source.
    - `check`: called with the bytes of every file. It raises `UnreadableExample` for those to leave out, as
      [`decode_image`][elt_zoo.data.decode_image] does. `None` packs all files without looking.
    - `options`: sizes, threads and processes, see [`ShardOptions`][elt_zoo.data.ShardOptions].

    **Returns:** the index, or `None` if it was stopped, or shards of other processes are still missing.

    **Raises:** `DataError` if the source has no files, if the folder holds anything else, naming every difference, or
    if too many examples cannot be read. `FolderLocked` if another process is writing the same shards. `OSError` if the
    folder cannot be written to.
    """
    options = ShardOptions() if options is None else options
    if not isinstance(source, EncodedImages):
        raise DataError(
            f"`pack_images` copies image files, and a {type(source).__name__} has none. Encode it with `precompute`."
        )
    plan = ShardPlan(
        kind="images",
        fields={},
        class_names=source.class_names,
        examples=len(source),
        shard_size=options.shard_size,
        description=options.description,
    )
    reading = grain.ReadOptions(num_threads=options.threads, prefetch_buffer_size=4 * options.threads)

    def read(index: int) -> bytes | Skipped:
        index = int(index)
        try:
            content = source.encoded(index)
            if check is not None:
                check(content)
        except UnreadableExample as error:
            return Skipped(source.name(index), error)
        return _LABEL.pack(source.label(index)) + content

    def entries(rows: range) -> Iterator[list[bytes | Skipped]]:
        for entry in grain.MapDataset.range(rows.start, rows.stop).map(read).to_iter_dataset(reading):
            yield [entry]

    return write_shards(folder, plan, entries, options)


class ShardedImages(AbstractSource):
    """A source of [`Images`][elt_zoo.data.Images] from files that [`pack_images`][elt_zoo.data.pack_images] packed,
    decoded when they are read.
    """

    def __init__(self, folder: str | os.PathLike, transform: Callable[[bytes, np.random.Generator], np.ndarray]):
        """**Arguments:** `folder`: of shards; `transform`: how to decode and crop an image file, such as
        [`ImageTransform`][elt_zoo.data.ImageTransform].

        **Raises:** `DataError` if the folder does not match its index or holds something else.
        """
        self._reader = ShardReader(folder, "images")
        self._transform = transform
        self.index = self._reader.index
        self.class_names = self.index.plan.class_names

    def __len__(self) -> int:
        return len(self._reader)

    def name(self, index: int) -> str:
        """Returns the file and the position of a record."""
        return self._reader.name(index)

    def label(self, index: int) -> int:
        """Returns the label of one image. **Raises:** `UnreadableExample` if the record is damaged."""
        return self._record(index)[0]

    def encoded(self, index: int) -> bytes:
        """Returns the bytes of one file. **Raises:** `UnreadableExample` if the record is damaged."""
        return self._record(index)[1]

    def _record(self, index: int) -> tuple[int, bytes]:
        (record,) = self._reader.read(np.asarray([index]))
        if len(record) < _LABEL.size:
            raise UnreadableExample(f"a record of {len(record)} bytes, not even a label")
        return _LABEL.unpack_from(record)[0], record[_LABEL.size :]

    def read(self, visit: Visit) -> Images:
        """Returns one image, cropped for this visit. **Raises:** `UnreadableExample` if it cannot be decoded."""
        label, content = self._record(visit.index)
        return Images(self._transform(content, visit.rng()), np.asarray(label, np.int32))
