import dataclasses

import numpy as np
from jaxtyping import Float, Int

from ..data import Digits, digits_to_pixels, load_digits, pixels_to_digits
from ._classifier_extractor import ClassifierExtractor
from ._frechet import frechet_distance
from ._statistics import GaussianStatistics

PER_CLASS = 35


@dataclasses.dataclass(frozen=True)
class DigitsQuality:
    """The quality of a set of generated digits.

    **Fields:**

    - `accuracy`: share of images that a classifier of real digits assigns to the intended class.
    - `frechet_distance`: the *digits Fréchet distance* to the real training digits, see
      [`DigitsEvaluator`][elt_zoo.metrics.DigitsEvaluator]. It is not FID and does not compare with FID.
    - `nearest_distance`: mean Euclidean distance, in grey levels, to the nearest training image. Far below the value of
      held-out digits, the model has memorised; far above, its images are not clean.
    - `samples`: number of images.
    """

    accuracy: float
    frechet_distance: float
    nearest_distance: float
    samples: int


class DigitsEvaluator:
    """Measures generated digits against the real ones of scikit-learn.

    The accuracy comes from a support vector classifier that is fitted to the training digits. The digits Fréchet
    distance compares with the statistics of all training digits, in the features of a
    [`ClassifierExtractor`][elt_zoo.metrics.ClassifierExtractor] that is fitted to them. Both fits take about a second
    and are deterministic. Distances of a network that is fitted in another way are not comparable.
    """

    def __init__(self, train: Digits | None = None):
        """**Arguments:** `train`: the real digits to fit to and to compare with; default the training part."""
        from sklearn.svm import SVC

        train = load_digits("train") if train is None else train
        pixels = digits_to_pixels(train.images)
        self._pixels = _flat(pixels)
        self._labels = train.labels
        self._levels = pixels_to_digits(self._pixels)
        self._classifier = SVC(C=10.0, gamma="scale").fit(self._pixels, train.labels)
        self.extractor = ClassifierExtractor(pixels, train.labels, dataset="digits")
        self._statistics = self._gaussian(self._pixels)

    def features(self, pixels: Float[np.ndarray, "examples ..."]) -> Float[np.ndarray, "examples 32"]:
        """The perceptron's last hidden layer for pixels in [−1, 1]; values outside are clipped."""
        return self.extractor(pixels.reshape(-1, 8, 8, 1)).pool

    def classify(self, pixels: Float[np.ndarray, "examples 8 8 1"]) -> Int[np.ndarray, " examples"]:
        """The classifier's digits for pixels in [−1, 1]; values outside are clipped."""
        return self._classifier.predict(_flat(pixels))

    def _gaussian(self, pixels: Float[np.ndarray, "examples ..."]) -> GaussianStatistics:
        return GaussianStatistics.of(self.features(pixels), self.extractor.name)

    def __call__(
        self, pixels: Float[np.ndarray, "examples 8 8 1"], labels: Int[np.ndarray, " examples"]
    ) -> DigitsQuality:
        """**Arguments:** `pixels`: images in [−1, 1], clipped to that range and not rounded; `labels`: the intended
        classes. For a fair distance every class is equally frequent.

        **Raises:** `ValueError` for other shapes, labels out of range, values that are not finite, or fewer than 64
        images.
        """
        pixels, labels = np.asarray(pixels), np.asarray(labels)
        if pixels.shape[1:] != (8, 8, 1) or labels.shape != pixels.shape[:1]:
            raise ValueError(
                f"`DigitsEvaluator` got images of shape {pixels.shape} and labels of shape {labels.shape}; it needs "
                "(examples, 8, 8, 1) and one label each."
            )
        if not ((labels >= 0) & (labels <= 9)).all():
            raise ValueError(f"`DigitsEvaluator` got labels {labels.min()} to {labels.max()}; digits are 0 to 9.")
        if len(pixels) < 64:
            raise ValueError(f"{len(pixels)} images are too few for a covariance of 32 features; use at least 64.")
        if not np.isfinite(pixels).all():
            raise ValueError("Some pixels are not finite: the model or the sampler diverged.")
        flat = _flat(pixels)
        return DigitsQuality(
            accuracy=float(np.mean(self._classifier.predict(flat) == labels)),
            frechet_distance=frechet_distance(self._gaussian(flat), self._statistics),
            nearest_distance=float(_nearest(pixels_to_digits(flat), self._levels).mean()),
            samples=len(pixels),
        )

    def floor(self, heldout: Digits | None = None, *, seed: int = 0, repeats: int = 10) -> dict[str, float]:
        """The scores of real digits, from sets of 35 per class: sets with unequal classes score worse for that alone.

        **Arguments:** `heldout`: real digits that the training did not see, default the held-out part; `seed`: of the
        random sets; `repeats`: number of random sets to average over.

        **Returns:** `heldout` and `train_subset`: the mean digits Fréchet distance of random sets of held-out and of
        training digits; `heldout_accuracy` and `heldout_nearest_distance`, of all held-out digits.
        """
        heldout = load_digits("heldout") if heldout is None else heldout
        pixels = digits_to_pixels(heldout.images)
        rng = np.random.default_rng(seed)

        def balanced(flat, labels):
            distances = []
            for _ in range(repeats):
                rows = [rng.choice(np.flatnonzero(labels == c), PER_CLASS, replace=False) for c in np.unique(labels)]
                distances.append(frechet_distance(self._gaussian(flat[np.concatenate(rows)]), self._statistics))
            return float(np.mean(distances))

        quality = self(pixels, heldout.labels)
        return {
            "heldout": balanced(_flat(pixels), heldout.labels),
            "train_subset": balanced(self._pixels, self._labels),
            "heldout_accuracy": quality.accuracy,
            "heldout_nearest_distance": quality.nearest_distance,
        }


def _flat(pixels: np.ndarray) -> Float[np.ndarray, "examples 64"]:
    return np.clip(np.asarray(pixels, np.float64).reshape(len(pixels), -1), -1.0, 1.0)


def _nearest(a: Float[np.ndarray, "n d"], b: Float[np.ndarray, "m d"]) -> Float[np.ndarray, " n"]:
    squared = np.sum(a**2, axis=1)[:, None] - 2.0 * a @ b.T + np.sum(b**2, axis=1)[None, :]
    return np.sqrt(np.maximum(squared, 0.0).min(axis=1))
