import dataclasses
import json
import threading
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from .._pipeline import default_workers
from .._source import UnreadableLog


class ShardProgress(NamedTuple):
    """How far a process has come with its shards: `done` of `total` examples, of which `skipped` could not be read."""

    done: int
    total: int
    skipped: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShardOptions:
    """How a source is written into shards, whatever the records are.

    **Arguments:**

    - `shard_size`: examples per file, which is also the most that an interruption can cost.
    - `workers`: threads that read ahead; 0 reads each example when it is needed. Default: one for each core, 16 at
      most.
    - `process_index`, `process_count`: this process among those that write the same folder together. Each takes every
      `process_count`-th shard.
    - `description`: anything else that tells these shards from others, such as the name of the data set. Its values
      are of JSON's types.
    - `unreadable`: counts the examples that could not be read, and limits them; by default to 100.
    - `on_progress`: called with a [`ShardProgress`][elt_zoo.data.ShardProgress] at the start and after every batch.
    - `stop`: an event that ends the work after the current batch. The unfinished shard is discarded.

    **Raises:** `ValueError` for a number out of range, or a description that JSON cannot hold.
    """

    shard_size: int = 8192
    workers: int | None = None
    process_index: int = 0
    process_count: int = 1
    description: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    unreadable: UnreadableLog | None = None
    on_progress: Callable[[ShardProgress], None] | None = None
    stop: threading.Event | None = None

    def __post_init__(self):
        if self.shard_size < 1:
            raise ValueError(f"`ShardOptions(shard_size={self.shard_size})` must be at least one example.")
        if self.workers is not None and self.workers < 0:
            raise ValueError(f"`ShardOptions(workers={self.workers})` must be 0 or more threads, or `None` to choose.")
        if not 0 <= self.process_index < self.process_count:
            raise ValueError(
                f"`ShardOptions(process_index={self.process_index}, process_count={self.process_count})`: need "
                "0 <= index < count."
            )
        try:
            json.dumps(dict(self.description))
        except (TypeError, ValueError) as error:
            raise ValueError(f"`ShardOptions(description=…)` holds what JSON cannot: {error}.") from error

    @property
    def threads(self) -> int:
        """The number of threads that read ahead."""
        return default_workers() if self.workers is None else self.workers
