import hashlib
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Array, Float, Int, UInt8

from .._checks import checked
from ..data import digits_to_pixels, load_digits
from ._extractor import AbstractExtractor, Features
from ._inception_extractor import check_finite

HIDDEN = (64, 32)


class ClassifierExtractor(AbstractExtractor):
    """Features for small images that need no download: the 32 activations of the last hidden layer of a small
    perceptron (64 and 32 ReLU units, pixels in [−1, 1]) fitted to labelled images.

    Distances in them are neither FID nor comparable with one, nor with those of a perceptron fitted to other images: a
    hash of the images and labels is part of the name.
    """

    distance: ClassVar[str] = "classifier Fréchet distance (not FID)"
    score: ClassVar[str | None] = "classifier score (not an Inception score)"

    def __init__(
        self,
        images: UInt8[np.ndarray, "examples ..."] | Float[np.ndarray, "examples ..."],
        labels: Int[np.ndarray, " examples"],
        *,
        dataset: str,
        seed: int = 0,
    ):
        """Fits the perceptron, which takes about a second for 1,500 digits of 8 × 8 and ten for 5,000 of MNIST.

        **Arguments:** `images`: of one size, uint8 or in [−1, 1]; `labels`: two classes or more; `dataset`: what they
        are, for the name; `seed`: of the fit.

        **Raises:** `ValueError` for less than two classes, or not one label per image.
        """
        from sklearn.neural_network import MLPClassifier

        images, labels = np.asarray(images), np.asarray(labels)
        if len(images) != len(labels) or len(np.unique(labels)) < 2:
            raise ValueError(
                f"`ClassifierExtractor` got {len(images)} images and {len(labels)} labels of {len(np.unique(labels))} "
                "class(es); it needs one label per image and at least two classes."
            )
        self._shape = images.shape[1:]
        pixels = self._flat(images)
        self._network: Any = MLPClassifier(HIDDEN, max_iter=1000, random_state=seed).fit(pixels, labels)
        self.classes: np.ndarray = self._network.classes_
        content = hashlib.sha256(np.ascontiguousarray(pixels).tobytes() + labels.astype(np.int64).tobytes())
        self.name = f"{dataset} classifier, {HIDDEN[-1]} features, data {content.hexdigest()[:8]}, seed {seed}"
        self.num_features = HIDDEN[-1]

    @classmethod
    def of_digits(cls) -> "ClassifierExtractor":
        """Fitted to the training part of [`load_digits`][elt_zoo.data.load_digits], as
        [`DigitsEvaluator`][elt_zoo.metrics.DigitsEvaluator] is.
        """
        train = load_digits("train")
        return cls(digits_to_pixels(train.images), train.labels, dataset="digits")

    @checked
    def __call__(
        self, examples: UInt8[np.ndarray | Array, "examples ..."] | Float[np.ndarray | Array, "examples ..."]
    ) -> Features:
        """**Arguments:** `examples`: images of the size fitted to, uint8 or in [−1, 1]; values outside are clipped and
        not rounded.

        **Returns:** 32 features and the classes' logits of each, float64.

        **Raises:** `ValueError` for another size, or pixels that are not finite.
        """
        images = np.asarray(examples)
        if images.shape[1:] != self._shape:
            raise ValueError(f"{self.name}: fitted to images of shape {self._shape}; got {images.shape[1:]}.")
        x = self._flat(images)
        *hidden, (weight, bias) = zip(self._network.coefs_, self._network.intercepts_, strict=True)
        for matrix, offset in hidden:
            x = np.maximum(x @ matrix + offset, 0.0)
        logits = x @ weight + bias
        # Of two classes scikit-learn keeps one logit.
        return Features(x, logits=logits if logits.shape[1] > 1 else np.concatenate([0.0 * logits, logits], axis=1))

    @staticmethod
    def _flat(images: np.ndarray) -> Float[np.ndarray, "examples pixels"]:
        if images.dtype == np.uint8:
            return images.reshape(len(images), -1) / 127.5 - 1.0
        check_finite(images)
        return np.clip(images.astype(np.float64).reshape(len(images), -1), -1.0, 1.0)
