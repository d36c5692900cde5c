import dataclasses
import hashlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from tqdm import tqdm

from ..data import AbstractSource, Clips, Visit, digits_to_pixels, load_digits
from ..distributed import agree, first_says, is_first, together
from ..metrics import (
    AbstractExtractor,
    ClassifierExtractor,
    DigitsEvaluator,
    I3DExtractor,
    InceptionExtractor,
    InceptionResize,
    SetStatistics,
    VideoProtocol,
    compare_sets,
    load_statistics,
    reference_statistics,
    set_statistics,
)
from ..pretrained import catalog, load_i3d, load_inception
from ..recipes import DIGITS, open_source
from ._measured import Measured, gather_measured
from ._samples import Samples, shares

DIGITS_DISTANCE = "digits Fréchet distance (not FID)"
"""The name of the distance that samples of the digits are measured in."""
# How the Inception score is measured; every card records it.
_SCORE = {"splits": 10, "seed": 0}
# Features of more real images fill the memory, and precision and recall grow with the product of both sets.
_KEPT_FEATURES = 50_000


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluatorOptions:
    """What to compare samples with. The digits need none of it."""

    extractor: Literal["published", "classifier"] = "published"
    """Images: the published Inception, or a small classifier that is trained on `--reference-data` first."""
    inception: Path | None = None
    """Images: the weights of FID's Inception."""
    resize: Literal["tensorflow", "pytorch-fid"] = "tensorflow"
    """Images: how Inception's input is resized; the first for ADM's reference files."""
    i3d: Path | None = None
    """Clips: the weights of I3D."""
    protocol: Literal["magvit", "stylegan-v"] = "magvit"
    """Clips: which FVD."""
    reference: Path | None = None
    """Statistics of real data: an npz file of ADM, of pytorch-fid, or written here."""
    reference_data: str | None = None
    """Instead of `--reference`: real images or videos, measured first: a folder, `cifar10` or `mnist`."""
    extractor_batch: int | None = None
    """Images that go through Inception at a time, or clips through I3D; default 64, or 16."""
    allow_few: bool = False
    """Measure even if the samples are too few for a covariance; such distances only show that everything runs."""

    def __post_init__(self):
        if self.extractor_batch is not None and self.extractor_batch < 1:
            raise ValueError(f"`--extractor-batch {self.extractor_batch}` must be at least 1.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluator:
    """What measures samples: batches of them → named scores.

    **Fields:**

    - `extractor`, `reference`: features, and those of real data; of several processes, process 0 alone may have them.
    - `distance`: the name of the score that matters most.
    - `card`: all that the scores depend on, of JSON's types.
    - `allow_few`: whether fewer samples than features are measured.
    - `floors`: what real data that were not compared with score, by name. A distance falls with the number of examples,
      so theirs is part of the name.
    - `digits`: for the handwritten digits, what else measures them.
    """

    extractor: AbstractExtractor
    reference: SetStatistics | None
    distance: str
    card: dict[str, Any]
    allow_few: bool
    floors: Mapping[str, float] = dataclasses.field(default_factory=dict)
    digits: DigitsEvaluator | None = None

    def check(self, samples: int) -> None:
        """**Raises:** `ValueError` if so many samples are too few, before any is sampled."""
        if samples <= self.extractor.num_features and not self.allow_few:
            raise ValueError(
                f"`--samples {samples}` are too few for a covariance of {self.extractor.num_features} features. Use "
                "more (FID is published for 50,000), or `--allow-few` to see that everything runs."
            )

    def __call__(self, batches: Iterable[Samples]) -> dict[str, float]:
        """The scores of a set of samples."""
        return self.scores(self.measure(batches))

    def measure(self, batches: Iterable[Samples]) -> Measured:
        """What the scores of some samples are computed from. Parts of a set are merged."""
        kept: list[Samples] = []

        def pixels() -> Iterator[np.ndarray]:
            for batch in batches:
                if self.digits is not None:
                    kept.append(batch)
                yield batch.pixels

        statistics = set_statistics(self.extractor, pixels(), keep=True)
        samples = Samples(*(np.concatenate(parts) for parts in zip(*kept, strict=True))) if kept else None
        return Measured(statistics, samples)

    def scores(self, measured: Measured) -> dict[str, float]:
        """The scores of a set of samples, in process 0."""
        assert self.reference is not None
        compared = compare_sets(self.extractor, measured.statistics, self.reference, allow_few=self.allow_few, **_SCORE)
        scores = compared.figures
        if self.digits is None or measured.samples is None:
            return scores
        quality = self.digits(*measured.samples)
        mine = {
            self.distance: quality.frechet_distance,
            "accuracy of the intended class": quality.accuracy,
            "distance to the nearest training digit": quality.nearest_distance,
        }
        return mine | {name: value for name, value in scores.items() if name in ("precision", "recall")}


def make_evaluator(options: EvaluatorOptions, *, data: str | None, shape: tuple[int, ...], folder: Path) -> Evaluator:
    """The evaluator of samples.

    **Arguments:**

    - `options`: what to compare with.
    - `data`: the name of the data set that the generator was trained on, as its metadata says; `digits` have their own
      evaluator.
    - `shape`: of one sample's pixels.
    - `folder`: of the results; statistics of `--reference-data` are kept beside it.

    **Raises:** `ValueError` if weights or a reference are missing, saying where they are, or given to no use.
    """
    if data == DIGITS:
        given = [name for name in ("inception", "i3d", "reference", "reference_data") if getattr(options, name)]
        given += ["extractor"] * (options.extractor != "published")
        if given:
            raise ValueError(
                f"`--{given[0].replace('_', '-')}` has no use here: digits are compared with the training digits "
                "in the features of a classifier of digits. Leave it out."
            )
        return _of_digits(options)
    images = len(shape) == 3
    if (options.reference is None) == (options.reference_data is None):
        raise ValueError(
            "Give one of `--reference`, a file of statistics of real data (ADM's are listed at "
            "https://github.com/openai/guided-diffusion/tree/main/evaluations), and `--reference-data`, a folder of "
            "real data."
        )
    batch = options.extractor_batch or (64 if images else 16)
    extractor, weights = _extractor(options, shape, batch)
    reference, described = _reference(options, extractor, shape, folder, batch)
    card = {"weights": weights, "reference": described, "protocol": extractor.description}
    if extractor.score is not None:
        card["score"] = _SCORE
    return Evaluator(
        extractor=extractor,
        reference=reference,
        distance=extractor.distance,
        card={"name": extractor.name, **card},
        allow_few=options.allow_few,
    )


def _extractor(options: EvaluatorOptions, shape: tuple[int, ...], batch: int) -> tuple[AbstractExtractor, Any]:
    """The extractor, and what says which weights it has."""
    images = len(shape) == 3
    if options.extractor == "classifier":
        if not images or options.reference_data is None:
            raise ValueError(
                "`--extractor classifier` measures images and is trained on `--reference-data`: give both."
            )
        source = open_source(options.reference_data, split="train", size=shape[-2])
        images, labels = (np.concatenate(parts) for parts in zip(*_read(source, batch, shape[-1]), strict=True))
        return _alike(ClassifierExtractor(images, labels, dataset=Path(options.reference_data).name)), None
    if images:
        weights = _weights(options.inception, "--inception", "inception-fid", images=True)
        resize = InceptionResize(options.resize)
        return InceptionExtractor(load_inception(weights), resize=resize, batch_size=batch), _hashed(weights)
    weights = _weights(options.i3d, "--i3d", "i3d-kinetics", images=False)
    protocol = VideoProtocol.magvit() if options.protocol == "magvit" else VideoProtocol.stylegan_v()
    return I3DExtractor(load_i3d(weights), protocol, batch_size=batch), _hashed(weights)


def _of_digits(options: EvaluatorOptions) -> Evaluator:
    digits, train = DigitsEvaluator(), load_digits("train")
    _alike(digits.extractor)
    return Evaluator(
        extractor=digits.extractor,
        reference=set_statistics(digits.extractor, [digits_to_pixels(train.images)], keep=True),
        distance=DIGITS_DISTANCE,
        card={"name": digits.extractor.name, "reference": f"{len(train.labels)} training digits of scikit-learn"},
        allow_few=options.allow_few,
        floors={"real held-out digits, 35 of each class": digits.floor()["heldout"]},
        digits=digits,
    )


def _alike(extractor: ClassifierExtractor) -> ClassifierExtractor:
    """**Raises:** `ValueError` where processors of another kind have fitted another network: parts measured with both
    cannot be merged.
    """
    agree({"the classifier's weights": extractor.fingerprint})
    return extractor


def _weights(path: Path | None, option: str, name: str, *, images: bool) -> Path:
    if path is not None:
        return path
    known = catalog()[name]
    hint = " Or measure small images with `--extractor classifier`, which needs no download." if images else ""
    raise ValueError(
        f"`{option}` is missing: the file {known.files[0].name} ({known.network}). It is published at {known.source}."
        + hint
    )


def _reference(
    options: EvaluatorOptions, extractor: AbstractExtractor, shape: tuple[int, ...], folder: Path, batch: int
) -> tuple[SetStatistics | None, dict[str, Any]]:
    if options.reference is not None:
        return reference_statistics(options.reference, extractor), _hashed(options.reference)
    assert options.reference_data is not None
    frames = shape[0] if len(shape) == 4 else None
    source = open_source(options.reference_data, split="train", size=shape[-2], frames=frames)
    described = {"data": options.reference_data, "examples": len(source)}
    # Beside the results, not among them, for other models; of other data or another extractor is another file.
    code = hashlib.sha256(repr((Path(options.reference_data).resolve(), described, shape, extractor.name)).encode())
    file = folder.with_name(f"reference-{code.hexdigest()[:12]}.npz")
    if first_says(file.exists()):
        return together(lambda: load_statistics(file, extractor=extractor.name) if is_first() else None), described
    keep = len(source) <= _KEPT_FEATURES
    # A classifier of grey images reads one of three equal channels.
    channels = shape[-1] if options.extractor == "classifier" else 3
    mine = shares(len(source), batch)[jax.process_index()]

    def measure() -> Measured | None:
        pictures = (images for images, _ in _read(source, batch, channels, mine))
        return Measured(set_statistics(extractor, pictures, keep=keep)) if mine else None

    whole = gather_measured(together(measure))

    def save() -> SetStatistics | None:
        if whole is None:
            return None
        folder.parent.mkdir(parents=True, exist_ok=True)
        whole.statistics.save(file)
        return whole.statistics

    return together(save), described


def _read(
    source: AbstractSource, batch_size: int, channels: int, rows: range | None = None
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Every example once, in order, or some rows: bytes and labels."""
    rows = range(len(source)) if rows is None else rows
    quiet = None if is_first() else True
    for start in tqdm(rows[::batch_size], desc="reference", unit="batch", disable=quiet):
        visits = [Visit(index) for index in range(start, min(start + batch_size, rows.stop))]
        batch = source.read_batch(visits)
        pictures = np.asarray(batch.clips if isinstance(batch, Clips) else batch.images)
        yield pictures[..., :channels], np.asarray(batch.labels)


def _hashed(path: Path) -> dict[str, str]:
    with path.open("rb") as file:
        return {"file": path.name, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
