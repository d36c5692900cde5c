from collections.abc import Callable
from typing import Any, NamedTuple

import grain
import numpy as np
from jaxtyping import Int


class Batch(NamedTuple):
    """Examples of any shape and their labels, with a leading batch axis."""

    examples: np.ndarray
    labels: Int[np.ndarray, " batch"]


class ArraySource:
    """Arrays in memory as a Grain random-access source of [`Batch`][elt_zoo.data.Batch] entries without the batch
    axis.
    """

    def __init__(self, examples: np.ndarray, labels: Int[np.ndarray, " examples"]):
        """**Raises:** `ValueError` if there is nothing, or not one label per example."""
        if len(examples) == 0 or len(examples) != len(labels):
            raise ValueError(
                f"`ArraySource` got {len(examples)} examples and {len(labels)} labels; it needs one label each."
            )
        self._examples = examples
        self._labels = labels

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index) -> Batch:
        return Batch(self._examples[index], self._labels[index])

    def __repr__(self) -> str:
        # Grain compares it with the checkpointed one, so it must not hold an address.
        return f"ArraySource({self._examples.shape}, {self._examples.dtype})"


def training_batches(
    source: Any,
    *,
    batch_size: int,
    seed: int,
    transform: Callable[[Batch], Batch] | None = None,
    shard_index: int = 0,
    shard_count: int = 1,
    workers: int = 0,
) -> grain.DatasetIterator:
    """An endless, shuffled stream of batches with a state that can be saved.

    Every epoch is a new permutation of the whole source, decided by the seed alone. Shards take every `shard_count`-th
    example, so that together they see each example once an epoch. Examples are read by threads, or by `workers`
    processes.

    **Arguments:**

    - `source`: a Grain random-access source (`__len__`, `__getitem__`) of [`Batch`][elt_zoo.data.Batch] entries.
    - `batch_size`: examples per batch and shard.
    - `seed`: of the shuffle, at least 0.
    - `transform`: applied to every example before batching.
    - `shard_index`, `shard_count`: this process among all, `jax.process_index()` and `jax.process_count()`.
    - `workers`: processes that read ahead; 0 reads in this one.

    **Returns:** a Grain iterator of `Batch`; `get_state()` and `set_state()` save and restore its place.

    **Raises:** `ValueError` if a shard has fewer examples than a batch or the shard index is out of range.
    """
    if not 0 <= shard_index < shard_count:
        raise ValueError(
            f"`training_batches(shard_index={shard_index}, shard_count={shard_count})`: need 0 <= index < count."
        )
    if batch_size < 1 or len(source) // shard_count < batch_size:
        raise ValueError(
            f"`training_batches(batch_size={batch_size})` cannot be filled: each of {shard_count} shard(s) of the "
            f"{len(source)} examples has {len(source) // shard_count}. Use a smaller batch."
        )
    dataset = grain.MapDataset.source(source).seed(seed).shuffle()
    dataset = dataset[shard_index::shard_count]
    if transform is not None:
        dataset = dataset.map(transform)
    dataset = dataset.repeat(None).batch(batch_size, drop_remainder=True)
    stream = dataset.to_iter_dataset(
        grain.ReadOptions(num_threads=0 if workers == 0 else 16, prefetch_buffer_size=0 if workers == 0 else 16)
    )
    if workers > 0:
        stream = stream.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers))
    return iter(stream)
