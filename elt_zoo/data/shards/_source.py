import abc
import os
import threading
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Int, Int64, UInt64

from ..._optional import optional_import
from .._batches import Latents, Tokens
from .._source import AbstractSource, DataError, UnreadableExample, Visit
from ._fingerprint import fingerprint
from ._index import ShardIndex, open_shards

# With a buffer or a pool of threads, a record at random costs a millisecond instead of 3 µs (array_record 0.8.6); and
# to read a list of records takes longer the more the file has: 140 µs for one of 100,000.
_OPTIONS = "readahead_buffer_size:0,max_parallelism:0"


class _File(NamedTuple):
    """An open file, which has one position at a time."""

    reader: Any
    lock: threading.Lock


class ShardReader:
    """Random access to the records of a folder of shards. Each file is opened once, when it is first needed; several
    threads read it.
    """

    def __init__(self, folder: str | os.PathLike, kind: str):
        """**Raises:** `DataError` if the folder does not match its index or holds another kind of record."""
        self.folder = Path(folder)
        self.index: ShardIndex = open_shards(folder)
        found = self.index.plan.kind
        if found != kind:
            raise DataError(f"{self.folder} holds {found}, not {kind}. Open it with Sharded{found.title()}.")
        self._ends = np.cumsum([shard.examples for shard in self.index.shards])
        self._starts = self._ends - [shard.examples for shard in self.index.shards]
        self._files: dict[int, _File] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return int(self._ends[-1])

    def read(self, rows: Int[np.ndarray, " rows"]) -> list[bytes]:
        """**Raises:** `UnreadableExample` for a damaged record."""
        shards = np.searchsorted(self._ends, rows, side="right")
        positions = rows - self._starts[shards]
        return [
            self._record(shard, position) for shard, position in zip(shards.tolist(), positions.tolist(), strict=True)
        ]

    def _record(self, shard: int, position: int) -> bytes:
        try:
            file = self._files.get(shard) or self._open(shard)
            with file.lock:
                file.reader.seek(position)
                return file.reader.read()
        except (RuntimeError, IndexError) as error:
            # A reader that failed once never reads again.
            self._files.pop(shard, None)
            name = self.name(int(self._starts[shard]) + position)
            raise UnreadableExample(f"{name} is damaged: {error}") from error

    def name(self, row: int) -> str:
        """Returns the file and the position of a record."""
        shard = int(np.searchsorted(self._ends, row, side="right"))
        return f"{self.folder / self.index.plan.file_name(shard)}, record {row - int(self._starts[shard])}"

    def _open(self, shard: int) -> _File:
        module = optional_import("array_record.python.array_record_module")
        path = self.folder / self.index.plan.file_name(shard)
        with self._lock:
            if shard not in self._files:
                reader = module.ArrayRecordReader(str(path), _OPTIONS)
                found, expected = reader.num_records(), self.index.shards[shard].examples
                if found != expected:
                    raise UnreadableExample(f"{path} has {found} records, but its index says {expected}")
                self._files[shard] = _File(reader, threading.Lock())
            return self._files[shard]


class _ShardedRecords(AbstractSource):
    """Records of fixed length, read as arrays."""

    batched = True
    _kind: str

    def __init__(
        self, folder: str | os.PathLike, *, tokenizer: Any | None = None, shape: tuple[int, ...] | None = None
    ):
        """**Arguments:**

        - `folder`: a folder that [`precompute`][elt_zoo.data.precompute] wrote.
        - `tokenizer`: the tokenizer that must have made the records; `None` accepts any.
        - `shape`: the shape that one example must have; `None` accepts any.

        **Raises:** `DataError` if the folder does not match its index, or holds records of another kind, tokenizer or
        shape.
        """
        self._reader = ShardReader(folder, self._kind)
        self.index = self._reader.index
        plan = self.index.plan
        self.class_names = plan.class_names
        self._record = plan.record
        found = {field[1:] for _, field in plan.fields.values()}
        if shape is not None and found != {tuple(shape)}:
            raise DataError(
                f"{folder} holds {self._kind} of shape {found.pop()}, made from images of {plan.input_shape}, but "
                f"{tuple(shape)} was asked for. Precompute them in the size that the model needs."
            )
        if tokenizer is not None and fingerprint(tokenizer) != plan.fingerprint:
            raise DataError(
                f"{folder} was made with another tokenizer: its fingerprint is {str(plan.fingerprint)[:12]}…, that of "
                f"the {type(tokenizer).__name__} given is {fingerprint(tokenizer)[:12]}…. Load the tokenizer that made "
                f"the {self._kind}, or precompute them with this one."
            )

    def __len__(self) -> int:
        return len(self._reader)

    def name(self, index: int) -> str:
        """Returns the file and the position of a record."""
        return self._reader.name(index)

    def read(self, visit: Visit) -> Any:
        """Returns one example, in the view that this visit samples."""
        return jax.tree.map(lambda leaf: leaf[0, ...], self.read_batch([visit]))

    def read_batch(self, visits: list[Visit]) -> Any:
        """Returns several examples, stacked. **Raises:** `UnreadableExample` if one of them is damaged."""
        table = np.asarray(visits, np.int64)
        content = b"".join(self._reader.read(table[:, 0]))
        if len(content) != len(visits) * self._record.itemsize:
            raise UnreadableExample(f"{self.name(visits[0].index)} or another of its batch has the wrong length")
        records = np.frombuffer(content, self._record)
        views = draw_views(table.astype(np.uint64), self.index.plan.views.count)
        rows = np.arange(len(visits))
        fields = {name: records[name][rows, views] for name in self.index.plan.fields}
        return self._example(records["label"].astype(np.int32), fields)

    @abc.abstractmethod
    def _example(self, labels: np.ndarray, fields: dict[str, np.ndarray]) -> Any:
        """Returns the batch of some fields."""


class ShardedTokens(_ShardedRecords):
    """A source of precomputed [`Tokens`][elt_zoo.data.Tokens]. Every visit samples one of the stored views."""

    _kind = "tokens"

    @property
    def codebook_size(self) -> int:
        """Number of codes K; ids are 0 to K − 1."""
        assert self.index.plan.codebook_size is not None
        return self.index.plan.codebook_size

    def _example(self, labels: np.ndarray, fields: dict[str, np.ndarray]) -> Tokens:
        return Tokens(labels=labels, **fields)


class ShardedLatents(_ShardedRecords):
    """A source of precomputed [`Latents`][elt_zoo.data.Latents]. Every visit samples one of the stored views;
    [`sample_latents`][elt_zoo.data.sample_latents] samples from the posterior.
    """

    _kind = "latents"

    def _example(self, labels: np.ndarray, fields: dict[str, np.ndarray]) -> Latents:
        return Latents(labels=labels, **fields)


def draw_views(visits: UInt64[np.ndarray, "visits 3"], count: int) -> Int64[np.ndarray, " visits"]:
    """Samples a view for each visit (index, epoch and seed) by three rounds of SplitMix64, and from nothing else.
    A NumPy generator for each visit would cost more than reading it.

    ??? cite "Reference"

        Steele, Lea and Flood, *Fast splittable pseudorandom number generators* (2014).
    """
    state = np.zeros(len(visits), np.uint64)
    for column in visits.T:
        state = (state ^ column) + np.uint64(0x9E3779B97F4A7C15)
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        state = state ^ (state >> np.uint64(31))
    return (state % np.uint64(count)).astype(np.int64)
