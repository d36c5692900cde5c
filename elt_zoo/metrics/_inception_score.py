import itertools
from typing import NamedTuple

import numpy as np
from jaxtyping import Float


class InceptionScore(NamedTuple):
    """Mean and standard deviation over the splits (divided by their number)."""

    mean: float
    std: float


def inception_score(
    logits: Float[np.ndarray, "examples classes"], *, splits: int = 10, seed: int | None = None
) -> InceptionScore:
    r"""The Inception score ([1606.03498](https://arxiv.org/abs/1606.03498)), higher is better:
    $\exp\,\mathbb{E}_x\,\mathrm{KL}(p(y | x) \,\Vert\, p(y))$.

    10 splits of 50,000 samples reproduce ADM's score, which splits the samples into parts of 5,000 in the order of the
    file, with the logits of [`InceptionExtractor`][elt_zoo.metrics.InceptionExtractor].

    **Arguments:** `logits`: before the softmax; `splits`: parts of (nearly) equal size that are scored one by one;
    `seed`: of the shuffle before the split, which samples sorted by class need; `None` keeps the order.

    **Raises:** `ValueError` for values that are not finite, or fewer samples than splits.
    """
    if not 1 <= splits <= len(logits):
        raise ValueError(f"`inception_score(splits={splits})` cannot cut {len(logits)} samples into that many parts.")
    if not np.isfinite(logits).all():
        raise ValueError("The logits hold values that are not finite; check the samples they come from.")
    if seed is not None:
        logits = np.random.default_rng(seed).permutation(logits)
    bounds = np.arange(splits + 1) * len(logits) // splits
    scores = [_score(logits[start:stop]) for start, stop in itertools.pairwise(bounds)]
    return InceptionScore(float(np.mean(scores)), float(np.std(scores)))


def _score(logits: Float[np.ndarray, "examples classes"]) -> float:
    logits = np.asarray(logits, np.float64)
    log_p = logits - _log_sum_exp(logits, axis=1)
    log_mean = _log_sum_exp(log_p, axis=0) - np.log(len(log_p))
    return float(np.exp(np.mean(np.sum(np.exp(log_p) * (log_p - log_mean), axis=1))))


def _log_sum_exp(x: Float[np.ndarray, "n m"], axis: int) -> Float[np.ndarray, "..."]:
    largest = x.max(axis=axis, keepdims=True)
    return largest + np.log(np.exp(x - largest).sum(axis=axis, keepdims=True))
