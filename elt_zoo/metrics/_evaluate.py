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
    """Figures of a set of samples, with what they depend on.

    **Fields:**

    - `figures`: by name; what a Fréchet distance is called depends on the extractor.
    - `extractor`: name of what the features come from.
    - `samples`, `reference_samples`: how many were measured, and compared with; `None` if a file does not say.
    - `protocol`: of videos, and whatever you add to describe the samples.
    """

    figures: dict[str, float]
    extractor: str
    samples: int | None
    reference_samples: int | None
    protocol: dict[str, Any] | None = None

    def to_json(self) -> str:
        """All of it, for a file of results."""
        return json.dumps(dataclasses.asdict(self), indent=2, ensure_ascii=False, allow_nan=False)


def evaluate_samples(
    extractor: AbstractExtractor,
    batches: Iterable[Examples],
    reference: SetStatistics,
    *,
    splits: int = 10,
    allow_few: bool = False,
) -> Evaluation:
    """Measures samples against a reference.

    **Arguments:**

    - `extractor`: the one that `reference` was made with.
    - `batches`: arrays of samples, of any sizes.
    - `reference`: from `set_statistics` of real examples, `load_statistics` or `reference_statistics`. With features in
      it come precision and recall, with spatial statistics sFID.
    - `splits`: of the Inception score, see [`inception_score`][elt_zoo.metrics.inception_score].
    - `allow_few`: whether to measure sets with no more examples than features. Their covariances are singular, and the
      distance says more of their number than of their quality.

    **Raises:** `ValueError` for a reference of another extractor, samples that cannot be used, or too few.
    """
    _check_extractor(extractor, reference, "reference")  # before the samples, which take long
    return compare_sets(
        extractor, set_statistics(extractor, batches, keep=True), reference, splits=splits, allow_few=allow_few
    )


def compare_sets(
    extractor: AbstractExtractor,
    samples: SetStatistics,
    reference: SetStatistics,
    *,
    splits: int = 10,
    allow_few: bool = False,
) -> Evaluation:
    """The same for sets whose statistics are there already, such as parts that several processes made and merged.

    **Arguments:** `samples`: with `keep=True` for all figures; the others as `evaluate_samples`.

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
    if samples.spatial is not None and reference.spatial is not None:
        figures[f"s{extractor.distance}"] = frechet_distance(samples.spatial, reference.spatial)
    if samples.logits is not None and extractor.score is not None:
        score = inception_score(samples.logits, splits=splits)
        figures |= {extractor.score: score.mean, f"{extractor.score}, standard deviation": score.std}
    if samples.features is not None and reference.features is not None:
        shares = precision_recall(reference.features, samples.features)
        figures |= {"precision": shares.precision, "recall": shares.recall}
    return Evaluation(figures, extractor.name, samples.pool.count, reference.pool.count, extractor.description)


def _check_extractor(extractor: AbstractExtractor, part: SetStatistics, name: str) -> None:
    if part.pool.extractor != extractor.name:
        raise ValueError(
            f"The {name} were measured with the extractor {part.pool.extractor!r}, not with {extractor.name!r}: "
            "distances in different features mean nothing. Make both sets' statistics with one extractor."
        )
