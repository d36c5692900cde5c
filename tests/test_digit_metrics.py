import numpy as np
import pytest

from elt_zoo.data import digits_to_pixels, load_digits
from elt_zoo.metrics import DigitsEvaluator, GaussianStatistics, frechet_distance

HELDOUT = load_digits("heldout")
PIXELS = digits_to_pixels(HELDOUT.images)


@pytest.fixture(scope="module")
def evaluator():
    return DigitsEvaluator()


def test_real_digits_score_as_real(evaluator):
    quality = evaluator(PIXELS, HELDOUT.labels)
    assert quality.accuracy > 0.98 and quality.samples == 360
    assert quality.frechet_distance < 1.6
    assert 14.0 < quality.nearest_distance < 19.0


def test_training_digits_are_their_own_nearest_neighbours(evaluator):
    train = load_digits("train")
    quality = evaluator(digits_to_pixels(train.images), train.labels)
    assert quality.nearest_distance < 1e-5 and quality.frechet_distance < 1e-9


def test_the_floor_is_balanced_and_repeatable(evaluator):
    floor = evaluator.floor()
    assert floor == evaluator.floor()
    # Balanced sets of real digits: prototype measurements put them between 0.5 and 1.1.
    assert 0.3 < floor["train_subset"] < floor["heldout"] < 1.3
    assert floor["heldout_accuracy"] > 0.98


def test_each_defect_moves_its_own_figure(evaluator):
    good = evaluator(PIXELS, HELDOUT.labels)
    wrong_labels = evaluator(PIXELS, (HELDOUT.labels + 1) % 10)
    assert wrong_labels.accuracy < 0.1 and wrong_labels.frechet_distance == good.frechet_distance
    noise = np.random.default_rng(0).normal(size=PIXELS.shape).astype(np.float32)
    noisy = evaluator(PIXELS + 0.5 * noise, HELDOUT.labels)
    assert noisy.frechet_distance > 3.0 * good.frechet_distance
    assert noisy.nearest_distance > 1.3 * good.nearest_distance
    one_class = PIXELS[HELDOUT.labels == 3]
    collapsed = evaluator(np.tile(one_class, (3, 1, 1, 1)), np.full(3 * len(one_class), 3))
    assert collapsed.accuracy > 0.95 and collapsed.frechet_distance > 20.0 * good.frechet_distance


def test_the_distance_lives_in_the_last_hidden_layer_of_a_perceptron(evaluator):
    from sklearn.neural_network import MLPClassifier

    train = load_digits("train")
    flat = digits_to_pixels(train.images).reshape(-1, 64).astype(np.float64)
    network = MLPClassifier((64, 32), max_iter=1000, random_state=0).fit(flat, train.labels)
    hidden = evaluator.features(PIXELS)
    assert hidden.shape == (360, 32)
    # Its output layer on our features must be the network's own decision.
    scores = hidden @ network.coefs_[-1] + network.intercepts_[-1]
    np.testing.assert_array_equal(scores.argmax(axis=1), network.predict(PIXELS.reshape(360, 64)))
    real = GaussianStatistics.of(evaluator.features(digits_to_pixels(train.images)))
    expected = frechet_distance(GaussianStatistics.of(hidden), real)
    np.testing.assert_allclose(evaluator(PIXELS, HELDOUT.labels).frechet_distance, expected, rtol=1e-9)


def test_pixels_are_clipped_and_not_rounded(evaluator):
    quality = evaluator(PIXELS, HELDOUT.labels)
    beyond = np.where(np.abs(PIXELS) == 1.0, 3.0 * PIXELS, PIXELS)
    assert evaluator(beyond, HELDOUT.labels) == quality
    assert evaluator(0.99 * PIXELS, HELDOUT.labels) != quality


@pytest.mark.parametrize(
    ("pixels", "labels", "text"),
    [
        (PIXELS[..., 0], HELDOUT.labels, r"\(360, 8, 8\)"),
        (PIXELS, HELDOUT.labels[:5], r"labels of shape \(5,\)"),
        (PIXELS, HELDOUT.labels + 1, "labels 1 to 10; digits are 0 to 9"),
        (PIXELS[:20], HELDOUT.labels[:20], "at least 64"),
        (np.where(PIXELS > 0.9, np.nan, PIXELS), HELDOUT.labels, "not finite"),
    ],
)
def test_wrong_input_is_named(evaluator, pixels, labels, text):
    with pytest.raises((ValueError, TypeError), match=text):
        evaluator(pixels, labels)
