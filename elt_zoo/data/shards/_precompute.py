import os
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import grain
import jax
import numpy as np
from jax.typing import DTypeLike

from .._batches import Clips, Images
from .._pipeline import default_workers
from .._source import AbstractSource, DataError, UnreadableExample, UnreadableLog, Visit
from ._encode import Encoder, ViewEncoder, values_of
from ._fingerprint import fingerprint
from ._index import ShardIndex, ShardPlan
from ._views import Views
from ._write import Progress, check_processes, write_shards


def precompute(
    source: AbstractSource,
    tokenizer: Encoder,
    folder: str | os.PathLike,
    *,
    size: int,
    views: Views = Views.FLIP,
    batch_size: int = 32,
    shard_size: int = 8192,
    dtype: DTypeLike = np.float16,
    workers: int | None = None,
    process_index: int = 0,
    process_count: int = 1,
    description: Mapping[str, Any] | None = None,
    unreadable: UnreadableLog | None = None,
    put: Callable[[Any], Any] = jax.device_put,
    on_progress: Callable[[Progress], None] | None = None,
    stop: threading.Event | None = None,
) -> ShardIndex | None:
    """Encodes a whole source into a folder of shards: ids of a discrete tokenizer, or means and log-variances of an
    autoencoder. Call it again after an interruption: shards that are complete are kept.

    Threads read and cut ahead while the device encodes. An example that cannot be read is left out and listed in the
    index.

    **Arguments:**

    - `source`: images or clips, not augmented.
    - `tokenizer`: its `encode` takes one example of pixels in [−1, 1].
    - `folder`: where to; it belongs to these arguments and no others.
    - `size`: height and width of what is encoded, cut from what the source gives.
    - `views`: of each example.
    - `batch_size`: views to encode at once.
    - `shard_size`: examples of a file, and what an interruption can cost.
    - `dtype`: of means and log-variances. float16 rounds them by 2⁻¹¹ of their size at most: a log-variance of −16 by
      0.008, which changes the standard deviation by 0.4 %.
    - `workers`: threads that read; 0 reads when needed. Default: one for each core, 16 at most.
    - `process_index`, `process_count`: share the work among processes that see the same folder; each takes every
      `process_count`-th shard.
    - `description`: what else tells these shards from others, of JSON's types, such as the name of the data set.
    - `unreadable`: counts what could not be read and sets how much of that to bear, by default 100 examples.
    - `put`: puts a batch on the devices, such as [`shard_batch`][elt_zoo.sharding.shard_batch] to use several.
    - `on_progress`: called after every batch.
    - `stop`: an event that ends the work after the current batch. The shard in hand will be made anew.

    **Returns:** the index, or `None` if it was stopped or shards of other processes are still missing.

    **Raises:** `DataError` if the folder holds anything else, with every difference, and once too much could not be
    read; `ValueError` for arguments out of range; `TypeError` if `encode` gives something else.
    """
    check_processes("precompute", process_index, process_count)
    if batch_size < views.count or shard_size < 1:
        raise ValueError(
            f"`precompute(batch_size={batch_size}, shard_size={shard_size})` needs batches of at least {views.count} "
            "views, those of one example, and at least one example a shard."
        )
    reader = _Reader(source, size, views)
    unreadable = UnreadableLog() if unreadable is None else unreadable
    workers = default_workers() if workers is None else workers
    first = reader.first()
    encoder = ViewEncoder(tokenizer, first, batch_size=batch_size // views.count, dtype=dtype, put=put)
    plan = ShardPlan(
        kind="tokens" if encoder.codebook_size else "latents",
        fields=encoder.fields,
        class_names=source.class_names,
        examples=len(source),
        shard_size=shard_size,
        views=views,
        input_shape=values_of(first).shape[1:],
        codebook_size=encoder.codebook_size,
        fingerprint=fingerprint(tokenizer),
        description={} if description is None else description,
    )

    def records(rows: range, skipped: dict[str, str], report: Callable[[int], None]) -> Iterator[bytes]:
        # The device gets its next batch before the results of the last are fetched.
        waiting: list[tuple[Any, list[int]]] = []
        read = 0
        for batch in reader.batches(rows, workers, encoder.batch_size):
            for item in batch:
                if item.error is not None:
                    name = source.name(item.row)
                    skipped[name] = str(item.error)
                    unreadable.add(name, item.error)
            examples = [item.example for item in batch if item.example is not None]
            if examples:
                waiting.append((encoder.start(examples), [int(example.labels[0]) for example in examples]))
            if len(waiting) > 1:
                yield from encoder.finish(*waiting.pop(0), plan.record)
            read += len(batch)
            report(read)
        for outputs, labels in waiting:
            yield from encoder.finish(outputs, labels, plan.record)

    return write_shards(
        folder,
        plan,
        records,
        process_index=process_index,
        process_count=process_count,
        on_progress=on_progress,
        stop=stop,
    )


class _Item(NamedTuple):
    """An example with its views in the first axis, or why there is none."""

    row: int
    example: Images | Clips | None
    error: UnreadableExample | None


class _Reader:
    """Reads examples of a source in order and cuts their views."""

    def __init__(self, source: AbstractSource, size: int, views: Views):
        self._source = source
        self._size = size
        self._views = views

    def read(self, index: int) -> _Item:
        try:
            example = self._source.read(Visit(int(index)))
        except UnreadableExample as error:
            return _Item(index, None, error)
        if not isinstance(example, Images | Clips):
            raise TypeError(f"`precompute` encodes images or clips; the source gave a {type(example).__name__}.")
        views = self._views.cut(values_of(example), self._size)
        return _Item(index, type(example)(views, np.full(len(views), example.labels, np.int32)), None)

    def first(self) -> Images | Clips:
        """The first example that can be read."""
        for index in range(len(self._source)):
            item = self.read(index)
            if item.example is not None:
                return item.example
        raise DataError(f"None of the {len(self._source)} examples could be read; the first is {self._source.name(0)}.")

    def batches(self, rows: range, workers: int, batch_size: int) -> Iterator[list[_Item]]:
        """The examples of `rows`, read by threads two batches ahead."""
        # A short buffer: Grain looks through all of it at every example. Whole batches wait behind it.
        options = grain.ReadOptions(num_threads=workers, prefetch_buffer_size=4 * workers)
        items = grain.MapDataset.range(rows.start, rows.stop).map(self.read).to_iter_dataset(options)
        batches = items.batch(batch_size, drop_remainder=False, batch_fn=list)
        return iter(grain.experimental.ThreadPrefetchIterDataset(batches, prefetch_buffer_size=2 if workers else 0))
