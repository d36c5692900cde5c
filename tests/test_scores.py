"""Inception score, precision and recall, and evaluations as a whole, against short NumPy references."""

import json
from typing import Any

import numpy as np
import pytest
from extractors import MeansExtractor, images
from hypothesis import given
from hypothesis import strategies as st

from elt_zoo.data import AbstractSource, Images, Tokens, digits_to_pixels, load_digits
from elt_zoo.metrics import (
    ClassifierExtractor,
    SetStatistics,
    compare_sets,
    evaluate_samples,
    frechet_distance,
    inception_score,
    precision_recall,
    set_statistics,
)


def reference_score(logits, splits):
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    parts = [p[i * len(p) // splits : (i + 1) * len(p) // splits] for i in range(splits)]
    scores = [np.exp((part * (np.log(part) - np.log(part.mean(0)))).sum(1).mean()) for part in parts]
    return np.mean(scores), np.std(scores)


@pytest.mark.parametrize("splits", [1, 4, 7])
def test_the_inception_score_is_that_of_its_definition(splits):
    logits = 2.0 * np.random.default_rng(0).normal(size=(50, 10))
    np.testing.assert_allclose(inception_score(logits, splits=splits), reference_score(logits, splits), rtol=1e-12)


def test_known_inception_scores():
    # Certain of one of ten classes, all alike; and knowing nothing. Logits whose exponentials would overflow.
    certain = 1e4 * np.eye(10)
    np.testing.assert_allclose(inception_score(np.tile(certain, (10, 1)), splits=10), (10.0, 0.0), atol=1e-9)
    np.testing.assert_allclose(inception_score(np.zeros((20, 10)), splits=2), (1.0, 0.0), atol=1e-12)
    # Sorted by class, every part holds one class: shuffling mends it.
    by_class = np.repeat(certain, 100, axis=0)
    assert inception_score(by_class).mean < 1.001 < 9.0 < inception_score(by_class, seed=0).mean
    assert inception_score(by_class, seed=0) == inception_score(by_class, seed=0)
    with pytest.raises(ValueError, match=r"`inception_score\(splits=10\)` cannot cut 9 samples"):
        inception_score(np.zeros((9, 4)))
    with pytest.raises(ValueError, match="logits hold values that are not finite"):
        inception_score(np.full((20, 4), np.nan))


def reference_precision_recall(real, fake, k):
    def inside(points, centres):
        distance = np.linalg.norm(centres[:, None] - centres[None], axis=-1)
        radii = np.sort(distance, axis=1)[:, k]
        return (np.linalg.norm(points[:, None] - centres[None], axis=-1) <= radii).any(1).mean()

    return inside(fake, real), inside(real, fake)


@given(st.integers(0, 2**32 - 1), st.integers(5, 40), st.integers(5, 40), st.sampled_from([1, 3]))
def test_precision_and_recall_are_those_of_all_pairs(seed, count, others, k):
    rng = np.random.default_rng(seed)
    # Far from the origin, as the features of networks are.
    real, fake = 20.0 + rng.normal(size=(count, 4)), 20.3 + 0.8 * rng.normal(size=(others, 4))
    expected = reference_precision_recall(real, fake, k)
    np.testing.assert_allclose(precision_recall(real, fake, neighbours=k, chunk=16), expected, atol=1e-12)
    assert precision_recall(real, fake, neighbours=k, chunk=64) == precision_recall(real, fake, neighbours=k, chunk=16)


def test_known_precision_and_recall():
    rng = np.random.default_rng(0)
    real = rng.normal(size=(60, 3)).astype(np.float32)
    assert precision_recall(real, real, chunk=32) == (1.0, 1.0)
    assert precision_recall(real, real + 100.0, chunk=32) == (0.0, 0.0)
    # A tight clump in the middle is good and all alike.
    precision, recall = precision_recall(real, 0.01 * real, chunk=32)
    assert precision == 1.0 and recall < 0.1


def test_wrong_features_are_named():
    a = np.random.default_rng(0).normal(size=(10, 3))
    with pytest.raises(ValueError, match=r"`precision_recall\(neighbours=3\)`.*`samples` has 3"):
        precision_recall(a, a[:3])
    with pytest.raises(ValueError, match="features of `reference` are not finite"):
        precision_recall(np.full_like(a, np.nan), a)
    with pytest.raises(ValueError, match="features of lengths 3 and 2"):
        precision_recall(a, a[:, :2])


def test_an_evaluation_holds_every_figure_and_what_it_depends_on():
    extractor = MeansExtractor()
    reference = set_statistics(extractor, [images(40)], keep=True)
    evaluation = evaluate_samples(extractor, np.split(images(30, seed=1, shift=9), [11]), reference, splits=3)
    samples: Any = set_statistics(extractor, [images(30, seed=1, shift=9)], keep=True)
    kept: Any = reference
    expected = {
        "means distance": frechet_distance(samples.pool, kept.pool),
        "smeans distance": frechet_distance(samples.spatial, kept.spatial),
        "means score": inception_score(samples.logits, splits=3, seed=0).mean,
        "means score, standard deviation": inception_score(samples.logits, splits=3, seed=0).std,
        "precision": precision_recall(kept.features, samples.features).precision,
        "recall": precision_recall(kept.features, samples.features).recall,
    }
    assert evaluation.figures == pytest.approx(expected, rel=1e-6)
    assert json.loads(evaluation.to_json()) == {
        "figures": evaluation.figures,
        "extractor": "means",
        "samples": 30,
        "reference_samples": 40,
        "protocol": {"score": {"splits": 3, "seed": 0}},
    }
    # Statistics alone give distances alone.
    bare = compare_sets(extractor, SetStatistics(samples.pool), SetStatistics(reference.pool))
    assert list(bare.figures) == ["means distance"] and bare.protocol is None


def test_the_score_of_samples_sorted_by_class_is_that_of_shuffled_ones():
    class Certain(MeansExtractor):
        """Certain of one of ten classes, which the first channel tells."""

        def __call__(self, examples):
            return super().__call__(examples)._replace(logits=100.0 * np.eye(10)[examples[:, 0, 0, 0]])

    extractor, reference = Certain(), set_statistics(MeansExtractor(), [images(40)])
    by_class = images(500)
    by_class[:, 0, 0, 0] = np.arange(500) // 50
    shuffled = np.random.default_rng(5).permutation(by_class)
    evaluations = [evaluate_samples(extractor, [samples], reference) for samples in (by_class, shuffled)]
    for evaluation in evaluations:
        assert 8.5 < evaluation.figures["means score"] < 10.0
        assert evaluation.protocol == {"score": {"splits": 10, "seed": 0}}
    again = evaluate_samples(extractor, [by_class], reference, seed=0)
    assert again.figures == evaluations[0].figures
    kept = evaluate_samples(extractor, [by_class], reference, seed=None)
    assert kept.figures["means score"] < 1.001 and kept.protocol == {"score": {"splits": 10, "seed": None}}


def test_what_cannot_be_compared_is_refused():
    extractor = MeansExtractor()
    reference = set_statistics(MeansExtractor("others"), [images(20)])

    def never():
        raise AssertionError("samples were drawn for nothing")
        yield

    with pytest.raises(ValueError, match="The reference were measured with the extractor 'others', not with 'means'"):
        evaluate_samples(extractor, never(), reference)
    reference = set_statistics(extractor, [images(20)])
    with pytest.raises(ValueError, match="The samples are 3, too few for a covariance of 3 features"):
        evaluate_samples(extractor, [images(3)], reference)
    assert "means distance" in evaluate_samples(extractor, [images(3)], reference, splits=1, allow_few=True).figures


@pytest.fixture(scope="module")
def small():
    """Two easy classes of 6 × 6 pixels, with another number of channels than digits have."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 80)
    pictures = rng.integers(0, 60, (80, 6, 6, 3)) + 150 * (labels[:, None, None, None] * (np.arange(6) > 2)[:, None])
    return pictures.astype(np.uint8), labels


def test_classifiers_of_other_images_give_features_of_their_own(small):
    pictures, labels = small
    extractor = ClassifierExtractor(pictures, labels, dataset="halves")
    output = extractor(pictures)
    assert output.pool.shape == (80, 32) and output.logits.shape == (80, 2)
    assert (output.logits.argmax(1) == labels).mean() > 0.95
    pixels = (pictures / 127.5 - 1.0).astype(np.float32)
    np.testing.assert_allclose(extractor(pixels).pool, output.pool, atol=1e-5)
    np.testing.assert_array_equal(
        extractor(np.where(pixels > 0.5, np.float32(9.0), pixels)).pool,
        extractor(np.where(pixels > 0.5, np.float32(1.0), pixels)).pool,
    )
    reference = set_statistics(extractor, [pictures], keep=True)
    figures = evaluate_samples(extractor, [pictures], reference, splits=2).figures
    assert figures["classifier Fréchet distance (not FID)"] < 1e-6 and figures["recall"] == 1.0
    assert not any(name in figures for name in ("FID", "Inception score"))
    # Fitted to other labels, it is another extractor, and says so.
    other = ClassifierExtractor(pictures[1:], labels[1:], dataset="halves")
    assert extractor.name.startswith("halves classifier, 32 features, data ") and extractor.name != other.name
    with pytest.raises(ValueError, match="not with 'halves classifier"):
        evaluate_samples(other, [pictures], reference)


def test_images_that_a_classifier_cannot_take_are_named(small):
    pictures, labels = small
    with pytest.raises(ValueError, match=r"80 images and 80 labels of 1 class\(es\)"):
        ClassifierExtractor(pictures, np.zeros(80, int), dataset="one")
    extractor = ClassifierExtractor(pictures, labels, dataset="halves")
    with pytest.raises(ValueError, match=r"fitted to images of shape \(6, 6, 3\); got \(6, 6, 1\)"):
        extractor(pictures[..., :1])
    with pytest.raises(ValueError, match="pixels are not finite"):
        extractor(np.full((2, 6, 6, 3), np.nan, np.float32))


def patches(count, side, seed=0):
    """Squares of one of three colours in a random corner of a noisy image."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, count)
    pictures = rng.integers(0, 80, (count, side, side, 3))
    for picture, label in zip(pictures, labels, strict=True):
        y, x = rng.integers(0, side // 2, 2)
        picture[y : y + side // 2, x : x + side // 2, label] += 150
    return pictures.astype(np.uint8), labels


class Patches(AbstractSource):
    class_names = ("red", "green", "blue")

    def __init__(self, count, side):
        self.pictures, self.labels = patches(count, side)

    def __len__(self):
        return len(self.labels)

    def read(self, visit):
        return Images(self.pictures[visit.index], self.labels[visit.index])

    def name(self, index):
        return f"patch {index}"


def test_images_of_ones_own_are_evaluated_without_published_weights():
    source = Patches(160, side=40)
    extractor = ClassifierExtractor.of_source(source, dataset="patches", examples=120)
    heldout, labels = patches(80, side=40, seed=1)
    assert extractor.accuracy(heldout, labels) > 0.9
    again = ClassifierExtractor.of_source(source, dataset="patches", examples=120)
    assert again.name == extractor.name and extractor.name.startswith("patches classifier, 32 features, data ")
    np.testing.assert_array_equal(again(heldout).pool, extractor(heldout).pool)
    assert ClassifierExtractor.of_source(source, dataset="patches", examples=119).name != extractor.name
    reference = set_statistics(extractor, [source.pictures])
    real = evaluate_samples(extractor, [heldout], reference).figures[extractor.distance]
    dark = evaluate_samples(extractor, [heldout // 4], reference).figures[extractor.distance]
    assert real < 0.5 * dark


def test_large_images_are_averaged_over_areas_and_small_ones_stay():
    from elt_zoo.metrics._classifier_extractor import _pixels

    pixels = np.random.default_rng(0).uniform(-1.0, 1.0, (2, 3, 64, 48, 1))
    shrunk = _pixels(pixels)
    assert shrunk.shape == (2, 3, 32, 32, 1)
    halves = pixels.reshape(2, 3, 32, 2, 48, 1).mean(3)
    # Two areas share every three pixels.
    left, middle, right = (halves[:, :, :, start::3] for start in range(3))
    expected = np.stack([(2 * left + middle) / 3, (middle + 2 * right) / 3], axis=4)
    np.testing.assert_allclose(shrunk, expected.reshape(2, 3, 32, 32, 1), atol=1e-12)
    np.testing.assert_array_equal(_pixels(pixels[..., :32, :32, :]), pixels[..., :32, :32, :])


def test_a_classifier_of_tokens_is_refused():
    class Ids(Patches):
        def read(self, visit) -> Any:
            return Tokens(np.zeros((2, 2), np.int32), self.labels[visit.index])

    with pytest.raises(TypeError, match="needs images or clips, not tokens: give the source that they were made from"):
        ClassifierExtractor.of_source(Ids(4, 4), dataset="ids")


@pytest.mark.slow
def test_digits_features_are_those_of_the_digits_evaluator():
    from elt_zoo.metrics import DigitsEvaluator

    heldout = load_digits("heldout")
    pixels = digits_to_pixels(heldout.images)
    evaluator, extractor = DigitsEvaluator(), ClassifierExtractor.of_digits()
    train = set_statistics(extractor, [digits_to_pixels(load_digits("train").images)])
    evaluation = evaluate_samples(extractor, [pixels], train)
    expected = evaluator(pixels, heldout.labels).frechet_distance
    assert evaluation.figures["classifier Fréchet distance (not FID)"] == pytest.approx(expected, rel=1e-9)
    assert evaluation.extractor == evaluator.extractor.name
