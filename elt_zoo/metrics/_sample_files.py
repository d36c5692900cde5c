import os
import zipfile
from pathlib import Path
from typing import Self

import numpy as np
from jaxtyping import Int, UInt8

from .._checks import checked


class SampleWriter:
    """Writes samples as the npz file that ADM's evaluator reads, batch by batch and never all in memory: uint8 images
    as `arr_0`, their classes as `arr_1`. [`read_images`][elt_zoo.metrics.read_images] reads it too.

    It is a context: `with SampleWriter("samples.npz", count=50_000, shape=(256, 256, 3)) as writer`.

    The file is whole or not there at all: it is written beside and moved.
    """

    def __init__(self, path: str | os.PathLike, *, count: int, shape: tuple[int, ...], overwrite: bool = False):
        """**Arguments:** `path`: of the file; `count`: samples that it will hold; `shape`: of one; `overwrite`: whether
        an old file may go.

        **Raises:** `FileExistsError` if there is a file and it may not.
        """
        self._path, self._count, self._shape = Path(path), count, tuple(shape)
        if self._path.exists() and not overwrite:
            raise FileExistsError(f"{path} exists already; choose another name, or say `overwrite=True`.")
        self._temporary = self._path.with_name(f"{self._path.name}.{os.getpid()}.tmp")
        self._labels: list[np.ndarray] = []
        self._written = 0

    def __enter__(self) -> Self:
        # Pixels do not compress enough to be worth the time, and ADM's evaluator reads what is stored faster.
        self._archive = zipfile.ZipFile(self._temporary, "w", zipfile.ZIP_STORED)
        self._images = self._archive.open("arr_0.npy", "w", force_zip64=True)
        header = {"descr": "|u1", "fortran_order": False, "shape": (self._count, *self._shape)}
        np.lib.format.write_array_header_1_0(self._images, header)
        return self

    @checked
    def add(self, images: UInt8[np.ndarray, "batch ..."], labels: Int[np.ndarray, " batch"]) -> None:
        """Appends a batch. **Arguments:** `images`, and their `labels`.

        **Raises:** `ValueError` for images of another shape, or more of them than were announced.
        """
        if images.shape[1:] != self._shape:
            raise ValueError(f"{self._path} holds samples of shape {self._shape}; got {images.shape[1:]}.")
        self._written += len(images)
        if self._written > self._count:
            raise ValueError(f"{self._path} was announced to hold {self._count} samples; got {self._written}.")
        self._images.write(np.ascontiguousarray(images).tobytes())
        self._labels.append(labels)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """**Raises:** `ValueError` if samples are missing; there is no file then."""
        self._images.close()
        try:
            if kind is None and self._written == self._count:
                with self._archive.open("arr_1.npy", "w") as file:
                    labels = np.concatenate(self._labels).astype(np.int64)
                    np.lib.format.write_array(file, labels, allow_pickle=False)
            self._archive.close()
            if kind is not None:
                return
            if self._written < self._count:
                raise ValueError(f"{self._path} was announced to hold {self._count} samples; got {self._written}.")
            self._temporary.replace(self._path)
        finally:
            self._temporary.unlink(missing_ok=True)
