from collections.abc import Sequence
from typing import Any

import numpy as np

from ._source import AbstractSource, SubstitutingReader, UnreadableLog, Visit


class Subset(AbstractSource):
    """Some examples of another source, in a given order. The classes stay the same."""

    def __init__(self, source: AbstractSource, indices: Sequence[int] | np.ndarray):
        """**Arguments:** `source`: all examples; `indices`: of the examples to keep.

        **Raises:** `ValueError` for an index out of range.
        """
        wrong = [index for index in indices if not 0 <= index < len(source)]
        if wrong:
            raise ValueError(f"`Subset` got the indices {wrong[:5]} of a source of {len(source)} examples.")
        self._source = source
        self._indices = [int(index) for index in indices]
        self.class_names = source.class_names
        self.batched, self.in_memory = source.batched, source.in_memory

    def __len__(self) -> int:
        return len(self._indices)

    def read(self, visit: Visit) -> Any:
        """Returns one example of the subset."""
        return self._source.read(self._whole(visit))

    def read_batch(self, visits: list[Visit]) -> Any:
        """Returns several examples, stacked."""
        return self._source.read_batch([self._whole(visit) for visit in visits])

    def name(self, index: int) -> str:
        """Returns the name that the other source gives it."""
        return self._source.name(self._indices[index])

    def _whole(self, visit: Visit) -> Visit:
        return visit._replace(index=self._indices[visit.index])


def hold_out(count: int, heldout: int, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Splits the indices 0 to `count` − 1 at random.

    **Arguments:** `count`: examples in all; `heldout`: how many to hold out; `seed`: of the split.

    **Returns:** the indices to train on, and the `heldout` others, both sorted.

    **Raises:** `ValueError` if nothing would be left for training.
    """
    if not 0 <= heldout < count:
        raise ValueError(f"`hold_out` cannot keep {heldout} of {count} examples from training: use fewer.")
    order = np.random.default_rng(seed).permutation(count)
    return np.sort(order[heldout:]), np.sort(order[:heldout])


def first_examples(source: AbstractSource, count: int, *, unreadable: UnreadableLog | None = None) -> Any:
    """Reads the first `count` examples of a source, or all if there are fewer, and stacks them. Examples that cannot
    be read are replaced and counted as in [`training_batches`][elt_zoo.data.training_batches].
    """
    reader = SubstitutingReader(source, UnreadableLog() if unreadable is None else unreadable)
    return reader.read_batch([Visit(index) for index in range(min(count, len(source)))])
