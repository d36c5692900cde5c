import abc
import logging
import threading
from typing import Any, NamedTuple

import jax
import numpy as np

_LOGGER = logging.getLogger("elt_zoo.data")


class Visit(NamedTuple):
    """Which example is read, and when: all that its random crop, flip or clip may depend on."""

    index: int  # pyright: ignore[reportIncompatibleMethodOverride]
    epoch: int = 0
    seed: int = 0

    def rng(self) -> np.random.Generator:
        """Random numbers of this visit alone: the same on every process, with any number of workers."""
        return np.random.default_rng((self.seed, self.epoch, self.index))


class UnreadableExample(ValueError):
    """A file that holds no example: damaged, empty, too short, or gone."""


class DataError(ValueError):
    """A data set that is not there, not laid out as expected, or too damaged to train on."""


class AbstractSource(abc.ABC):
    """Random access to labelled examples.

    A source is Grain's `RandomAccessDataSource` (`len(source)`, `source[index]`) that is also told when it is read, so
    that every epoch may crop anew. It is read by several threads at once.
    """

    class_names: tuple[str, ...]
    """Names of the classes, by label."""

    batched: bool = False
    """Whether `read_batch` is faster than reads one by one and stacking."""

    in_memory: bool = False
    """Whether reading costs so little that no thread need do it ahead."""

    @property
    def num_classes(self) -> int:
        """Labels are 0 to `num_classes` − 1."""
        return len(self.class_names)

    @abc.abstractmethod
    def __len__(self) -> int:
        """Examples of an epoch."""

    @abc.abstractmethod
    def read(self, visit: Visit) -> Any:
        """One example, a pytree of NumPy arrays whose shapes are those of any other.

        **Raises:** `UnreadableExample`, naming the file and what is wrong with it.
        """

    @abc.abstractmethod
    def name(self, index: int) -> str:
        """Where the example comes from, for messages."""

    def read_batch(self, visits: list[Visit]) -> Any:
        """The examples of several visits, stacked."""
        return jax.tree.map(lambda *leaves: np.stack(leaves), *map(self.read, visits))

    def __getitem__(self, index: int) -> Any:
        return self.read(Visit(int(index)))


class UnreadableLog:
    """Counts the examples that could not be read, names each once in the log `elt_zoo.data`, and stops the run when
    there are too many of them.
    """

    def __init__(self, limit: int = 100):
        """**Arguments:** `limit`: examples that may be unreadable, 0 for none. **Raises:** `ValueError` if negative."""
        if limit < 0:
            raise ValueError(f"`UnreadableLog(limit={limit})` must be at least 0: how many bad files to put up with.")
        self.limit = limit
        self._names: dict[str, str] = {}
        self._lock = threading.Lock()

    @property
    def names(self) -> tuple[str, ...]:
        """What was skipped so far."""
        return tuple(self._names)

    def add(self, name: str, error: Exception) -> None:
        """Notes one example. **Raises:** `DataError` past the limit, with the latest few names."""
        with self._lock:
            if name in self._names:
                return
            self._names[name] = str(error)
            count = len(self._names)
            latest = list(self._names.items())[-3:]
        _LOGGER.warning("skipped %s: %s (%d skipped so far)", name, error, count)
        if count > self.limit:
            details = "".join(f"\n  {name}: {reason}" for name, reason in latest)
            raise DataError(
                f"{count} examples could not be read, more than the {self.limit} allowed. The latest:{details}\n"
                "Repair or delete them, or allow more."
            )


class SubstitutingReader:
    """Reads visits, and in place of an example that cannot be read the next one that can.

    No place in the stream ever moves, so every process still sees its part of the same global batches.
    """

    def __init__(self, source: AbstractSource, unreadable: UnreadableLog):
        self._source = source
        self._unreadable = unreadable

    def read(self, visit: Visit) -> Any:
        count = len(self._source)
        for offset in range(count):
            index = (visit.index + offset) % count
            try:
                return self._source.read(visit._replace(index=index))
            except UnreadableExample as error:
                self._unreadable.add(self._source.name(index), error)
        raise DataError(f"None of the {count} examples could be read; the first is {self._source.name(0)}.")

    def read_batch(self, visits: list[Visit]) -> Any:
        try:
            return self._source.read_batch(visits)
        except UnreadableExample:
            examples = [self.read(visit) for visit in visits]
            return jax.tree.map(lambda *leaves: np.stack(leaves), *examples)
