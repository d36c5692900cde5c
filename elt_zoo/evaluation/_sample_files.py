import contextlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import jax
import numpy as np

from ..data import from_pixels
from ..distributed import is_first
from ..metrics import SampleWriter
from ..storage import atomic_write
from ._samples import CellSampler, Samples

_AT_ONCE = 256


class SampleFiles:
    """Exports the samples of a cell to `samples/<cell>.npz`, all its sets one after the other. A context.

    Process 0 writes the file. The others write their part of a set to a file of its own, which process 0 then appends.
    """

    def __init__(self, folder: Path, cell: str, shape: tuple[int, ...], sampler: CellSampler):
        """**Arguments:** `folder`: of the evaluation; `cell`: its key; `shape`: of one sample's pixels; `sampler`: of
        the sets.
        """
        self._file, self._sampler = folder / "samples" / f"{cell}.npz", sampler
        self._shape = (*shape[:-1], 3)
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        self._file.parent.mkdir(parents=True, exist_ok=True)
        if is_first():
            plan = self._sampler.plan
            # A file without its cell is one whose measuring was interrupted.
            writer = SampleWriter(self._file, count=plan.repeats * plan.samples, shape=self._shape, overwrite=True)
            self._writer = self._stack.enter_context(writer)
        return self

    def __exit__(self, *error: object) -> bool | None:
        return self._stack.__exit__(*error)  # pyright: ignore[reportArgumentType]  (they are what `with` gives)

    def written(self, batches: Iterator[Samples]) -> Iterator[Samples]:
        """This process's part of a set. Each batch is written once it is measured: what cannot be is not written
        either.
        """
        if is_first():
            for batch in batches:
                yield batch
                self._writer.add(self._bytes(batch), batch.labels)
            return
        with atomic_write(self._part(jax.process_index())) as temporary, temporary.open("wb") as file:
            for batch in batches:
                yield batch
                file.write(self._bytes(batch).tobytes())

    def append_others(self) -> None:
        """Appends the other processes' parts of a set to the file, in process 0."""
        for process in range(1, jax.process_count()):
            rows, part = self._sampler.part(process), self._part(process)
            if not rows:
                continue
            with part.open("rb") as file:
                for start in rows[::_AT_ONCE]:
                    labels = self._sampler.labels[start : min(start + _AT_ONCE, rows.stop)]
                    content = file.read(len(labels) * math.prod(self._shape))
                    self._writer.add(np.frombuffer(content, np.uint8).reshape(len(labels), *self._shape), labels)
            part.unlink()

    def _bytes(self, batch: Samples) -> np.ndarray:
        pixels = from_pixels(batch.pixels)
        return np.broadcast_to(pixels, (*pixels.shape[:-1], 3))

    def _part(self, process: int) -> Path:
        return self._file.with_name(f"{self._file.stem}.process-{process}")
