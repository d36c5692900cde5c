import contextlib
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import numpy as np
from jaxtyping import Int, UInt8

from .._checks import checked
from ..storage import atomic_write


class SampleWriter:
    """Writes samples batch by batch to an npz file that ADM's evaluator reads: uint8 images as `arr_0`, their classes
    as `arr_1`. [`read_images`][elt_zoo.metrics.read_images] reads it too.

    It is a context: `with SampleWriter("samples.npz", count=50_000, shape=(256, 256, 3)) as writer`. The file is
    written atomically: it appears at the end of the context, complete, or not at all.
    """

    def __init__(self, path: str | os.PathLike, *, count: int, shape: tuple[int, ...], overwrite: bool = False):
        """**Arguments:** `path`: of the file; `count`: samples that it will hold; `shape`: of one sample; `overwrite`:
        whether to replace an existing file.

        **Raises:** `FileExistsError` if there is a file and `overwrite` is false.
        """
        self._path, self._count, self._shape = Path(path), count, tuple(shape)
        if self._path.exists() and not overwrite:
            raise FileExistsError(f"{path} exists already; choose another name, or say `overwrite=True`.")
        self._labels: list[np.ndarray] = []
        self._written = 0

    def __enter__(self) -> Self:
        self._context = self._open()
        self._context.__enter__()
        return self

    @contextlib.contextmanager
    def _open(self) -> Iterator[None]:
        # Uncompressed: pixels hardly shrink, and ADM's evaluator reads stored entries faster.
        with atomic_write(self._path) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
            with archive.open("arr_0.npy", "w", force_zip64=True) as self._images:
                header = {"descr": "|u1", "fortran_order": False, "shape": (self._count, *self._shape)}
                np.lib.format.write_array_header_1_0(self._images, header)
                yield
            if self._written < self._count:
                raise ValueError(f"{self._path} was announced to hold {self._count} samples; got {self._written}.")
            with archive.open("arr_1.npy", "w") as entry:
                labels = np.concatenate(self._labels).astype(np.int64)
                np.lib.format.write_array(entry, labels, allow_pickle=False)

    @checked
    def add(self, images: UInt8[np.ndarray, "batch ..."], labels: Int[np.ndarray, " batch"]) -> None:
        """Appends a batch of `images` and their `labels`.

        **Raises:** `ValueError` for images of another shape, or for more than `count` of them.
        """
        if images.shape[1:] != self._shape:
            raise ValueError(f"{self._path} holds samples of shape {self._shape}; got {images.shape[1:]}.")
        self._written += len(images)
        if self._written > self._count:
            raise ValueError(f"{self._path} was announced to hold {self._count} samples; got {self._written}.")
        self._images.write(np.ascontiguousarray(images).tobytes())
        self._labels.append(labels)

    def __exit__(self, *error: Any) -> bool | None:
        """**Raises:** `ValueError` if samples are missing; then there is no file."""
        return self._context.__exit__(*error)
