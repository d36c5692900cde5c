"""The small data sets of the reproduction, as pixels and as tokens, and the judge of what is generated from them."""

import dataclasses
import functools
from pathlib import Path

import jax
import numpy as np
from einops import reduce
from sklearn.svm import SVC

from elt_zoo.data import Batch, digits_to_pixels, hold_out, load_digits, read_idx
from elt_zoo.metrics import ClassifierExtractor, GaussianStatistics, frechet_distance
from elt_zoo.tokenizers import PatchCodebook

CLASSES = 10
PATCH = 2
_MNIST_FILES = ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz")
_MNIST_HELDOUT = 500


@dataclasses.dataclass(frozen=True)
class SmallData:
    """Real labelled images of 10 classes in [−1, 1], shape (examples, height, width, 1): to train on, and to measure
    the loss on.
    """

    name: str
    train: Batch
    heldout: Batch
    codebook_size: int

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.train.examples.shape[1:]

    @functools.cached_property
    def tokenizer(self) -> PatchCodebook:
        """Codes of patches of 2 × 2 pixels, by k-means."""
        return PatchCodebook.fit(self.train.examples, codebook_size=self.codebook_size, patch_size=PATCH)

    def tokens(self, part: Batch) -> Batch:
        return Batch(np.asarray(jax.jit(jax.vmap(self.tokenizer.encode))(part.examples)), part.labels)


def digits() -> SmallData:
    """scikit-learn's 1,797 handwritten digits, 8 × 8 pixels; 360 are held out."""
    train, heldout = (
        Batch(digits_to_pixels(part.images), part.labels) for part in (load_digits("train"), load_digits("heldout"))
    )
    return SmallData("digits", train, heldout, codebook_size=128)


def mnist(folder: Path) -> SmallData:
    """The 10,000 test images of MNIST, averaged to 14 × 14 pixels; 500 are held out at random.

    **Raises:** `FileNotFoundError` or `ValueError` for a folder without MNIST's two files.
    """
    for name in _MNIST_FILES:
        if not (folder / name).is_file():
            raise FileNotFoundError(f"`--mnist {folder}` should hold {' and '.join(_MNIST_FILES)}; {name} is missing.")
    images, labels = (read_idx(folder / name) for name in _MNIST_FILES)
    if images.shape[1:] != (28, 28) or labels.shape != images.shape[:1]:
        raise ValueError(f"`--mnist {folder}` holds images of shape {images.shape} and labels of {labels.shape}.")
    # All 784 pixels cost four times as much to train on, and nothing readable comes of the steps that we can spend.
    pixels = reduce(images / 127.5 - 1.0, "n (h p) (w q) -> n h w 1", "mean", p=2, q=2).astype(np.float32)
    parts = (Batch(pixels[rows], labels[rows].astype(np.int32)) for rows in hold_out(len(labels), _MNIST_HELDOUT))
    return SmallData("MNIST", *parts, codebook_size=256)


class Judge:
    """How good generated images are: the share that a support vector classifier takes for the class that was asked for,
    and the classifier Fréchet distance (not FID) to the real training images.
    """

    def __init__(self, data: SmallData):
        train = data.train
        self._classifier = SVC(C=10.0, gamma="scale").fit(_flat(train.examples), train.labels)
        self.extractor = ClassifierExtractor(train.examples, train.labels, dataset=data.name)
        self._reference = self._statistics(train.examples)

    def __call__(self, pixels: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        return {
            "accuracy": float(np.mean(self._classifier.predict(_flat(pixels)) == labels)),
            "distance": frechet_distance(self._statistics(pixels), self._reference),
        }

    def floor(self, data: SmallData, *, per_class: int = 35, repeats: int = 10) -> dict[str, float]:
        """What real held-out images score in sets of as many of each class: the mean over random sets."""
        rng, (examples, labels) = np.random.default_rng(0), data.heldout
        scores = []
        for _ in range(repeats):
            rows = [rng.choice(np.flatnonzero(labels == each), per_class, replace=False) for each in range(CLASSES)]
            scores.append(self(examples[np.concatenate(rows)], labels[np.concatenate(rows)]))
        return {name: float(np.mean([score[name] for score in scores])) for name in scores[0]}

    def _statistics(self, pixels: np.ndarray) -> GaussianStatistics:
        return GaussianStatistics.of(self.extractor(pixels).pool, self.extractor.name)


def _flat(pixels: np.ndarray) -> np.ndarray:
    return np.clip(np.asarray(pixels, np.float64).reshape(len(pixels), -1), -1.0, 1.0)
