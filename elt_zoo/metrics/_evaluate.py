import dataclasses
import json
from collections.abc import Iterable
from typing import Any

from ._extractor import AbstractExtractor, Examples
from ._frechet import frechet_distance
from ._inception_score import inception_score
from ._precision_recall import precision_recall
from ._sets import SetStatistics, set_statistics


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Metrics of a set of samples, and what they depend on.

    **Fields:**

    - `figures`: the values by name. The extractor names the Fréchet distance.
    - `extractor`: name of the extractor.
    - `samples`, `reference_samples`: how many examples were measured, and compared with; `None` if a file does not say.
    - `protocol`: how the examples were prepared (the extractor's `description`), and `score`, the splits and the seed
      of the Inception score; `None` if neither applies.
    """

    figures: dict[str, float]
    extractor: str
    samples: int | None
    reference_samples: int | None
    protocol: dict[str, Any] | None = None

    def to_json(self) -> str:
        """All fields as JSON, for a file of results."""
        return json.dumps(dataclasses.asdict(self), indent=2, ensure_ascii=False, allow_nan=False)


def evaluate_samples(
    extractor: AbstractExtractor,
    batches: Iterable[Examples],
    reference: SetStatistics,
    *,
    splits: int = 10,
    seed: int | None = 0,
    allow_few: bool = False,
) -> Evaluation:
    """Measures samples against a reference.

    **Arguments:**

    - `extractor`: the one that measured `reference`.
    - `batches`: arrays of samples, of any sizes.
    - `reference`: from `set_statistics` of real examples, `load_statistics` or `reference_statistics`. If it holds
      features, the result has precision and recall; if it holds spatial statistics, sFID.
    - `splits`, `seed`: of the Inception score, see [`inception_score`][elt_zoo.metrics.inception_score]. Samples are
      shuffled before they are split, because samples sorted by class would score far too low; `None` keeps their order.
    - `allow_few`: whether to accept sets with no more examples than features. Their covariances are singular, so the
      distance depends more on their number than on their quality.

    **Raises:** `ValueError` if the reference is of another extractor, or if the samples are unusable or too few.
    """
    _check_extractor(extractor, reference, "reference")  # before the samples, which take long
    samples = set_statistics(extractor, batches, keep=True)
    return compare_sets(extractor, samples, reference, splits=splits, seed=seed, allow_few=allow_few)


def compare_sets(
    extractor: AbstractExtractor,
    samples: SetStatistics,
    reference: SetStatistics,
    *,
    splits: int = 10,
    seed: int | None = 0,
    allow_few: bool = False,
) -> Evaluation:
    """As [`evaluate_samples`][elt_zoo.metrics.evaluate_samples], for samples with known statistics, such as parts that
    several processes measured and merged.

    **Arguments:** `samples`: made with `keep=True` to get every metric; the others as for `evaluate_samples`.

    **Raises:** as `evaluate_samples`.
    """
    for name, part in (("samples", samples), ("reference", reference)):
        _check_extractor(extractor, part, name)
        counted = part.pool.count
        if counted is not None and counted <= extractor.num_features and not allow_few:
            raise ValueError(
                f"The {name} are {counted}, too few for a covariance of {extractor.num_features} features. Use more "
                "(FID is published for 50,000), or say `allow_few=True`."
            )
    figures = {extractor.distance: frechet_distance(samples.pool, reference.pool)}
    protocol = dict(extractor.description or {})
    if samples.spatial is not None and reference.spatial is not None:
        figures[f"s{extractor.distance}"] = frechet_distance(samples.spatial, reference.spatial)
    if samples.logits is not None and extractor.score is not None:
        score = inception_score(samples.logits, splits=splits, seed=seed)
        figures |= {extractor.score: score.mean, f"{extractor.score}, standard deviation": score.std}
        protocol["score"] = {"splits": splits, "seed": seed}
    if samples.features is not None and reference.features is not None:
        shares = precision_recall(reference.features, samples.features)
        figures |= {"precision": shares.precision, "recall": shares.recall}
    return Evaluation(figures, extractor.name, samples.pool.count, reference.pool.count, protocol or None)


def _check_extractor(extractor: AbstractExtractor, part: SetStatistics, name: str) -> None:
    if part.pool.extractor != extractor.name:
        raise ValueError(
            f"The {name} were measured with the extractor {part.pool.extractor!r}, not with {extractor.name!r}: "
            "distances between different features mean nothing. Measure both sets with one extractor."
        )
