import hashlib
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Array, Float, Int, UInt8

from .._checks import checked
from ..data import (
    AbstractSource,
    Batch,
    Clips,
    Images,
    Subset,
    digits_to_pixels,
    first_examples,
    load_digits,
)
from ._extractor import AbstractExtractor, Features, fingerprint
from ._inception_extractor import check_finite

HIDDEN = (64, 32)
LARGEST = 32


class ClassifierExtractor(AbstractExtractor):
    """Features for labelled images that need no download: the 32 activations of the last hidden layer of a small
    perceptron (64 and 32 ReLU units, pixels in [−1, 1]), which is fitted to labelled images such as your training set.

    Images that are higher or wider than 32 pixels are first shrunk to 32, by averaging over areas. The fit is
    deterministic.

    Distances in these features are not FID. They compare neither with FID nor with distances of a perceptron that is
    fitted to other images; the extractor's name therefore includes a hash of the images and labels.
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
        """Fits the perceptron. This takes about a second for 1,500 digits of 8 × 8, ten for 5,000 images of MNIST.

        **Arguments:** `images`: images or clips of one size, channels last, uint8 or in [−1, 1]; `labels`: at least two
        classes; `dataset`: name of the data, part of the extractor's name; `seed`: of the fit.

        **Raises:** `ValueError` for fewer than two classes, or not one label per image.
        """
        from sklearn.neural_network import MLPClassifier
        from threadpoolctl import threadpool_limits

        images, labels = np.asarray(images), np.asarray(labels)
        if len(images) != len(labels) or len(np.unique(labels)) < 2:
            raise ValueError(
                f"`ClassifierExtractor` got {len(images)} images and {len(labels)} labels of {len(np.unique(labels))} "
                "class(es); it needs one label per image and at least two classes."
            )
        self._shape = images.shape[1:]
        pixels = self._flat(images)
        # The products are so small that threads would wait for each other longer than they compute.
        with threadpool_limits(1, user_api="blas"):
            self._network: Any = MLPClassifier(HIDDEN, max_iter=1000, random_state=seed).fit(pixels, labels)
        self.classes: np.ndarray = self._network.classes_
        content = hashlib.sha256(np.ascontiguousarray(pixels).tobytes() + labels.astype(np.int64).tobytes())
        self.name = f"{dataset} classifier, {HIDDEN[-1]} features, data {content.hexdigest()[:8]}, seed {seed}"
        self.num_features = HIDDEN[-1]

    @property
    def fingerprint(self) -> str:
        """Eight hexadecimal digits that identify the weights. Processors of other kinds may round the fit in another
        way.
        """
        return fingerprint([*self._network.coefs_, *self._network.intercepts_])

    @classmethod
    def of_digits(cls) -> "ClassifierExtractor":
        """The extractor of [`DigitsEvaluator`][elt_zoo.metrics.DigitsEvaluator], fitted to the training part of
        [`load_digits`][elt_zoo.data.load_digits].
        """
        train = load_digits("train")
        return cls(digits_to_pixels(train.images), train.labels, dataset="digits")

    @classmethod
    def of_source(
        cls, source: AbstractSource, *, dataset: str, examples: int = 5000, seed: int = 0
    ) -> "ClassifierExtractor":
        """Fitted to images or clips of a source, such as a training set of your own.

        **Arguments:** `source`: of images or clips; `examples`: how many to fit to, taken at random; `dataset`, `seed`:
        as for the class, the seed of the random choice too.

        **Raises:** `TypeError` for a source of tokens or latents; `ValueError` for fewer than two classes.
        """
        rows = np.random.default_rng(seed).permutation(len(source))[:examples]
        batch = first_examples(Subset(source, np.sort(rows)), examples)
        match batch:
            case Images():
                pixels = batch.images
            case Clips():
                pixels = batch.clips
            case Batch():
                pixels = batch.examples
            case _:
                raise TypeError(
                    f"`ClassifierExtractor.of_source` needs images or clips, not {type(batch).__name__.lower()}: give "
                    "the source that they were made from."
                )
        return cls(np.asarray(pixels), np.asarray(batch.labels), dataset=dataset, seed=seed)

    @checked
    def __call__(
        self, examples: UInt8[np.ndarray | Array, "examples ..."] | Float[np.ndarray | Array, "examples ..."]
    ) -> Features:
        """**Arguments:** `examples`: images of the size fitted to, uint8 or in [−1, 1]; values outside are clipped and
        not rounded.

        **Returns:** 32 features and the class logits of each, float64.

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

    def accuracy(
        self,
        images: UInt8[np.ndarray, "examples ..."] | Float[np.ndarray, "examples ..."],
        labels: Int[np.ndarray, " examples"],
    ) -> float:
        """The share of images that the perceptron takes for their class. Measure it on held-out images: features of a
        classifier that is no better than chance are of little use.
        """
        logits = self(images).logits
        assert logits is not None
        answers = self.classes[np.argmax(logits, axis=1)]
        return float(np.mean(answers == np.asarray(labels)))

    @staticmethod
    def _flat(images: np.ndarray) -> Float[np.ndarray, "examples pixels"]:
        # In parts, because the pixels of large images take eight times the memory of their bytes.
        parts = [_pixels(images[start : start + 256]) for start in range(0, max(len(images), 1), 256)]
        return np.concatenate([part.reshape(len(part), -1) for part in parts])


def _pixels(images: np.ndarray) -> Float[np.ndarray, "examples ..."]:
    """Pixels in [−1, 1], at most 32 in height and width."""
    if images.dtype == np.uint8:
        pixels = images / 127.5 - 1.0
    else:
        check_finite(images)
        pixels = np.clip(images.astype(np.float64), -1.0, 1.0)
    for axis in (-3, -2) if images.ndim >= 4 else ():
        if pixels.shape[axis] > LARGEST:
            matrix = _areas(pixels.shape[axis], LARGEST)
            pixels = np.moveaxis(matrix @ np.moveaxis(pixels, axis, -2), -2, axis)
    return pixels


def _areas(old: int, new: int) -> Float[np.ndarray, "new old"]:
    """The matrix that averages `old` pixels over the areas of `new` ones."""
    edges = np.arange(new + 1) * (old / new)
    # How much of each area lies before each old pixel's left edge, then within the pixel.
    before = np.clip(np.arange(old + 1)[None, :], edges[:-1, None], edges[1:, None])
    return np.diff(before, axis=1) * (new / old)
