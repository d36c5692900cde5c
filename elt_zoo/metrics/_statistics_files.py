import contextlib
import dataclasses
import os
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from ._extractor import AbstractExtractor
from ._sets import FORMAT, VERSION, SetStatistics, set_statistics
from ._statistics import GaussianStatistics


def load_statistics(path: str | os.PathLike, *, extractor: str | None = None) -> SetStatistics:
    """Reads statistics from a file of [`SetStatistics.save`][elt_zoo.metrics.SetStatistics], of pytorch-fid (`mu`,
    `sigma`) or of ADM (also `mu_s`, `sigma_s`).

    Files of pytorch-fid and ADM state neither the number of examples nor the extractor.

    **Arguments:** `path`: an npz file; `extractor`: the name of the extractor, `extractor.name`. Files of pytorch-fid
    and ADM need it: you vouch that they hold the same features. A file that names its extractor must name this one.

    **Raises:** `FileNotFoundError` if there is no such file, saying where ADM's are; `ValueError` if it holds no
    statistics or damaged ones, if nobody names its extractor, or if it is of another extractor.
    """
    path = Path(path)
    with _in_one_line(path):
        return _statistics(path, extractor)


def _statistics(path: Path, extractor: str | None) -> SetStatistics:
    with _open(path) as archive:
        names = {Path(name).stem for name in archive.namelist()}
        if not {"mu", "sigma"} <= names:
            images = " Its images (arr_0) are samples: use `reference_statistics`." if "arr_0" in names else ""
            raise ValueError(f"{path} holds no statistics, which are called mu and sigma, but {sorted(names)}.{images}")
        # Members are read one by one: an ADM file may hold gigabytes of images beside them.
        read = names - {"arr_0"} if "format" in names else names & {"mu", "sigma", "mu_s", "sigma_s"}
        values = {name: _member(archive, path, name) for name in sorted(read)}
    ours = str(values["format"]) == FORMAT if "format" in values else False
    if ours and int(values["version"]) > VERSION:
        raise ValueError(f"{path} is of format version {values['version']}; this library reads up to {VERSION}.")
    stated = str(values["extractor"]) if "extractor" in values else None
    if stated is not None and extractor is not None and stated != extractor:
        raise ValueError(f"{path} holds statistics of the extractor {stated!r}, not of {extractor!r}.")
    if stated is None and extractor is None:
        raise ValueError(
            f"{path} does not say which extractor its statistics come from. If you know, give `extractor=` the name of "
            "yours."
        )
    count = int(values["count"]) if "count" in values else None

    def gaussian(mean: str, covariance: str) -> GaussianStatistics:
        mu, sigma = np.asarray(values[mean], np.float64), np.asarray(values[covariance], np.float64)
        if mu.ndim != 1 or sigma.shape != (mu.size, mu.size):
            raise ValueError(f"{path}: {mean} is of shape {mu.shape} and {covariance} of {sigma.shape}.")
        if not (np.isfinite(mu).all() and np.isfinite(sigma).all()):
            raise ValueError(f"{path}: {mean} or {covariance} hold values that are not finite.")
        return GaussianStatistics(count, mu, sigma, extractor if stated is None else stated)

    spatial = gaussian("mu_s", "sigma_s") if {"mu_s", "sigma_s"} <= values.keys() else None
    return SetStatistics(gaussian("mu", "sigma"), spatial, values.get("features"), values.get("logits"))


def reference_statistics(
    path: str | os.PathLike, extractor: AbstractExtractor, *, batch_size: int = 64
) -> SetStatistics:
    """Reads a reference file: its statistics if it has them, and the features of its images if it has images. ADM's
    files hold the statistics of a whole data set, and 10,000 images for precision and recall. A file of images alone,
    such as published samples, is measured whole.

    **Arguments:** `path`: an npz file; `extractor`: the one that made the statistics; it measures the images;
    `batch_size`: images to read at a time.

    **Raises:** as `load_statistics`; `ValueError` if the images are not uint8 of shape (examples, height, width, 3).
    """
    path = Path(path)
    with _open(path) as archive:
        names = {Path(name).stem for name in archive.namelist()}
    known = load_statistics(path, extractor=extractor.name) if {"mu", "sigma"} <= names else None
    if known is not None and "arr_0" not in names:
        return known
    images = set_statistics(extractor, read_images(path, batch_size=batch_size), keep=True)
    return images if known is None else dataclasses.replace(known, features=images.features)


def read_images(
    path: str | os.PathLike, *, batch_size: int = 64
) -> Iterator[UInt8[np.ndarray, "examples height width 3"]]:
    """Reads the images of an npz file (`arr_0`, or its only array) batch by batch.

    **Arguments:** `path`: of the file; `batch_size`: images at a time.

    **Raises:** `FileNotFoundError` if there is no such file; `ValueError` if there are no images in it, or it is cut
    short.
    """
    path = Path(path)
    with _in_one_line(path):
        yield from _images(path, batch_size)


def _images(path: Path, batch_size: int) -> Iterator[np.ndarray]:
    with _open(path) as archive:
        names = [name for name in archive.namelist() if name == "arr_0.npy"] or archive.namelist()
        if not names:
            raise ValueError(f"{path} holds no images: it is empty.")
        with archive.open(names[0]) as file:
            try:
                version = np.lib.format.read_magic(file)
                header = (
                    np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
                )
                shape, fortran, dtype = header(file)
            except ValueError as error:
                raise ValueError(f"{path}: {names[0]} is no NumPy array ({error}).") from error
            if len(names) > 1 or dtype != np.uint8 or fortran or len(shape) != 4 or shape[-1] != 3:
                raise ValueError(
                    f"{path} holds no images: {names} with {dtype} of shape {shape}. Needed is one array, arr_0, of "
                    "uint8 and shape (examples, height, width, 3)."
                )
            size = int(np.prod(shape[1:]))
            for start in range(0, shape[0], batch_size):
                count = min(batch_size, shape[0] - start)
                content = file.read(count * size)
                if len(content) < count * size:
                    raise ValueError(
                        f"{path} is cut short: image {start + len(content) // size} of {shape[0]} is missing."
                    )
                yield np.frombuffer(content, np.uint8).reshape(count, *shape[1:])


@contextlib.contextmanager
def _in_one_line(path: Path) -> Iterator[None]:
    """Whatever `zipfile` and NumPy raise for a damaged file is a `ValueError` that names it."""
    try:
        yield
    except (ValueError, FileNotFoundError, PermissionError):
        raise
    except (
        ArithmeticError,
        EOFError,
        LookupError,
        MemoryError,
        OSError,
        RuntimeError,
        TypeError,
        struct.error,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        raise ValueError(f"{path} is damaged: {' '.join(str(error).split()) or type(error).__name__}.") from error


def _open(path: Path) -> zipfile.ZipFile:
    if not path.exists():
        raise FileNotFoundError(
            f"There is no {path}. Reference files of ImageNet and LSUN are listed at "
            "https://github.com/openai/guided-diffusion/tree/main/evaluations; `set_statistics` makes your own."
        )
    try:
        return zipfile.ZipFile(path)
    except zipfile.BadZipFile as error:
        raise ValueError(f"{path} is no npz file, or a damaged one.") from error


def _member(archive: zipfile.ZipFile, path: Path, name: str) -> np.ndarray:
    try:
        with archive.open(f"{name}.npy") as file:
            return np.lib.format.read_array(file, allow_pickle=False)
    except (ValueError, zipfile.BadZipFile, EOFError) as error:
        raise ValueError(f"{path}: {name} cannot be read ({error}).") from error
