import os
import struct
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol, runtime_checkable

import grain
import numpy as np

from .._batches import Images
from .._pipeline import default_workers
from .._source import AbstractSource, DataError, UnreadableExample, UnreadableLog, Visit
from ._index import ShardIndex, ShardPlan
from ._source import ShardReader
from ._write import Progress, check_processes, write_shards

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
    shard_size: int = 8192,
    check: Callable[[bytes], Any] | None = None,
    workers: int | None = None,
    process_index: int = 0,
    process_count: int = 1,
    description: Mapping[str, Any] | None = None,
    unreadable: UnreadableLog | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    stop: threading.Event | None = None,
) -> ShardIndex | None:
    """Copies image files, byte for byte, into a folder of shards, which disks and file systems read faster than a
    million files. Call it again after an interruption: shards that are complete are kept.

    **Arguments:**

    - `source`: images in files, from [`image_folder`][elt_zoo.data.image_folder],
      [`image_tar`][elt_zoo.data.image_tar], [`imagenet`][elt_zoo.data.imagenet] or
      [`ShardedImages`][elt_zoo.data.ShardedImages].
    - `check`: called with every file, and raises `UnreadableExample` for what is to be left out, such as
      [`decode_image`][elt_zoo.data.decode_image]; `None` packs them unseen.
    - `folder`, `shard_size`, `workers`, `process_index`, `process_count`, `description`, `unreadable`, `on_progress`,
      `stop`: as for [`precompute`][elt_zoo.data.precompute].

    **Returns:** the index, or `None` if it was stopped or shards of other processes are still missing.

    **Raises:** `DataError` if the source has no files, if the folder holds anything else, with every difference, and
    once too much could not be read; `ValueError` for arguments out of range.
    """
    if not isinstance(source, EncodedImages):
        raise DataError(
            f"`pack_images` copies image files, and a {type(source).__name__} has none. Encode it with `precompute`."
        )
    check_processes("pack_images", process_index, process_count)
    if shard_size < 1:
        raise ValueError(f"`pack_images(shard_size={shard_size})` must be at least one example.")
    plan = ShardPlan(
        kind="images",
        fields={},
        class_names=source.class_names,
        examples=len(source),
        shard_size=shard_size,
        description={} if description is None else description,
    )
    unreadable = UnreadableLog() if unreadable is None else unreadable
    workers = default_workers() if workers is None else workers
    options = grain.ReadOptions(num_threads=workers, prefetch_buffer_size=4 * workers)

    def read(index: int) -> tuple[int, bytes | UnreadableExample]:
        try:
            content = source.encoded(int(index))
            if check is not None:
                check(content)
        except UnreadableExample as error:
            return int(index), error
        return int(index), _LABEL.pack(source.label(int(index))) + content

    def records(rows: range, skipped: dict[str, str], report: Callable[[int], None]) -> Iterator[bytes]:
        stream = grain.MapDataset.range(rows.start, rows.stop).map(read).to_iter_dataset(options)
        for number, (index, record) in enumerate(stream, start=1):
            if isinstance(record, bytes):
                yield record
            else:
                name = source.name(index)
                skipped[name] = str(record)
                unreadable.add(name, record)
            report(number)

    return write_shards(
        folder,
        plan,
        records,
        process_index=process_index,
        process_count=process_count,
        on_progress=on_progress,
        stop=stop,
    )


class ShardedImages(AbstractSource):
    """Image files that [`pack_images`][elt_zoo.data.pack_images] packed, decoded when they are read, as
    [`Images`][elt_zoo.data.Images].
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
        """File and position of the record."""
        return self._reader.name(index)

    def label(self, index: int) -> int:
        """The class of one image. **Raises:** `UnreadableExample` if the record is damaged."""
        return self._record(index)[0]

    def encoded(self, index: int) -> bytes:
        """One file as it was packed. **Raises:** `UnreadableExample` if the record is damaged."""
        return self._record(index)[1]

    def _record(self, index: int) -> tuple[int, bytes]:
        (record,) = self._reader.read(np.asarray([index]))
        if len(record) < _LABEL.size:
            raise UnreadableExample(f"a record of {len(record)} bytes, not even a label")
        return _LABEL.unpack_from(record)[0], record[_LABEL.size :]

    def read(self, visit: Visit) -> Images:
        """One image, cropped for this visit. **Raises:** `UnreadableExample` if it cannot be decoded."""
        label, content = self._record(visit.index)
        return Images(self._transform(content, visit.rng()), np.asarray(label, np.int32))
