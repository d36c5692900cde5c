import dataclasses
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from ..storage import atomic_write
from ._extractor import AbstractExtractor, Examples
from ._statistics import GaussianStatistics, StreamingStatistics

FORMAT, VERSION = "elt_zoo statistics", 1


@dataclasses.dataclass(frozen=True)
class SetStatistics:
    """What metrics need to know about a set of images or clips, real or generated.

    **Fields:**

    - `pool`: statistics of the pooled features, with the number of examples and the name of the extractor.
    - `spatial`: the same for the spatial features; `None` if the extractor or the file has none.
    - `features`: the pooled features themselves, for precision and recall; `None` if they were not kept.
    - `logits`: of the extractor's classes, for the Inception score; `None` if they were not kept.
    """

    pool: GaussianStatistics
    spatial: GaussianStatistics | None = None
    features: Float[np.ndarray, "examples features"] | None = None
    logits: Float[np.ndarray, "examples classes"] | None = None

    def merge(self, other: "SetStatistics") -> "SetStatistics":
        """The statistics of both sets together, such as the parts of several processes. A field that only one of them
        has is dropped.

        **Raises:** `ValueError` for different extractors, or if a count is not known.
        """
        spatial = None
        if self.spatial is not None and other.spatial is not None:
            spatial = self.spatial.merge(other.spatial)
        return SetStatistics(
            self.pool.merge(other.pool),
            spatial,
            _joined(self.features, other.features),
            _joined(self.logits, other.logits),
        )

    def save(self, path: str | os.PathLike, *, overwrite: bool = False) -> None:
        """Writes an npz file, atomically. pytorch-fid and ADM's evaluator read its `mu`, `sigma`, `mu_s` and `sigma_s`.

        **Arguments:** `path`: of the file; `overwrite`: whether to replace an existing file.

        **Raises:** `FileExistsError` if there is a file and `overwrite` is false.
        """
        path = Path(path)
        if path.exists() and not overwrite:
            raise FileExistsError(f"{path} exists already; choose another name, or say `overwrite=True`.")
        arrays: dict[str, Any] = {"format": FORMAT, "version": VERSION, "mu": self.pool.mean}
        arrays["sigma"] = self.pool.covariance
        if self.pool.count is not None:
            arrays["count"] = self.pool.count
        if self.pool.extractor is not None:
            arrays["extractor"] = self.pool.extractor
        if self.spatial is not None:
            arrays |= {"mu_s": self.spatial.mean, "sigma_s": self.spatial.covariance}
        arrays |= {name: value for name in ("features", "logits") if (value := getattr(self, name)) is not None}
        # Through a file object, because NumPy adds ".npz" to the name of a path without it.
        with atomic_write(path) as temporary, temporary.open("wb") as file:
            np.savez(file, **arrays)


def set_statistics(extractor: AbstractExtractor, batches: Iterable[Examples], *, keep: bool = False) -> SetStatistics:
    """Runs an extractor over a set and collects the statistics in float64.

    **Arguments:** `extractor`: computes the features; `batches`: arrays of examples, of any sizes; `keep`: whether to
    keep the features and logits of every example (12 kB per image for Inception). Precision and recall and the
    Inception score need them.

    **Raises:** `ValueError` if there are no examples, or the extractor refuses them.
    """
    pool = StreamingStatistics(extractor.name)
    spatial: StreamingStatistics | None = None
    features, logits = [], []
    for batch in batches:
        output = extractor(batch)
        pool.add(output.pool)
        if output.spatial is not None:
            spatial = StreamingStatistics(extractor.name) if spatial is None else spatial
            spatial.add(output.spatial)
        if keep:
            features.append(output.pool)
            if output.logits is not None:
                logits.append(output.logits)
    return SetStatistics(
        pool.result(),
        None if spatial is None else spatial.result(),
        np.concatenate(features) if features else None,
        np.concatenate(logits) if logits else None,
    )


def _joined(a: np.ndarray | None, b: np.ndarray | None) -> np.ndarray | None:
    return None if a is None or b is None else np.concatenate([a, b])
