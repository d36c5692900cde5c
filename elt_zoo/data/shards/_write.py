import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from .._source import UnreadableExample, UnreadableLog
from ._index import ShardIndex, ShardPlan
from ._lock import FolderShare
from ._options import ShardOptions, ShardProgress
from ._writer import ShardWriter


class Skipped(NamedTuple):
    """An example that could not be read, in place of its record."""

    name: str
    error: UnreadableExample


Entries = Callable[[range], Iterator[Sequence[bytes | Skipped]]]
"""Reads some rows of a source, in order: batches with an entry for each row, its record or why there is none."""


def write_shards(
    folder: str | os.PathLike, plan: ShardPlan, entries: Entries, options: ShardOptions
) -> ShardIndex | None:
    """Writes those shards of a process that are not there yet, and the index once all are.

    **Returns:** the index, or `None` if the work was stopped, or shards of other processes are missing.

    **Raises:** `DataError` if the folder holds anything else; `FolderLocked` if another process writes the same shards;
    `OSError` if they cannot be written.
    """
    with FolderShare(Path(folder), options.process_index, options.process_count) as share:
        writer = ShardWriter(folder, plan, alone=share.alone)
        share.admit_others()
        mine = range(options.process_index, plan.num_shards, options.process_count)
        finished = {number: shard for number, shard in writer.finished().items() if number in mine}
        tally = _Tally(
            options,
            done=sum(len(plan.rows(number)) for number in finished),
            total=sum(len(plan.rows(number)) for number in mine),
            skipped=sum(len(shard.skipped) for shard in finished.values()),
        )
        try:
            tally.report()
            for number in mine:
                if number not in finished:
                    _write_shard(writer, number, tally.count(entries(plan.rows(number))))
        except _Stopped:
            return None
        return writer.finish()


def _write_shard(writer: ShardWriter, number: int, entries: Iterable[bytes | Skipped]) -> None:
    skipped: dict[str, str] = {}

    def records() -> Iterator[bytes]:
        for entry in entries:
            if isinstance(entry, Skipped):
                skipped[entry.name] = str(entry.error)
            else:
                yield entry

    writer.write(number, records(), skipped)


class _Tally:
    """Counts what one process has done, reports it, and stops when asked."""

    def __init__(self, options: ShardOptions, *, done: int, total: int, skipped: int):
        self._on_progress = options.on_progress
        self._stop = options.stop
        self._unreadable = UnreadableLog() if options.unreadable is None else options.unreadable
        self._progress = ShardProgress(done, total, skipped)

    def count(self, batches: Iterable[Sequence[bytes | Skipped]]) -> Iterator[bytes | Skipped]:
        """The entries of all batches. **Raises:** `DataError` when too many could not be read."""
        for batch in batches:
            for entry in batch:
                if isinstance(entry, Skipped):
                    self._unreadable.add(entry.name, entry.error)
            yield from batch
            done, total, skipped = self._progress
            lost = sum(isinstance(entry, Skipped) for entry in batch)
            self._progress = ShardProgress(done + len(batch), total, skipped + lost)
            self.report()

    def report(self) -> None:
        """Tells the caller how far it is. **Raises:** `_Stopped` if the caller has asked for an end."""
        if self._on_progress is not None:
            self._on_progress(self._progress)
        if self._stop is not None and self._stop.is_set():
            raise _Stopped


class _Stopped(Exception):
    """The caller has set the event `stop`."""
