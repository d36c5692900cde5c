import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ...storage import read_json, write_json
from .._source import DataError
from ._views import Views

FORMAT_VERSION = 1
INDEX_FILE = "index.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShardPlan:
    """The contents of a folder of shards, known before the first shard is written.

    **Fields:**

    - `kind`: image files, or the ids or latents of a tokenizer.
    - `fields`: dtype and shape of each array of a record, with the views of an example in the first axis. Empty for
      images, whose records vary in length.
    - `class_names`: names of the classes, by label.
    - `examples`: examples of the source, including those that turn out to be unreadable.
    - `shard_size`: examples of each shard but the last.
    - `views`: the views in the first axis of `fields`.
    - `input_shape`: shape of the pixels that were encoded.
    - `codebook_size`: K, for tokens.
    - `fingerprint`: identifies the tokenizer.
    - `description`: anything else that tells this folder from another, of JSON's types.
    """

    kind: Literal["images", "tokens", "latents"]
    fields: Mapping[str, tuple[str, tuple[int, ...]]]
    class_names: tuple[str, ...]
    examples: int
    shard_size: int
    views: Views = Views.ONE
    input_shape: tuple[int, ...] | None = None
    codebook_size: int | None = None
    fingerprint: str | None = None
    description: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def record(self) -> np.dtype:
        """Layout of a record of fixed length: the label and the fields, little-endian."""
        return np.dtype([("label", "<i4"), *((name, *field) for name, field in self.fields.items())])

    @property
    def num_shards(self) -> int:
        """Number of files."""
        return -(-self.examples // self.shard_size)

    def rows(self, shard: int) -> range:
        """Returns the examples of the source that belong to a shard."""
        return range(shard * self.shard_size, min((shard + 1) * self.shard_size, self.examples))

    def file_name(self, shard: int) -> str:
        """Returns the name of a shard's file."""
        return f"shard-{shard:05d}-of-{self.num_shards:05d}.array_record"

    def to_json(self) -> dict[str, Any]:
        """Returns the plan in JSON's types."""
        return json.loads(json.dumps(dataclasses.asdict(self) | {"views": self.views.value}))

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "ShardPlan":
        """The inverse of `to_json`. **Raises:** `KeyError`, `TypeError` or `ValueError` for anything else."""
        content = dict(content)
        shape = content["input_shape"]
        content |= {
            "fields": {name: (str(dtype), tuple(shape)) for name, (dtype, shape) in content["fields"].items()},
            "class_names": tuple(content["class_names"]),
            "views": Views(content["views"]),
            "input_shape": None if shape is None else tuple(shape),
        }
        plan = cls(**content)
        np.dtype(plan.record)
        if plan.kind not in ("images", "tokens", "latents"):
            raise ValueError(f"kind is {plan.kind!r}")
        if plan.examples < 1 or plan.shard_size < 1:
            raise ValueError(f"examples is {plan.examples}, shard_size is {plan.shard_size}")
        return plan


@dataclasses.dataclass(frozen=True)
class Shard:
    """One finished file.

    **Fields:** `examples`, `bytes`: how many it holds; `crc32`: checksum of its bytes; `skipped`: names of the examples
    that could not be read, and the reasons.
    """

    examples: int
    bytes: int
    crc32: int
    skipped: Mapping[str, str]

    def __post_init__(self):
        if not all(isinstance(number, int) and number >= 0 for number in (self.examples, self.bytes, self.crc32)):
            raise ValueError(f"a shard of {self.examples!r} examples, {self.bytes!r} bytes, checksum {self.crc32!r}")
        if not isinstance(self.skipped, Mapping):
            raise TypeError(f"skipped is {self.skipped!r}")


@dataclasses.dataclass(frozen=True)
class ShardIndex:
    """The index of a complete folder of shards, as `precompute`, `pack_images` and `open_shards` return it."""

    plan: ShardPlan
    shards: tuple[Shard, ...]

    def __len__(self) -> int:
        """Number of examples in all shards."""
        return sum(shard.examples for shard in self.shards)

    @property
    def kind(self) -> Literal["images", "tokens", "latents"]:
        """Kind of the records: image files, or the ids or latents of a tokenizer."""
        return self.plan.kind

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes, by label."""
        return self.plan.class_names

    @property
    def shape(self) -> tuple[int, ...] | None:
        """Shape of the ids of one example, or of its mean; `None` for image files."""
        return next((shape[1:] for _, shape in self.plan.fields.values()), None)

    @property
    def num_shards(self) -> int:
        """Number of files."""
        return len(self.shards)

    @property
    def num_bytes(self) -> int:
        """Size of all files in bytes."""
        return sum(shard.bytes for shard in self.shards)

    @property
    def skipped(self) -> dict[str, str]:
        """Names of the examples that could not be read, and the reasons."""
        return {name: reason for shard in self.shards for name, reason in shard.skipped.items()}


def file_size(file: Path) -> int | None:
    """Returns the size of a file in bytes, or `None` if there is none."""
    return file.stat().st_size if file.is_file() else None


def read_index_file(file: Path) -> Any:
    """Returns the content of a JSON file, or `None` if there is none. **Raises:** `DataError` if it cannot be read."""
    try:
        return read_json(file)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror or error}.") from error
    except ValueError as error:
        raise DataError(f"{error}. Restore it, or write the shards again in another folder.") from error


def read_plan(folder: Path) -> tuple[ShardPlan, tuple[Shard, ...] | None] | None:
    """Returns the plan of a folder and, if they are complete, its shards; `None` if there is no index.

    **Raises:** `DataError` if the index is damaged or of a newer version.
    """
    file = folder / INDEX_FILE
    content = read_index_file(file)
    if content is None:
        return None
    try:
        version = content["format_version"]
        if isinstance(version, int) and version > FORMAT_VERSION:
            raise DataError(
                f"{file} has format version {version}; this elt_zoo reads up to {FORMAT_VERSION}. Install a newer one."
            )
        plan = ShardPlan.from_json(content["plan"])
        if content["shards"] is None:
            return plan, None
        shards = tuple(Shard(**entry) for entry in content["shards"])
        if len(shards) != plan.num_shards:
            raise ValueError(f"it lists {len(shards)} shards, but {plan.examples} examples make {plan.num_shards}")
    except DataError:
        raise
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{file} is not an index of shards: {error!r}. Restore it, or write the shards again in another folder."
        ) from error
    return plan, shards


def write_plan(folder: Path, plan: ShardPlan, shards: tuple[Shard, ...] | None) -> None:
    """Writes the index of a complete folder, or with `None` of an incomplete one."""
    entries = None if shards is None else [dataclasses.asdict(shard) for shard in shards]
    write_json(folder / INDEX_FILE, {"format_version": FORMAT_VERSION, "plan": plan.to_json(), "shards": entries})


def open_shards(folder: str | os.PathLike) -> ShardIndex:
    """Reads the index of a folder of shards and makes sure that all files are there with their sizes. Each record is
    checked when it is read.

    **Arguments:** `folder`: where `precompute` or `pack_images` wrote.

    **Returns:** the index.

    **Raises:** `DataError` if the folder has no index, an incomplete or a damaged one, or if files are missing or of
    another size, naming each.
    """
    folder = Path(folder)
    found = read_plan(folder)
    if found is None:
        raise DataError(
            f"{folder} holds no shards: it has no {INDEX_FILE}. Write them with `precompute` or `pack_images`."
        )
    plan, shards = found
    if shards is None:
        raise DataError(f"The shards in {folder} are incomplete. Run what writes them again; it resumes.")
    wrong = []
    for number, shard in enumerate(shards):
        size = file_size(folder / plan.file_name(number))
        if size != shard.bytes:
            found = "is missing" if size is None else f"has {size} bytes"
            wrong.append(f"{plan.file_name(number)} {found}, and should have {shard.bytes} bytes")
    if wrong:
        shown = "".join(f"\n  {line}" for line in wrong[:10]) + ("\n  …" if len(wrong) > 10 else "")
        raise DataError(
            f"{len(wrong)} of the {len(shards)} shards in {folder} do not match its index:{shown}\n"
            "Run what wrote them again: it writes these again."
        )
    return ShardIndex(plan, shards)
