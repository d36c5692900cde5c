import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

import grain

from ._source import AbstractSource, SubstitutingReader, UnreadableLog, Visit

_BATCHES_AHEAD = 2
_MOST_WORKERS = 16


def default_workers() -> int:
    """Number of threads that decode files: one for each core, 16 at most."""
    return min(os.cpu_count() or 1, _MOST_WORKERS)


class TrainingBatches(Iterator[Any]):
    """An endless stream of batches with a position, see [`training_batches`][elt_zoo.data.training_batches].

    The position counts the examples that all processes have taken together, so it means the same to any number of them.
    """

    def __init__(self, stream: Callable[[int], grain.DatasetIterator], examples: int):
        """**Arguments:** `stream`: the batches from a given one on; `examples`: of a batch, of all processes."""
        self._stream = stream
        self._examples = examples
        self._batches = stream(0)
        self._taken = 0

    def __next__(self) -> Any:
        batch = next(self._batches)
        self._taken += 1
        return batch

    def get_state(self) -> dict[str, int]:
        """The position, of JSON's types."""
        return {"next_index": self._taken * self._examples}

    def set_state(self, state: dict[str, int]) -> None:
        """Goes to a position that `get_state` gave.

        **Raises:** `ValueError` for anything else, and for one between two batches of this size.
        """
        index = state.get("next_index") if isinstance(state, dict) else None
        if not isinstance(index, int) or index < 0 or index % self._examples:
            raise ValueError(
                f"`set_state({state!r})` is no position of batches of {self._examples} examples, such as "
                f"`{{'next_index': {5 * self._examples}}}`. Restore it with the batch size that it was saved with."
            )
        self.close()
        self._taken = index // self._examples
        self._batches = self._stream(self._taken)

    def close(self) -> None:
        """Ends the threads that read ahead."""
        self._batches.close()


def training_batches(
    source: AbstractSource,
    *,
    batch_size: int,
    seed: int,
    process_index: int = 0,
    process_count: int = 1,
    workers: int | None = None,
    unreadable: UnreadableLog | None = None,
    put: Callable[[Any], Any] | None = None,
) -> TrainingBatches:
    """Returns an endless, shuffled stream of batches whose position can be saved.

    Every epoch is a new permutation of the whole source, decided by the seed alone. Of several processes each reads its
    part: the batches of n processes, b examples each, one after another are the batch of n·b that one process would
    read. Neither the processes nor the workers change what is read, so a saved position may be restored with any number
    of both. An example that cannot be read is replaced by the next one that can.

    **Arguments:**

    - `source`: examples.
    - `batch_size`: examples per batch and process.
    - `seed`: seed of the shuffle and of the source's random crops, at least 0.
    - `process_index`, `process_count`: this process among all, `jax.process_index()` and `jax.process_count()`.
    - `workers`: threads that read ahead; 0 reads each batch when it is asked for. Files are decoded outside Python's
      lock, so threads use all cores. Default: none for sources in memory, one for sources that read whole batches at
      once, else one for each core, 16 at most.
    - `unreadable`: counts the examples that could not be read, and limits them; by default to 100.
    - `put`: applied to every batch ahead of its use, such as [`shard_batch`][elt_zoo.sharding.shard_batch], which puts
      it on the devices.

    **Returns:** an iterator of batches. `get_state()` and `set_state()` save and restore its position, `close()` ends
    its threads.

    **Raises:** `ValueError` if a process has fewer examples than a batch, or the process index is out of range. While
    reading, `DataError` when more examples than allowed cannot be read.
    """
    if not 0 <= process_index < process_count:
        raise ValueError(
            f"`training_batches(process_index={process_index}, process_count={process_count})`: need 0 <= index < "
            "count."
        )
    if workers is not None and workers < 0:
        raise ValueError(f"`training_batches(workers={workers})` must be 0 or more threads, or `None` to choose.")
    count = len(source)
    if batch_size < 1 or count // process_count < batch_size:
        raise ValueError(
            f"`training_batches(batch_size={batch_size})` cannot be filled: each of {process_count} process(es) has "
            f"{count // process_count} of the {count} examples. Use a smaller batch."
        )
    reader = SubstitutingReader(source, UnreadableLog() if unreadable is None else unreadable)

    def visit(position: int, index: int) -> Visit:
        return Visit(index, position // count, seed)

    # The processes share the endless stream and not each epoch, whose length they need not divide.
    visits = grain.MapDataset.range(count).seed(seed).shuffle().repeat(None).map_with_index(visit)
    if workers is None:
        workers = 0 if source.in_memory else 1 if source.batched else default_workers()

    def stream(start: int) -> grain.DatasetIterator:
        def mine(position: int) -> Visit:
            batch, place = divmod(position, batch_size)
            found: Any = visits[((start + batch) * process_count + process_index) * batch_size + place]
            return found

        mine_from_start = grain.MapDataset.range(sys.maxsize).map(mine)
        return iter(_read(mine_from_start, source, reader, batch_size=batch_size, workers=workers, put=put))

    return TrainingBatches(stream, batch_size * process_count)


def _read(
    visits: grain.MapDataset,
    source: AbstractSource,
    reader: SubstitutingReader,
    *,
    batch_size: int,
    workers: int,
    put: Callable[[Any], Any] | None,
) -> grain.IterDataset:
    """Batches of the examples that are visited."""
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
    if put is not None:
        stream = stream.map(put)
    if workers:
        stream = grain.experimental.ThreadPrefetchIterDataset(stream, prefetch_buffer_size=_BATCHES_AHEAD)
    return stream
