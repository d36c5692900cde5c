import numpy as np
import pytest
import scipy.linalg
from hypothesis import given
from hypothesis import strategies as st

from elt_zoo.metrics import GaussianStatistics, frechet_distance


def gaussian(seed, features=5, examples=40, rank=None):
    rng = np.random.default_rng(seed)
    mixing = rng.normal(size=(rank or features, features))
    return rng.normal(size=(examples, len(mixing))) @ mixing + rng.normal(size=features)


def test_statistics_are_numpys():
    features = gaussian(0)
    statistics = GaussianStatistics.of(features)
    np.testing.assert_allclose(statistics.mean, features.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(statistics.covariance, np.cov(features, rowvar=False), rtol=1e-12)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=5), st.integers(0, 2**32 - 1))
def test_merging_parts_gives_the_statistics_of_the_whole(sizes, seed):
    features = gaussian(seed, examples=sum(sizes))
    parts = np.split(features, np.cumsum(sizes)[:-1])
    merged = GaussianStatistics.of(parts[0])
    for part in parts[1:]:
        merged = merged.merge(GaussianStatistics.of(part))
    whole = GaussianStatistics.of(features)
    assert merged.count == whole.count
    np.testing.assert_allclose(merged.mean, whole.mean, atol=1e-10)
    np.testing.assert_allclose(merged.covariance, whole.covariance, atol=1e-9)


@given(st.integers(0, 2**32 - 1))
def test_the_distance_is_that_of_the_matrix_square_root(seed):
    a, b = GaussianStatistics.of(gaussian(seed)), GaussianStatistics.of(gaussian(seed + 1, examples=60))
    root = np.real(scipy.linalg.sqrtm(a.covariance @ b.covariance))
    expected = np.sum((a.mean - b.mean) ** 2) + np.trace(a.covariance + b.covariance - 2.0 * root)
    np.testing.assert_allclose(frechet_distance(a, b), expected, rtol=1e-7)
    np.testing.assert_allclose(frechet_distance(b, a), expected, rtol=1e-7)


def test_known_distances():
    eye = np.eye(3)
    a = GaussianStatistics(10, np.zeros(3), eye)
    assert frechet_distance(a, a) < 1e-12
    # Commuting covariances: the squared distance of means plus that of the standard deviations.
    b = GaussianStatistics(10, np.asarray([3.0, 4.0, 0.0]), np.diag([4.0, 9.0, 1.0]))
    np.testing.assert_allclose(frechet_distance(a, b), 25.0 + 1.0 + 4.0, rtol=1e-12)


@pytest.mark.parametrize("features", [16, 128])
def test_near_singular_covariances_are_no_trouble(features):
    # Commuting covariances whose distance is known; standard deviations from 1e-7 to 30, a quarter of them zero.
    rng = np.random.default_rng(features)
    rotation = np.linalg.qr(rng.normal(size=(features, features)))[0]
    deviations = 10.0 ** np.stack([np.linspace(-7.0, 1.5, features), rng.permutation(np.linspace(-7.0, 1.5, features))])
    deviations[0, : features // 4] = 0.0
    a, b = (GaussianStatistics(9, np.zeros(features), (rotation * d**2) @ rotation.T) for d in deviations)
    # The covariances are rounded themselves, to 1e-16 of their largest entry, and roots of zeros to 1e-8.
    np.testing.assert_allclose(frechet_distance(a, b), np.sum((deviations[0] - deviations[1]) ** 2), rtol=1e-8)
    assert frechet_distance(a, a) < 1e-12 * np.trace(a.covariance)


def test_singular_covariances_are_no_trouble():
    low = GaussianStatistics.of(gaussian(1, features=8, rank=3))
    assert 0.0 <= frechet_distance(low, low) < 1e-6 * np.trace(low.covariance)
    few = GaussianStatistics.of(gaussian(2, features=8, examples=4))
    assert np.isfinite(frechet_distance(low, few)) and frechet_distance(low, few) > 0.0


@pytest.mark.parametrize("case", range(4))
def test_it_agrees_with_pytorch_fid(case, published):
    values = published.arrays("inception_fid", "frechet.npz")
    a, b = (GaussianStatistics(1000, values[f"mu{i}_{case}"], values[f"sigma{i}_{case}"]) for i in (1, 2))
    np.testing.assert_allclose(frechet_distance(a, b), values[f"fd_{case}"], rtol=1e-5)
    assert frechet_distance(a, a) < 1e-6 * (1.0 + np.trace(a.covariance))


def test_wrong_input_is_named():
    a = GaussianStatistics.of(gaussian(0))
    with pytest.raises(ValueError, match=r"shape \(examples, features\); got \(3,\)"):
        GaussianStatistics.of(np.zeros(3))
    with pytest.raises(ValueError, match="not finite"):
        GaussianStatistics.of(np.full((4, 3), np.nan))
    with pytest.raises(ValueError, match="statistics of 5 and 4 features"):
        frechet_distance(a, GaussianStatistics.of(gaussian(0, features=4)))
    with pytest.raises(ValueError, match="statistics of 5 and 4 features"):
        a.merge(GaussianStatistics.of(gaussian(0, features=4)))
    with pytest.raises(ValueError, match="at least two"):
        frechet_distance(a, GaussianStatistics.of(gaussian(0, examples=1)))
