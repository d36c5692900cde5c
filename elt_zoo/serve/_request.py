import dataclasses
import math
import secrets
from collections.abc import Mapping
from typing import Any, NamedTuple

from ._refusals import InvalidRequest

_SEEDS = 2**32


class Way(NamedTuple):
    """How to sample, all but the guidance, which is the server's."""

    steps: int
    """Sampling steps."""
    loops: tuple[int, ...]
    """Of each step."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SampleRequest:
    """What somebody wants sampled.

    **Fields:**

    - `labels`: a class for each sample.
    - `seed`: sample i comes from the noise of `jax.random.fold_in(jax.random.key(seed), i)`.
    - `milliseconds`: from the arrival to the samples; `None` for no hurry.
    - `way`: how to sample, where there is no hurry; `None` where the planner chooses.
    """

    labels: tuple[int, ...]
    seed: int
    milliseconds: float | None = None
    way: Way | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Offer:
    """What a server samples.

    **Fields:**

    - `classes`: how many there are; this number itself stands for no class.
    - `most_labels`: of one request.
    - `steps`: numbers of steps that are compiled.
    - `most_loops`: of one step.
    - `usual`: what a request gets that asks for nothing.
    - `fastest`: milliseconds of the fastest plan for so many labels, by their number; empty without a planner.
    """

    classes: int
    most_labels: int
    steps: tuple[int, ...]
    most_loops: int
    usual: Way
    fastest: Mapping[int, float]


def read_request(content: Any, offer: Offer) -> SampleRequest:
    """Reads a request as JSON says it, such as `{"labels": [3, 7], "milliseconds": 40, "seed": 1}`.

    Fields are `labels` (a class, or a list of them), `seed` (default a random one), and either `milliseconds` or
    `steps` and `loops` (a count, or one for each step).

    **Arguments:** `content`: what `json.loads` returns; `offer`: what the server samples.

    **Raises:** [`InvalidRequest`][elt_zoo.serve.InvalidRequest], which names the field.
    """
    if not isinstance(content, dict):
        raise InvalidRequest(None, 'A request is a JSON object, such as {"labels": [3], "milliseconds": 40}.')
    known = ("labels", "seed", "milliseconds", "steps", "loops")
    for name in content:
        if name not in known:
            raise InvalidRequest(str(name)[:80], f"is no field of a request: there are {', '.join(known)}.")
    labels, milliseconds = _labels(content.get("labels"), offer), content.get("milliseconds")
    seed = content.get("seed", secrets.randbelow(_SEEDS))
    if not _is_int(seed) or not 0 <= seed < _SEEDS:
        raise InvalidRequest("seed", f"must be a whole number from 0 to {_SEEDS - 1}.")
    if milliseconds is None:
        return SampleRequest(labels=labels, seed=seed, way=_way(content, offer))
    for name in ("steps", "loops"):
        if content.get(name) is not None:
            raise InvalidRequest(name, "and `milliseconds` cannot both be given: the planner chooses steps and loops.")
    if not isinstance(milliseconds, int | float) or isinstance(milliseconds, bool) or not 0 < milliseconds < math.inf:
        raise InvalidRequest("milliseconds", "must be a positive number.")
    if not offer.fastest:
        raise InvalidRequest(
            "milliseconds", "needs a planner, and this server has none: start it with `--measurements plan.json`."
        )
    if milliseconds < (fastest := offer.fastest[len(labels)]):
        raise InvalidRequest(
            "milliseconds",
            f"is below the fastest plan for {len(labels)} sample(s), which takes up to {fastest:.3g} ms here.",
        )
    return SampleRequest(labels=labels, seed=seed, milliseconds=float(milliseconds))


def _labels(given: Any, offer: Offer) -> tuple[int, ...]:
    labels = [given] if _is_int(given) else given
    if not isinstance(labels, list) or not labels or not all(map(_is_int, labels)):
        raise InvalidRequest("labels", "must be a class or a list of classes, such as [3, 7].")
    if len(labels) > offer.most_labels:
        raise InvalidRequest("labels", f"holds {len(labels)} classes: ask for at most {offer.most_labels} at a time.")
    for label in labels:
        if not 0 <= label <= offer.classes:
            raise InvalidRequest(
                "labels",
                f"holds {label}, but there are the classes 0 to {offer.classes - 1}, and {offer.classes} for no class.",
            )
    return tuple(labels)


def _way(content: Mapping[str, Any], offer: Offer) -> Way:
    steps, loops = content.get("steps"), content.get("loops")
    steps = offer.usual.steps if steps is None else steps
    if not _is_int(steps) or steps not in offer.steps:
        raise InvalidRequest("steps", f"must be one of {', '.join(map(str, offer.steps))}, which are compiled.")
    counts = [max(offer.usual.loops) if loops is None else loops] * steps if not isinstance(loops, list) else loops
    if len(counts) != steps or not all(_is_int(count) and 1 <= count <= offer.most_loops for count in counts):
        raise InvalidRequest(
            "loops", f"must be a whole number from 1 to {offer.most_loops}, or a list of them for the {steps} steps."
        )
    return Way(steps, tuple(counts))


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
