import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..training import Checkpoints


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckpointOptions:
    """When a run saves its state, what it keeps, and where copies go. Any of it may change when a run resumes."""

    checkpoint_every: int = 500
    """Steps between two checkpoints."""
    keep: int = 2
    """Checkpoints to keep, the newest ones."""
    keep_every_steps: int | None = None
    """Keep for good, too, the checkpoints of its multiples; a multiple of `--checkpoint-every`."""
    keep_every_hours: float | None = None
    """Keep for good, too, the first checkpoint and from then on one every so many hours."""
    async_checkpoints: bool = True
    """Write checkpoints while training goes on. It takes memory of the host for one more state."""
    copy_checkpoints: str | None = None
    """A folder of an object store that gets a copy of every checkpoint, and from which another machine goes on:
    `gs://bucket/run` (needs gcsfs) or `s3://bucket/run` (needs s3fs)."""
    fall_back: bool = False
    """Where the newest checkpoint is damaged, go on from the newest intact one."""

    def __post_init__(self):
        for name in ("checkpoint_every", "keep"):
            if getattr(self, name) < 1:
                raise ValueError(f"`--{name.replace('_', '-')} {getattr(self, name)}` must be at least 1.")
        every, steps, hours = self.checkpoint_every, self.keep_every_steps, self.keep_every_hours
        if steps is not None and (steps < 1 or steps % every):
            raise ValueError(f"`--keep-every-steps {steps}` must be a multiple of `--checkpoint-every {every}`.")
        if hours is not None and not 0.0 < hours < math.inf:
            raise ValueError(f"`--keep-every-hours {hours}` must be a positive number.")
        url = self.copy_checkpoints
        if url is not None and not url.startswith(("gs://", "s3://")):
            raise ValueError(f"`--copy-checkpoints {url}` must be `gs://bucket/run` or `s3://bucket/run`.")

    def checkpoints(self, folder: Path, config: Mapping[str, Any], *, name: str = "") -> Checkpoints:
        """The checkpoints of a run in a folder.

        **Arguments:** `folder`, `config`: as for [`Checkpoints`][elt_zoo.training.Checkpoints]; `name`: of one run
        among several with the same options, for its copies.

        **Raises:** as `Checkpoints`.
        """
        url = self.copy_checkpoints
        return Checkpoints(
            folder,
            config,
            every=self.checkpoint_every,
            keep=self.keep,
            keep_every_steps=self.keep_every_steps,
            keep_every_hours=self.keep_every_hours,
            asynchronous=self.async_checkpoints,
            copy_to=None if url is None else "/".join(filter(None, (url.rstrip("/"), name))),
            fall_back=self.fall_back,
        )


CHECKPOINT_OPTIONS = frozenset(field.name for field in dataclasses.fields(CheckpointOptions))
"""The names of these options."""
