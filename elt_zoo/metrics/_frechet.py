import numpy as np
from jaxtyping import Float

from ._statistics import GaussianStatistics, check_comparable


def frechet_distance(a: GaussianStatistics, b: GaussianStatistics) -> float:
    r"""The squared Fréchet (2-Wasserstein) distance of two Gaussians
    ([1706.08500](https://arxiv.org/abs/1706.08500), equation 6).

    $$\lVert\mu_a - \mu_b\rVert^2 + \mathrm{tr}\,C_a + \mathrm{tr}\,C_b
      - 2\,\lVert F_a^\top F_b \rVert_*, \qquad C = F F^\top$$

    The nuclear norm (the sum of singular values) equals the usual $\mathrm{tr}\,(C_a C_b)^{1/2}$, but takes no root of
    the product's rounding errors. It stays accurate for near-singular covariances, without an offset on the diagonal
    and without complex numbers.

    **Returns:** the distance, at least 0.

    **Raises:** `ValueError` for different extractors or numbers of features, or fewer than two vectors.
    """
    check_comparable(a, b)
    if min(2 if s.count is None else s.count for s in (a, b)) < 2:
        raise ValueError(f"A covariance needs at least two feature vectors; got {a.count} and {b.count}.")
    cross = np.linalg.svd(_factor(a.covariance).T @ _factor(b.covariance), compute_uv=False).sum()
    distance = np.sum((a.mean - b.mean) ** 2) + np.trace(a.covariance) + np.trace(b.covariance) - 2.0 * cross
    return float(max(distance, 0.0))


def _factor(matrix: Float[np.ndarray, "n n"]) -> Float[np.ndarray, "n n"]:
    """F of C = F Fᵀ."""
    values, vectors = np.linalg.eigh(matrix)
    return vectors * np.sqrt(np.maximum(values, 0.0))
