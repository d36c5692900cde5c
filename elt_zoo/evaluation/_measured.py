import dataclasses
import functools

import numpy as np

from ..distributed import gather_arrays
from ..metrics import GaussianStatistics, SetStatistics
from ._samples import Samples


@dataclasses.dataclass(frozen=True)
class Measured:
    """What the scores of a set of samples, or of a part of it, are computed from.

    **Fields:** `statistics`: of their features; `samples`: themselves, where a score needs them.
    """

    statistics: SetStatistics
    samples: Samples | None = None

    def merge(self, other: "Measured") -> "Measured":
        """Both parts together, in this order."""
        samples = None
        if self.samples is not None and other.samples is not None:
            samples = Samples(*(np.concatenate(pair) for pair in zip(self.samples, other.samples, strict=True)))
        return Measured(self.statistics.merge(other.statistics), samples)


def gather_measured(part: Measured | None) -> Measured | None:
    """The parts of all processes, merged in their order; `None` in all but process 0. All must call it.

    **Arguments:** `part`: `None` where a process had nothing to measure.
    """
    parts = [_of_arrays(arrays) for arrays in gather_arrays({} if part is None else _to_arrays(part)) if arrays]
    return functools.reduce(Measured.merge, parts) if parts else None


def _to_arrays(part: Measured) -> dict[str, np.ndarray]:
    statistics = part.statistics
    arrays: dict[str, np.ndarray | None] = {"features": statistics.features, "logits": statistics.logits}
    for name, gaussian in (("pool", statistics.pool), ("spatial", statistics.spatial)):
        if gaussian is not None:
            assert gaussian.count is not None  # it was counted here
            arrays |= {f"{name}.mean": gaussian.mean, f"{name}.covariance": gaussian.covariance}
            arrays[f"{name}.count"] = np.asarray(gaussian.count)
    arrays["extractor"] = np.asarray(statistics.pool.extractor or "")
    if part.samples is not None:
        arrays |= {"pixels": part.samples.pixels, "labels": part.samples.labels}
    return {name: array for name, array in arrays.items() if array is not None}


def _of_arrays(arrays: dict[str, np.ndarray]) -> Measured:
    def gaussian(name: str) -> GaussianStatistics:
        count, extractor = int(arrays[f"{name}.count"]), str(arrays["extractor"]) or None
        return GaussianStatistics(count, arrays[f"{name}.mean"], arrays[f"{name}.covariance"], extractor)

    spatial = gaussian("spatial") if "spatial.mean" in arrays else None
    statistics = SetStatistics(gaussian("pool"), spatial, arrays.get("features"), arrays.get("logits"))
    return Measured(statistics, Samples(arrays["pixels"], arrays["labels"]) if "pixels" in arrays else None)
