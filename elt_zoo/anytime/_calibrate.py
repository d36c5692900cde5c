import dataclasses
import math
from collections.abc import Callable, Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, PRNGKeyArray

from .._checks import checked
from ..generator import EarlyExitPredict, ExitSignal, Generator, SettledExit

Risk = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Called with pixels of samples with early exits and of the same samples with L_max loops: what is lost, in [0, 1] for
each.
"""


def changed_class(classify: Callable[[np.ndarray], np.ndarray]) -> Risk:
    """The risk that an early exit changes what a picture shows.

    **Arguments:** `classify`: pixels → classes, such as
    [`DigitsEvaluator.classify`][elt_zoo.metrics.DigitsEvaluator.classify].
    """

    def risk(early: np.ndarray, full: np.ndarray) -> np.ndarray:
        return (classify(early) != classify(full)).astype(np.float64)

    return risk


def feature_change(features: Callable[[np.ndarray], np.ndarray], *, largest: float) -> Risk:
    """How far an early exit moves a picture in the features of a network.

    **Arguments:** `features`: pixels → (examples, features); `largest`: the distance from which on the risk is 1, such
    as the mean distance of two real pictures.

    **Raises:** `ValueError` unless `largest` is positive.
    """
    if not 0.0 < largest < math.inf:
        raise ValueError(f"`feature_change(largest={largest})` must be a positive distance.")

    def risk(early: np.ndarray, full: np.ndarray) -> np.ndarray:
        distances = np.linalg.norm(np.asarray(features(early)) - np.asarray(features(full)), axis=1)
        return np.minimum(distances / largest, 1.0)

    return risk


@checked
def risk_p_value(risk: float, samples: int, limit: float) -> float:
    r"""How unlikely a mean risk as small as this is where the true one is above a limit: the p-value of Hoeffding and
    Bentkus ([2110.01052](https://arxiv.org/abs/2110.01052), section 3.1), for risks in [0, 1].

    $$p = \min\bigl(e^{-n\,h(\min(\hat R, \epsilon), \epsilon)},\;
    e\,P(\mathrm{Bin}(n, \epsilon) \le \lceil n \hat R \rceil)\bigr)$$

    with $h(a, b) = a \log(a / b) + (1 - a) \log((1 - a) / (1 - b))$.

    **Arguments:** `risk`: R̂, the mean over the samples; `samples`: n; `limit`: ε.
    """
    from scipy.special import rel_entr
    from scipy.stats import binom

    least = min(risk, limit)
    hoeffding = math.exp(-samples * float(rel_entr(least, limit) + rel_entr(1.0 - least, 1.0 - limit)))
    # A mean of whole numbers is not above the next one for rounding alone.
    bentkus = math.e * float(binom.cdf(math.ceil(samples * risk - 1e-9), samples, limit))
    return min(hoeffding, bentkus, 1.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ThresholdTest:
    """One threshold that was tried.

    **Fields:** `threshold`; `risk`: the mean over the samples; `p_value`: of a true risk above ε; `loops`: what a step
    took, the mean.
    """

    threshold: float
    risk: float
    p_value: float
    loops: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExitCalibration:
    """A rule that keeps a promise: with probability at least 1 − δ over the calibration, its risk is at most ε.

    **Fields:**

    - `rule`: with the largest threshold that passed, or `None` where even the smallest did not: then use L_max loops.
    - `tests`: of the thresholds, up to the first that failed.
    - `limit`, `error`: ε and δ.
    - `samples`: pairs of samples that each test saw.
    """

    rule: SettledExit | None
    tests: tuple[ThresholdTest, ...]
    limit: float
    error: float
    samples: int


def calibrate_exit(
    generator: Generator,
    signal: ExitSignal,
    *,
    risk: Risk,
    limit: float = 0.05,
    error: float = 0.1,
    thresholds: Sequence[float] | None = None,
    samples: int = 500,
    steps: int | None = None,
    batch_size: int = 64,
    key: PRNGKeyArray,
) -> ExitCalibration:
    """Finds how early examples may leave the loops, with a guarantee.

    Pairs of samples from the same noise, with a rule and with L_max loops, tell what a threshold risks. Thresholds are
    tested in turn from the most careful one until one fails (Learn then Test,
    [2110.01052](https://arxiv.org/abs/2110.01052), with a fixed sequence of tests): the chance that a rule whose true
    risk is above `limit` comes out is at most `error`, whatever the model and the signal are. The promise holds for
    samples of the classes in equal numbers, sampled as here.

    **Arguments:**

    - `generator`: what is sampled.
    - `signal`: what the rule looks at.
    - `risk`: what is lost, such as [`changed_class`][elt_zoo.anytime.changed_class].
    - `limit`: ε, the largest risk, in (0, 1).
    - `error`: δ, the largest chance of a broken promise, in (0, 1).
    - `thresholds`: to test, rising; default twelve from 0.001 to 1, each about twice the last.
    - `samples`: pairs, the classes in turn. Fewer than −log(δ)/ε can prove nothing.
    - `steps`: sampling steps; default as the generator is sampled.
    - `batch_size`: samples at a time.
    - `key`: of the noise. Use another for what you report.

    **Returns:** the [`ExitCalibration`][elt_zoo.anytime.ExitCalibration].

    **Raises:** `ValueError` for limits outside (0, 1), thresholds that do not rise or are not finite, too few samples,
    or risks outside [0, 1].
    """
    thresholds = np.geomspace(1e-3, 1.0, 12).tolist() if thresholds is None else [float(each) for each in thresholds]
    if not 0.0 < limit < 1.0 or not 0.0 < error < 1.0:
        raise ValueError(f"`calibrate_exit(limit={limit}, error={error})`: both must lie between 0 and 1.")
    if not thresholds or not np.isfinite(thresholds).all() or (np.diff([-1e-30, *thresholds]) <= 0).any():
        raise ValueError(f"`calibrate_exit(thresholds={thresholds})` must rise from 0 or more, and be finite.")
    if risk_p_value(0.0, max(samples, 0), limit) > error:
        needed = math.ceil(math.log(error) / math.log1p(-limit))
        raise ValueError(
            f"`calibrate_exit(samples={samples})` can prove nothing: a risk of at most {limit} with an error of at "
            f"most {error} takes at least {needed} samples without a loss."
        )
    labels = np.arange(samples) % generator.config.num_classes
    full = generator.sample(labels, steps=steps, batch_size=batch_size, key=key)
    tests, passed = [], None
    for threshold in thresholds:
        rule = SettledExit(signal, threshold)
        early = generator.sample(labels, steps=steps, exit_rule=rule, batch_size=batch_size, key=key)
        lost = np.asarray(risk(early, full), np.float64)
        if lost.shape != (samples,) or not ((lost >= 0.0) & (lost <= 1.0)).all():
            raise ValueError(f"`risk` must give a number in [0, 1] for each of the {samples} samples.")
        mean = float(lost.mean())
        p_value = risk_p_value(mean, samples, limit)
        loops = used_loops(generator, rule, labels[:batch_size], steps=steps, key=key)
        tests.append(ThresholdTest(threshold=threshold, risk=mean, p_value=p_value, loops=float(loops.mean())))
        if p_value > error:
            break
        passed = rule
    return ExitCalibration(rule=passed, tests=tuple(tests), limit=limit, error=error, samples=samples)


def used_loops(
    generator: Generator,
    rule: SettledExit,
    labels: Int[np.ndarray, " batch"] | Sequence[int],
    *,
    steps: int | None = None,
    key: PRNGKeyArray,
) -> Int[np.ndarray, "steps batch"]:
    """The loops that each example takes at each step, without guidance.

    **Arguments:** as for [`Generator.sample`][elt_zoo.Generator.sample], whose first batch these samples are if it is
    as large.
    """
    sampler, predict = generator.sampler(steps=steps, guidance=1.0), EarlyExitPredict(generator.model, rule)
    classes, noise = jnp.asarray(labels, jnp.int32), jax.random.fold_in(key, 0)
    asked = sampler.step_inputs(predict, classes, loops=generator.config.max_loops, key=noise)
    return np.asarray(_loops_of(predict, asked, classes))


@eqx.filter_jit
def _loops_of(predict: EarlyExitPredict, asked: tuple[Array, ...], labels: Array) -> Int[Array, "steps batch"]:
    return jax.lax.map(lambda step: predict.exits(*step, labels)[1], asked)
