import os
from collections.abc import Callable
from typing import Any

import grain

from ._source import AbstractSource, SubstitutingReader, UnreadableLog, Visit

_BATCHES_AHEAD = 2
_MOST_WORKERS = 16


def default_workers() -> int:
    """Threads to decode files with: one for each core, 16 at most."""
    return min(os.cpu_count() or 1, _MOST_WORKERS)


def training_batches(
    source: AbstractSource,
    *,
    batch_size: int,
    seed: int,
    shard_index: int = 0,
    shard_count: int = 1,
    workers: int | None = None,
    unreadable: UnreadableLog | None = None,
    place: Callable[[Any], Any] | None = None,
) -> grain.DatasetIterator:
    """An endless, shuffled stream of batches with a state that can be saved.

    Every epoch is a new permutation of the whole source, decided by the seed alone. The global batch is cut between the
    shards, example by example: n shards of batch b together see the same global batches as one of batch n·b. Neither
    the shards nor the workers change what is read, only who reads it; a saved state may be restored with any number of
    workers. In place of an example that cannot be read comes the next one that can.

    **Arguments:**

    - `source`: examples.
    - `batch_size`: examples per batch and shard.
    - `seed`: of the shuffle and of what the source draws, at least 0.
    - `shard_index`, `shard_count`: this process among all, `jax.process_index()` and `jax.process_count()`.
    - `workers`: threads that read ahead; 0 reads when asked. Files are decoded outside Python's lock, so threads use
      all cores. Default: none for sources in memory, one for sources that read whole batches at once, else one for each
      core, 16 at most.
    - `unreadable`: counts what could not be read and sets how much of that to bear, by default 100 examples.
    - `place`: applied to every batch ahead of its use, such as [`shard_batch`][elt_zoo.sharding.shard_batch] to have it
      on the devices in time.

    **Returns:** a Grain iterator of batches; `get_state()` and `set_state()` save and restore its place, `close()` ends
    its threads.

    **Raises:** `ValueError` if a shard has fewer examples than a batch or the shard index is out of range. While
    reading, `DataError` once too much could not be read.
    """
    if not 0 <= shard_index < shard_count:
        raise ValueError(
            f"`training_batches(shard_index={shard_index}, shard_count={shard_count})`: need 0 <= index < count."
        )
    if workers is not None and workers < 0:
        raise ValueError(f"`training_batches(workers={workers})` must be 0 or more threads, or `None` to choose.")
    count = len(source)
    if batch_size < 1 or count // shard_count < batch_size:
        raise ValueError(
            f"`training_batches(batch_size={batch_size})` cannot be filled: each of {shard_count} shard(s) of the "
            f"{count} examples has {count // shard_count}. Use a smaller batch."
        )
    reader = SubstitutingReader(source, UnreadableLog() if unreadable is None else unreadable)

    def visit(position: int, index: int) -> Visit:
        return Visit(index, position // count, seed)

    # The shards part the endless stream and not each epoch, whose length they need not divide.
    visits = grain.MapDataset.range(count).seed(seed).shuffle().repeat(None).map_with_index(visit)
    visits = visits[shard_index::shard_count]
    if workers is None:
        workers = 0 if source.in_memory else 1 if source.batched else default_workers()
    if source.batched:
        batches = visits.batch(batch_size, drop_remainder=True, batch_fn=list).map(reader.read_batch)
        ahead = _BATCHES_AHEAD * workers
        stream = batches.to_iter_dataset(grain.ReadOptions(num_threads=workers, prefetch_buffer_size=ahead))
    else:
        # Grain looks at every buffered example at each step, so the buffer is short; whole batches wait behind it.
        ahead = 4 * workers
        examples = visits.map(reader.read)
        stream = examples.to_iter_dataset(grain.ReadOptions(num_threads=workers, prefetch_buffer_size=ahead))
        stream = stream.batch(batch_size, drop_remainder=True)
    if place is not None:
        stream = stream.map(place)
    if workers:
        stream = grain.experimental.ThreadPrefetchIterDataset(stream, prefetch_buffer_size=_BATCHES_AHEAD)
    return iter(stream)
