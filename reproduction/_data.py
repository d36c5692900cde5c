"""The small data sets of the reproduction, as pixels and as tokens, and the judge of what is generated from them."""

import dataclasses
import functools
from pathlib import Path

import jax
import numpy as np
from einops import reduce
from sklearn.svm import SVC

from elt_zoo.data import (
    AbstractSource,
    Batch,
    Subset,
    digits_to_pixels,
    first_examples,
    hold_out,
    load_digits,
    read_idx,
    to_pixels,
)
from elt_zoo.metrics import ClassifierExtractor, GaussianStatistics, frechet_distance
from elt_zoo.recipes import Augmentation, open_images
from elt_zoo.tokenizers import PatchCodebook

CLASSES = 10
PATCH = 2
_MNIST_FILES = ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz")
_HELDOUT = 500
_CIFAR10_TRAIN = 20_000
_JUDGED_BY = 10_000


@dataclasses.dataclass(frozen=True)
class SmallData:
    """Real labelled images of 10 classes in [−1, 1], shape (examples, height, width, channels): to train on, and to
    measure the loss on.
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
    parts = (Batch(pixels[rows], labels[rows].astype(np.int32)) for rows in hold_out(len(labels), _HELDOUT))
    return SmallData("MNIST", *parts, codebook_size=256)


def cifar10(data: str) -> SmallData:
    """20,000 training images of CIFAR-10, averaged to 16 × 16 pixels in colour; 500 others are held out at random, of
    the official test images where the files are the official ones.

    **Arguments:** `data`: what `--data` of the training commands takes for CIFAR-10, or a folder or archive of its
    images by class.

    **Raises:** `DataError` for data that cannot be opened.
    """
    opened = open_images(data, size=32, heldout=_HELDOUT, augmentation=Augmentation(random_crop=False, flip=False))
    rng = np.random.default_rng(0)

    def taken(source: AbstractSource, count: int) -> Batch:
        rows = np.sort(rng.permutation(len(source))[:count])
        batch = to_pixels(first_examples(Subset(source, rows), count))
        pixels = reduce(np.asarray(batch.examples), "n (h p) (w q) c -> n h w c", "mean", p=2, q=2)
        return Batch(pixels.astype(np.float32), np.asarray(batch.labels))

    return SmallData(
        "CIFAR-10", taken(opened.plain, _CIFAR10_TRAIN), taken(opened.heldout, _HELDOUT), codebook_size=512
    )


class Judge:
    """How good generated images are: the share that a support vector classifier takes for the class that was asked for,
    and the classifier Fréchet distance (not FID) to the real training images.

    Both are fitted to 10,000 training images at most. Of photographs they know little: compare those by losses.
    """

    def __init__(self, data: SmallData):
        train = Batch(data.train.examples[:_JUDGED_BY], data.train.labels[:_JUDGED_BY])
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
