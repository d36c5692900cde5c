import os
import threading
from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol

from ._index import ShardIndex, ShardPlan
from ._writer import ShardWriter


class Progress(NamedTuple):
    """How far the writing of shards is: examples done, examples in all, and those of the former that could not be read.
    Other processes' shards do not count.
    """

    done: int
    total: int
    skipped: int


class Records(Protocol):
    """Makes the records of some rows of a source. It calls `report` with how many rows it has read, now and then, and
    notes in `skipped` the name of every example that cannot be read, with the reason.
    """

    def __call__(self, rows: range, skipped: dict[str, str], report: Callable[[int], None]) -> Iterator[bytes]: ...


def check_processes(call: str, process_index: int, process_count: int) -> None:
    if not 0 <= process_index < process_count:
        raise ValueError(
            f"`{call}(process_index={process_index}, process_count={process_count})`: need 0 <= index < count."
        )


def write_shards(
    folder: str | os.PathLike,
    plan: ShardPlan,
    records: Records,
    *,
    process_index: int,
    process_count: int,
    on_progress: Callable[[Progress], None] | None,
    stop: threading.Event | None,
) -> ShardIndex | None:
    """Writes those shards of a process that are not there yet, and the index once all are."""
    writer = ShardWriter(folder, plan)
    mine = range(process_index, plan.num_shards, process_count)
    finished = {number: shard for number, shard in writer.finished().items() if number in mine}
    total = sum(len(plan.rows(number)) for number in mine)
    done = sum(len(plan.rows(number)) for number in finished)
    lost = sum(len(shard.skipped) for shard in finished.values())
    skipped: dict[str, str] = {}

    def report(read: int) -> None:
        if on_progress is not None:
            on_progress(Progress(done + read, total, lost + len(skipped)))
        if stop is not None and stop.is_set():
            raise _Stopped

    try:
        report(0)
        for number in mine:
            if number not in finished:
                skipped = {}
                writer.write(number, records(plan.rows(number), skipped, report), skipped)
                done, lost, skipped = done + len(plan.rows(number)), lost + len(skipped), {}
    except _Stopped:
        return None
    return writer.finish()


class _Stopped(Exception):
    """The caller's event, on its way out of a shard."""
