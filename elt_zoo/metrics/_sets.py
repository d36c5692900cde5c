import dataclasses
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from ._extractor import AbstractExtractor, Examples
from ._statistics import GaussianStatistics, StreamingStatistics

FORMAT, VERSION = "elt_zoo statistics", 1


@dataclasses.dataclass(frozen=True)
class SetStatistics:
    """What metrics need to know of a set of images or clips, real or generated.

    **Fields:**

    - `pool`: statistics of the pooled features, with the number of examples and the name of the extractor.
    - `spatial`: the same of the spatial features, where the extractor has them and the file too.
    - `features`: the pooled features themselves, for precision and recall; `None` if they were not kept.
    - `logits`: of the extractor's classes, for the Inception score; `None` if they were not kept.
    """

    pool: GaussianStatistics
    spatial: GaussianStatistics | None = None
    features: Float[np.ndarray, "examples features"] | None = None
    logits: Float[np.ndarray, "examples classes"] | None = None

    def merge(self, other: "SetStatistics") -> "SetStatistics":
        """Both sets together, as if they had been one: parts of devices, processes or files. What only one of them has
        is dropped.

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
        """Writes an npz file, whose `mu`, `sigma`, `mu_s` and `sigma_s` pytorch-fid and ADM's evaluator read too.

        **Arguments:** `path`: of the file; `overwrite`: whether an old one may go.

        **Raises:** `FileExistsError` if there is a file and it may not.
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
        # Whole or not at all: written beside and moved.
        temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
        try:
            with temporary.open("wb") as file:
                np.savez(file, **arrays)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def set_statistics(extractor: AbstractExtractor, batches: Iterable[Examples], *, keep: bool = False) -> SetStatistics:
    """Runs an extractor over a set and collects its statistics in float64.

    **Arguments:** `extractor`: of the features; `batches`: arrays of examples, of any sizes; `keep`: whether to keep
    features and logits of every example (12 kB of each image for Inception), which precision and recall and the
    Inception score need.

    **Raises:** `ValueError` if there are no examples or they cannot be used; see the extractor.
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
