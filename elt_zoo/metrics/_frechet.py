import dataclasses

import numpy as np
from jaxtyping import Float


@dataclasses.dataclass(frozen=True)
class GaussianStatistics:
    """Number, mean and covariance (divided by n − 1) of a set of feature vectors, in float64.

    Sets can be merged, so a stream of batches needs no memory of its features: `a =
    a.merge(GaussianStatistics.of(batch))`.
    """

    count: int
    mean: Float[np.ndarray, " features"]
    covariance: Float[np.ndarray, "features features"]

    @classmethod
    def of(cls, features: Float[np.ndarray, "examples features"]) -> "GaussianStatistics":
        """**Arguments:** `features`: finite vectors, at least one. **Raises:** `ValueError` for another shape, or for
        values that are not finite.
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
        return cls(len(features), mean, centred.T @ centred / max(len(features) - 1, 1))

    def merge(self, other: "GaussianStatistics") -> "GaussianStatistics":
        """The statistics of both sets together (Chan et al., 1979). **Raises:** `ValueError` for different numbers of
        features.
        """
        _check_features(self, other)
        count = self.count + other.count
        delta = other.mean - self.mean
        scatter = (self.count - 1) * self.covariance + (other.count - 1) * other.covariance
        scatter = scatter + np.outer(delta, delta) * self.count * other.count / count
        return GaussianStatistics(count, self.mean + delta * (other.count / count), scatter / (count - 1))


def frechet_distance(a: GaussianStatistics, b: GaussianStatistics) -> float:
    r"""The squared Fréchet (2-Wasserstein) distance of two Gaussians (1706.08500, equation 6).

    $$\lVert\mu_a - \mu_b\rVert^2 + \mathrm{tr}\,C_a + \mathrm{tr}\,C_b
      - 2\,\mathrm{tr}\,(C_a^{1/2} C_b\, C_a^{1/2})^{1/2}$$

    The symmetric form needs eigenvalues of positive semi-definite matrices only, so it stays right for near-singular
    covariances.

    **Returns:** the distance, at least 0. **Raises:** `ValueError` for different numbers of features, or fewer than two
    vectors.
    """
    _check_features(a, b)
    if min(a.count, b.count) < 2:
        raise ValueError(f"A covariance needs at least two feature vectors; got {a.count} and {b.count}.")
    root = _sqrt(a.covariance)
    eigenvalues = np.linalg.eigvalsh(root @ b.covariance @ root)
    cross = np.sqrt(np.maximum(eigenvalues, 0.0)).sum()
    distance = np.sum((a.mean - b.mean) ** 2) + np.trace(a.covariance) + np.trace(b.covariance) - 2.0 * cross
    return float(max(distance, 0.0))


def _sqrt(matrix: Float[np.ndarray, "n n"]) -> Float[np.ndarray, "n n"]:
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T


def _check_features(a: GaussianStatistics, b: GaussianStatistics) -> None:
    if a.mean.shape != b.mean.shape:
        raise ValueError(
            f"Cannot compare or merge statistics of {a.mean.size} and {b.mean.size} features: use one feature "
            "extractor."
        )
