import contextlib
import dataclasses
import os
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from .._optional import optional_import
from .._source import DataError
from ._index import Shard, ShardIndex, ShardPlan, file_size, read_json, read_plan, write_json, write_plan

# A record to a chunk, so that reading one touches nothing else. Ids and JPEG hardly compress; leaving that out makes
# reading half as fast again.
_OPTIONS = "group_size:1,uncompressed"
_PIECE = 1 << 20


class ShardWriter:
    """Writes a folder of shards, several processes at once if need be, and goes on where it was interrupted.

    A folder belongs to one plan. Opening it with another one fails and changes nothing. A shard appears under its name
    when it is complete; what an interruption left of it is written anew.
    """

    def __init__(self, folder: str | os.PathLike, plan: ShardPlan):
        """**Arguments:** `folder`: created if missing; `plan`: what to write.

        **Raises:** `DataError` if the folder holds shards of another plan, with every difference, or other files.
        """
        self.folder = Path(folder)
        self.plan = plan
        try:
            saved, _ = read_plan(self.folder)
        except FileNotFoundError:
            if self.folder.exists() and any(self.folder.iterdir()):
                raise DataError(
                    f"{self.folder} is not empty and holds no shards. Choose another folder; nothing was changed."
                ) from None
            self.folder.mkdir(parents=True, exist_ok=True)
            write_plan(self.folder, plan, None)
            return
        differences = _differences(saved, plan)
        if differences:
            raise DataError(
                f"{self.folder} holds other shards. They differ in:\n  "
                + "\n  ".join(differences)
                + "\nUse what they were made with to resume them, or another folder. Nothing was changed."
            )

    def finished(self) -> dict[int, Shard]:
        """The shards whose files are there, by number, whoever wrote them."""
        notes = {}
        for number in range(self.plan.num_shards):
            with contextlib.suppress(FileNotFoundError):
                notes[number] = Shard(**read_json(self._note(number)))
        # After the notes, which are deleted only once the index has what they say.
        shards = dict(enumerate(read_plan(self.folder)[1] or ())) | notes
        return {
            number: shard
            for number, shard in sorted(shards.items())
            if file_size(self.folder / self.plan.file_name(number)) == shard.bytes
        }

    def write(self, number: int, records: Iterable[bytes], skipped: Mapping[str, str]) -> None:
        """Writes a shard. On an error, also one that the records raise, nothing of it remains.

        **Arguments:** `number`: of the shard; `records`: of its examples; `skipped`: names of the examples without a
        record, complete once the records are.
        """
        module = optional_import("array_record.python.array_record_module")
        file = self.folder / self.plan.file_name(number)
        # One process writes a shard, so the name may be fixed, and the next one overwrites what a killed one left.
        temporary = file.with_name(f"{file.name}.tmp")
        try:
            writer = module.ArrayRecordWriter(str(temporary), _OPTIONS)
            count = 0
            try:
                for record in records:
                    writer.write(record)
                    count += 1
            finally:
                writer.close()
            checksum = 0
            with temporary.open("rb") as content:
                while piece := content.read(_PIECE):
                    checksum = zlib.crc32(piece, checksum)
            shard = Shard(count, temporary.stat().st_size, checksum, dict(skipped))
            write_json(self._note(number), dataclasses.asdict(shard))
            os.replace(temporary, file)
        finally:
            temporary.unlink(missing_ok=True)

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
        """Where to find what the index is going to say of a shard."""
        return (self.folder / self.plan.file_name(number)).with_suffix(".json")


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
