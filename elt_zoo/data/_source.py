import abc
import logging
import threading
from typing import Any, NamedTuple

import jax
import numpy as np

_LOGGER = logging.getLogger("elt_zoo.data")


class Visit(NamedTuple):
    """Identifies one reading of an example. Random crops, flips and clips depend on nothing else."""

    index: int  # pyright: ignore[reportIncompatibleMethodOverride]
    epoch: int = 0
    seed: int = 0

    def rng(self) -> np.random.Generator:
        """Returns the random generator of this visit: the same on every process, with any number of workers."""
        return np.random.default_rng((self.seed, self.epoch, self.index))


class UnreadableExample(ValueError):
    """An example cannot be read: its file is damaged, empty, too short or gone."""


class DataError(ValueError):
    """A data set is missing, not laid out as expected, or too damaged to train on."""


class AbstractSource(abc.ABC):
    """Random access to labelled examples.

    A source is a `RandomAccessDataSource` of Grain (`len(source)`, `source[index]`) that also takes the epoch and the
    seed, so that random crops differ between epochs. Several threads read it at once.
    """

    class_names: tuple[str, ...]
    """Names of the classes, by label."""

    batched: bool = False
    """Whether `read_batch` is faster than reading one by one."""

    in_memory: bool = False
    """Whether reading is so fast that no thread has to read ahead."""

    @property
    def num_classes(self) -> int:
        """Number of classes; labels are 0 to `num_classes` − 1."""
        return len(self.class_names)

    @abc.abstractmethod
    def __len__(self) -> int:
        """Number of examples per epoch."""

    @abc.abstractmethod
    def read(self, visit: Visit) -> Any:
        """Returns one example, a pytree of NumPy arrays. All examples have the same shapes.

        **Raises:** `UnreadableExample` with the reason if it cannot be read.
        """

    @abc.abstractmethod
    def name(self, index: int) -> str:
        """Returns where an example comes from, such as its path, for messages."""

    def read_batch(self, visits: list[Visit]) -> Any:
        """Returns the examples of several visits, stacked."""
        return jax.tree.map(lambda *leaves: np.stack(leaves), *map(self.read, visits))

    def __getitem__(self, index: int) -> Any:
        return self.read(Visit(int(index)))


class UnreadableLog:
    """Counts the examples that could not be read, names each once in the log `elt_zoo.data`, and raises an error when
    there are too many.
    """

    def __init__(self, limit: int = 100):
        """**Arguments:** `limit`: how many examples may be unreadable. **Raises:** `ValueError` if negative."""
        if limit < 0:
            raise ValueError(f"`UnreadableLog(limit={limit})` must be at least 0: how many examples may be unreadable.")
        self.limit = limit
        self._names: dict[str, str] = {}
        self._lock = threading.Lock()

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the examples that could not be read so far."""
        return tuple(self._names)

    def add(self, name: str, error: Exception) -> None:
        """Counts one example. **Raises:** `DataError` beyond the limit, with the latest names."""
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
    """Reads visits, and replaces an example that cannot be read by the next one that can.

    No other example of the stream moves, so every process still sees its part of the same global batches.
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
