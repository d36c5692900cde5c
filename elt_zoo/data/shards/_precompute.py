import dataclasses
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import grain
import jax
import numpy as np
from jax.typing import DTypeLike

from .._batches import Clips, Images
from .._source import AbstractSource, DataError, UnreadableExample, Visit
from ._encode import Encoder, ViewEncoder, values_of
from ._fingerprint import fingerprint
from ._index import ShardIndex, ShardPlan
from ._options import ShardOptions
from ._views import Views
from ._write import Skipped, write_shards


def precompute(
    source: AbstractSource,
    tokenizer: Encoder,
    folder: str | os.PathLike,
    *,
    size: int,
    views: Views = Views.FLIP,
    batch_size: int = 32,
    dtype: DTypeLike = np.float16,
    put: Callable[[Any], Any] = jax.device_put,
    options: ShardOptions | None = None,
) -> ShardIndex | None:
    """Encodes a whole source into a folder of shards: the ids of a discrete tokenizer, or the means and log-variances
    of an autoencoder. Call it again after an interruption: complete shards are kept.

    Threads read and crop ahead while the device encodes. An example that cannot be read is left out and listed in the
    index.

    **Arguments:**

    - `source`: images or clips without random crops or flips.
    - `tokenizer`: a pytree whose `encode` takes one example of pixels in [−1, 1] and returns ids below its
      `codebook_size`, or a pair of mean and log-variance. All tokenizers of the library do.
    - `folder`: where the shards go. A folder holds the shards of one source, tokenizer, size and set of views.
    - `size`: height and width of the crop that is encoded.
    - `views`: the views of each example that are stored.
    - `batch_size`: views to encode at once.
    - `dtype`: of means and log-variances. float16 rounds them by at most 2⁻¹¹ of their size: a log-variance of −16 by
      0.008, which changes the standard deviation by 0.4%.
    - `put`: puts a batch on the devices, such as [`shard_batch`][elt_zoo.sharding.shard_batch] to use several.
    - `options`: sizes, threads and processes, see [`ShardOptions`][elt_zoo.data.ShardOptions].

    **Returns:** the index, or `None` if it was stopped, or shards of other processes are still missing.

    **Raises:** `DataError` if the folder holds anything else, naming every difference, or if too many examples cannot
    be read. `FolderLocked` if another process is writing the same shards. `OSError` if the folder cannot be written to.
    `ValueError` for arguments out of range. `TypeError` if `encode` returns something else.
    """
    options = ShardOptions() if options is None else options
    if batch_size < views.count:
        raise ValueError(
            f"`precompute(batch_size={batch_size})` needs at least {views.count}, the views of one example."
        )
    reader = _ViewReader(source, size, views)
    first = reader.first()
    encoder = ViewEncoder(tokenizer, first, batch_size=batch_size // views.count, dtype=dtype, put=put)
    plan = ShardPlan(
        kind="tokens" if encoder.codebook_size else "latents",
        fields=encoder.fields,
        class_names=source.class_names,
        examples=len(source),
        shard_size=options.shard_size,
        views=views,
        input_shape=values_of(first).shape[1:],
        codebook_size=encoder.codebook_size,
        fingerprint=fingerprint(tokenizer),
        description=options.description,
    )
    encoding = _Encoding(reader, encoder, plan.record, options.threads)
    return write_shards(folder, plan, encoding.entries, options)


@dataclasses.dataclass(frozen=True)
class _Encoding:
    """Reads rows of a source and encodes them, a batch ahead of what is fetched from the device."""

    reader: "_ViewReader"
    encoder: ViewEncoder
    record: np.dtype
    threads: int

    def entries(self, rows: range) -> Iterator[list[bytes | Skipped]]:
        """Yields an entry for each row, a batch at a time."""
        started: deque[tuple[list[Images | Clips | Skipped], Any]] = deque()
        for batch in self.reader.batches(rows, self.encoder.batch_size, self.threads):
            started.append((batch, self.encoder.start(_readable(batch))))
            # The device gets its next batch before the results of the last are fetched.
            if len(started) > 1:
                yield self._finish(*started.popleft())
        while started:
            yield self._finish(*started.popleft())

    def _finish(self, batch: list[Images | Clips | Skipped], outputs: Any) -> list[bytes | Skipped]:
        labels = [int(example.labels[0]) for example in _readable(batch)]
        records = iter(self.encoder.finish(outputs, labels, self.record))
        return [item if isinstance(item, Skipped) else next(records) for item in batch]


def _readable(batch: Sequence[Images | Clips | Skipped]) -> list[Images | Clips]:
    return [item for item in batch if not isinstance(item, Skipped)]


class _ViewReader:
    """Reads the examples of a source in order and crops their views, which become the first axis."""

    def __init__(self, source: AbstractSource, size: int, views: Views):
        self._source = source
        self._size = size
        self._views = views

    def read(self, index: int) -> Images | Clips | Skipped:
        try:
            example = self._source.read(Visit(int(index)))
        except UnreadableExample as error:
            return Skipped(self._source.name(int(index)), error)
        if not isinstance(example, Images | Clips):
            raise TypeError(f"`precompute` encodes images or clips; the source gave a {type(example).__name__}.")
        views = self._views.cut(values_of(example), self._size)
        return type(example)(views, np.full(len(views), example.labels, np.int32))

    def first(self) -> Images | Clips:
        """Returns the first example that can be read."""
        for index in range(len(self._source)):
            item = self.read(index)
            if not isinstance(item, Skipped):
                return item
        raise DataError(f"None of the {len(self._source)} examples could be read; the first is {self._source.name(0)}.")

    def batches(self, rows: range, batch_size: int, threads: int) -> Iterator[list[Images | Clips | Skipped]]:
        """Yields the examples of `rows`, which threads read two batches ahead."""
        # A short buffer: Grain looks through all of it at every example. Whole batches wait behind it.
        options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=4 * threads)
        items = grain.MapDataset.range(rows.start, rows.stop).map(self.read).to_iter_dataset(options)
        batches = items.batch(batch_size, drop_remainder=False, batch_fn=list)
        return iter(grain.experimental.ThreadPrefetchIterDataset(batches, prefetch_buffer_size=2 if threads else 0))
