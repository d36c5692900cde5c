import dataclasses

import numpy as np
from jaxtyping import Float


@dataclasses.dataclass(frozen=True)
class GaussianStatistics:
    """Number, mean and covariance (divided by n − 1) of a set of feature vectors, in float64.

    Statistics can be merged, so that the features of a stream need not be kept:
    `a = a.merge(GaussianStatistics.of(batch))`.

    **Fields:**

    - `count`: number of feature vectors; `None` if a file does not say.
    - `mean`, `covariance`: of the vectors.
    - `extractor`: name of the extractor; `None` for features of your own.
    """

    count: int | None
    mean: Float[np.ndarray, " features"]
    covariance: Float[np.ndarray, "features features"]
    extractor: str | None = None

    @classmethod
    def of(cls, features: Float[np.ndarray, "examples features"], extractor: str | None = None) -> "GaussianStatistics":
        """**Arguments:** `features`: at least one vector of finite numbers; `extractor`: name of the extractor.

        **Raises:** `ValueError` for another shape, or for values that are not finite.
        """
        features = np.asarray(features, np.float64)
        if features.ndim != 2 or len(features) < 1:
            raise ValueError(
                f"`GaussianStatistics.of` needs feature vectors of shape (examples, features); got {features.shape}."
            )
        if not np.isfinite(features).all():
            raise ValueError("The features hold values that are not finite; check the samples they come from.")
        mean = features.mean(axis=0)
        centred = features - mean
        return cls(len(features), mean, centred.T @ centred / max(len(features) - 1, 1), extractor)

    def merge(self, other: "GaussianStatistics") -> "GaussianStatistics":
        """The statistics of both sets together (Chan et al., 1979).

        **Raises:** `ValueError` for different extractors or numbers of features, or if a count is not known.
        """
        check_comparable(self, other)
        if self.count is None or other.count is None:
            raise ValueError(
                "Cannot merge statistics without their number of examples, which files of pytorch-fid and ADM do not "
                "hold. Set it with `dataclasses.replace(statistics, count=...)`."
            )
        count = self.count + other.count
        delta = other.mean - self.mean
        scatter = (self.count - 1) * self.covariance + (other.count - 1) * other.covariance
        scatter = scatter + np.outer(delta, delta) * self.count * other.count / count
        mean = self.mean + delta * (other.count / count)
        return GaussianStatistics(count, mean, scatter / (count - 1), self.extractor)


class StreamingStatistics:
    """Collects the statistics of a stream of features in constant memory."""

    def __init__(self, extractor: str | None = None):
        """**Arguments:** `extractor`: name of the extractor."""
        self._extractor = extractor
        self._waiting: list[np.ndarray] = []
        self._total: GaussianStatistics | None = None

    def add(self, features: Float[np.ndarray, "examples features"]) -> None:
        """Adds a batch of features.

        **Raises:** `ValueError` for features that are not finite, or of another length than before.
        """
        if not np.isfinite(features).all():
            raise ValueError("The features hold values that are not finite; check the samples they come from.")
        if self._waiting and features.shape[1] != self._waiting[0].shape[1]:
            raise ValueError(f"Features of length {features.shape[1]} after those of {self._waiting[0].shape[1]}.")
        self._waiting.append(np.asarray(features))
        # A merge costs as much as this many rows do, so it waits for them.
        if sum(map(len, self._waiting)) >= features.shape[1]:
            self._fold()

    def result(self) -> GaussianStatistics:
        """The statistics so far. **Raises:** `ValueError` if nothing was added."""
        self._fold()
        if self._total is None:
            raise ValueError("There are no statistics of no features: the stream of samples was empty.")
        return self._total

    def _fold(self) -> None:
        if self._waiting:
            part = GaussianStatistics.of(np.concatenate(self._waiting), self._extractor)
            self._total = part if self._total is None else self._total.merge(part)
            self._waiting = []


def check_comparable(a: GaussianStatistics, b: GaussianStatistics) -> None:
    """**Raises:** `ValueError` for statistics of different extractors or numbers of features."""
    if a.mean.shape != b.mean.shape:
        raise ValueError(
            f"Cannot compare or merge statistics of {a.mean.size} and {b.mean.size} features: use one feature "
            "extractor."
        )
    if a.extractor != b.extractor:
        raise ValueError(
            f"Cannot compare or merge statistics of the extractors {a.extractor!r} and {b.extractor!r}: distances in "
            "different features mean nothing. Make both with one extractor."
        )
