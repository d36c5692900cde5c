import contextlib
import dataclasses
import os
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ..._optional import optional_import
from ...storage import atomic_write, remove_abandoned, write_json
from .._source import DataError
from ._index import INDEX_FILE, Shard, ShardIndex, ShardPlan, file_size, read_index_file, read_plan, write_plan
from ._lock import other_entries

# A record to a chunk, so that reading one touches nothing else. Ids and JPEG hardly compress; leaving that out makes
# reading half as fast again.
_OPTIONS = "group_size:1,uncompressed"
_PIECE = 1 << 20
_NOTE = re.compile(r"shard-\d+-of-\d+\.json")


class ShardWriter:
    """Writes a folder of shards and continues where it was interrupted. The caller holds the lock.

    A folder belongs to one plan. Opening it with another one fails and changes nothing. A shard appears under its name
    when it is complete.
    """

    def __init__(self, folder: str | os.PathLike, plan: ShardPlan, *, alone: bool = True):
        """**Arguments:** `folder`: created if missing; `plan`: what to write; `alone`: whether no other process writes
        to the folder. If so, another plan is replaced as long as it has no shard.

        **Raises:** `DataError` if the folder holds shards of another plan, naming every difference, or other files.
        """
        self.folder = Path(folder)
        self.plan = plan
        found = read_plan(self.folder)
        if found is None and other_entries(self.folder):
            raise DataError(
                f"{self.folder} is not empty and holds no shards. Choose another folder; nothing was changed."
            )
        differences = [] if found is None else _differences(found[0], plan)
        empty = all(name == INDEX_FILE or _NOTE.fullmatch(name) for name in other_entries(self.folder))
        if differences and not (alone and empty):
            raise DataError(
                f"{self.folder} holds other shards. They differ in:\n  "
                + "\n  ".join(differences)
                + "\nUse what they were made with to resume them, or another folder. Nothing was changed."
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        remove_abandoned(self.folder)
        if found is None or differences:
            for note in filter(_NOTE.fullmatch, other_entries(self.folder)):
                (self.folder / note).unlink()
            write_plan(self.folder, plan, None)

    def finished(self) -> dict[int, Shard]:
        """The shards whose files are there, by number, whoever wrote them."""
        notes = {}
        for number in range(self.plan.num_shards):
            note = read_index_file(self._note(number))
            if note is not None:
                try:
                    notes[number] = Shard(**note)
                except (TypeError, ValueError) as error:
                    raise DataError(f"{self._note(number)} is damaged: {error}. Delete it and run again.") from error
        # After the notes, which are deleted only once the index has what they say.
        _, listed = read_plan(self.folder) or (None, None)
        shards = dict(enumerate(listed or ())) | notes
        return {
            number: shard
            for number, shard in sorted(shards.items())
            if file_size(self.folder / self.plan.file_name(number)) == shard.bytes
        }

    def write(self, number: int, records: Iterable[bytes], skipped: Mapping[str, str]) -> None:
        """Writes a shard whole or not at all.

        **Arguments:** `number`: of the shard; `records`: of its examples; `skipped`: names of the examples without a
        record, and the reasons, complete once the records are.

        **Raises:** `OSError` in one line if the file cannot be written; what `records` raise.
        """
        file = self.folder / self.plan.file_name(number)
        with atomic_write(file) as temporary:
            count = _write_records(file, temporary, records)
            checksum = 0
            with temporary.open("rb") as content:
                while piece := content.read(_PIECE):
                    checksum = zlib.crc32(piece, checksum)
            shard = Shard(count, temporary.stat().st_size, checksum, dict(skipped))
            write_json(self._note(number), dataclasses.asdict(shard))

    def finish(self) -> ShardIndex | None:
        """Completes the index if every shard is there. **Returns:** the index, or `None` while some are missing."""
        shards = self.finished()
        if len(shards) < self.plan.num_shards:
            return None
        index = ShardIndex(self.plan, tuple(shards.values()))
        if len(index) == 0:
            raise DataError(f"None of the {self.plan.examples} examples for {self.folder} could be read.")
        write_plan(self.folder, self.plan, index.shards)
        for number in shards:
            self._note(number).unlink(missing_ok=True)
        return index

    def _note(self, number: int) -> Path:
        """The file that keeps a shard's entry until the index is complete."""
        return (self.folder / self.plan.file_name(number)).with_suffix(".json")


def _write_records(file: Path, temporary: Path, records: Iterable[bytes]) -> int:
    """Writes the records of `file` to an unfinished one. **Returns:** their number."""
    module = optional_import("array_record.python.array_record_module")
    writer, count = module.ArrayRecordWriter(str(temporary), _OPTIONS), 0
    try:
        for record in records:
            with _one_line(file):
                writer.write(record)
            count += 1
    except BaseException:
        with contextlib.suppress(RuntimeError):
            writer.close()
        raise
    with _one_line(file):
        writer.close()
    return count


@contextlib.contextmanager
def _one_line(file: Path) -> Iterator[None]:
    """ArrayRecord reports a full disk with a `RuntimeError` such as "write() failed: No space left on device; …"."""
    try:
        yield
    except RuntimeError as error:
        reason = str(error).split(";")[0].removeprefix("write() failed: ")
        raise OSError(
            f"{file} cannot be written: {reason}. Complete shards are kept; run it again to resume."
        ) from error


def _differences(saved: ShardPlan, given: ShardPlan) -> list[str]:
    """One line for each field in which two plans differ."""
    before, after = saved.to_json(), given.to_json()
    before |= {f"description.{name}": value for name, value in before.pop("description").items()}
    after |= {f"description.{name}": value for name, value in after.pop("description").items()}
    missing = "(missing)"
    return [
        f"{name}: saved {_short(before.get(name, missing))}, given {_short(after.get(name, missing))}"
        for name in sorted(before.keys() | after.keys())
        if before.get(name, missing) != after.get(name, missing)
    ]


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}…"
