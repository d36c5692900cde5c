import dataclasses
import functools
from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ..diagnostics import LevelLosses, held_out_level_losses
from ..generator import Generator
from ..models import BatchedPredict, ElasticModel
from ..sampling import constant_budget
from ._data import PlanningData

GAP = "held-out gap to L_max"
"""The measure where there is no distance."""
_LARGEST_BATCH = 250


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepQuality:
    r"""How good samples of one number of steps are, for any loops at each step.

    The gaps say which loops are best, and how far their samples are on the way from those of L_max to those of one
    loop, whose distances are measured:

    $$\text{distance} = \text{full} + (\text{one} - \text{full}) \cdot \text{gap} / \text{gap of one loop}$$

    **Fields:**

    - `gaps`: for every step, what is lost with 1, …, L_max loops against L_max.
    - `full`, `one`: the distance with L_max loops at every step, and with one.
    """

    gaps: tuple[tuple[float, ...], ...]
    full: float
    one: float

    def __post_init__(self):
        widths = {len(row) for row in self.gaps}
        if len(widths) != 1 or 0 in widths:
            raise ValueError("`StepQuality(gaps)` needs as many numbers for every step, one for each number of loops.")

    @property
    def steps(self) -> int:
        """Sampling steps."""
        return len(self.gaps)

    def share(self, gap: float, loops: int) -> float:
        """How far samples are from those of L_max to those of one loop, in [0, 1].

        **Arguments:** `gap`: the summed gap of their loops; `loops`: their sum. It decides where the held-out loss says
        nothing, since one loop is no worse than L_max.
        """
        most, one = self.steps * len(self.gaps[0]), sum(row[0] for row in self.gaps)
        if one <= 0:
            return (most - loops) / max(most - self.steps, 1)
        return min(max(gap / one, 0.0), 1.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Quality:
    """How good samples are for any steps and loops, as [`measure_quality`][elt_zoo.anytime.measure_quality] finds out.

    **Fields:**

    - `measure`: the name of the distance; lower is better.
    - `by_steps`: for each number of steps.
    - `error`: the standard error of each measured distance; `None` if it is not known.
    - `samples`, `sets`: how many samples a distance is measured on, and how many times; 0 without a distance.
    """

    measure: str
    by_steps: tuple[StepQuality, ...]
    error: float | None
    samples: int
    sets: int


def measure_quality(
    generator: Generator,
    data: PlanningData,
    *,
    steps: Sequence[int],
    guidance: float | None = None,
    samples: int = 1000,
    sets: int = 2,
    copies: int = 4,
    seed: int = 0,
) -> Quality:
    r"""Finds out how good samples are for any steps and loops.

    One pass over held-out examples gives the loss of every exit at every level of corruption. What step k loses with l
    loops is the difference to the loss of L_max at the step's level, times the fall of the level until the next step,
    so that the sum approximates an integral over levels:

    $$\text{gap}_{k,l} = (\text{level}_k - \text{level}_{k+1}) \cdot
    (\text{loss}_l(\text{level}_k) - \text{loss}_{L_{max}}(\text{level}_k))$$

    For masked generation that is the loss in nats over the share of tokens that the step reveals; for diffusion the
    training loss over the times that it crosses. Distances are then measured for two cells of each number of steps,
    L_max loops and one.

    **Arguments:**

    - `generator`: what to measure.
    - `data`: held-out examples, and a distance. Without a distance, the quality is the summed gap, which cannot be
      compared between numbers of steps.
    - `steps`: numbers of sampling steps; one without a distance.
    - `guidance`: the scale; default as the generator is sampled.
    - `samples`, `sets`: samples of a distance, the classes in turn, and sets of them, each from its own noise.
    - `copies`: how many times each held-out example is corrupted.
    - `seed`: of the corruption and the samples.

    **Returns:** the [`Quality`][elt_zoo.anytime.Quality].

    **Raises:** `ValueError` for counts below 1, examples that do not fit, several numbers of steps without a distance,
    or a distance that is not finite.
    """
    if min(samples, sets, copies, len(steps), *steps) < 1:
        raise ValueError(
            f"`measure_quality(steps={tuple(steps)}, samples={samples}, sets={sets}, copies={copies})`: each must be "
            "at least 1."
        )
    if data.distance is None and len(steps) > 1:
        raise ValueError(
            f"`measure_quality(steps={tuple(steps)})` has no distance to compare numbers of steps by: give one number, "
            "or `PlanningData(distance=...)`."
        )
    data.check(generator)
    config, key = generator.config, jax.random.key(seed)
    losses = held_out_level_losses(
        generator.model,
        config.loss(),
        config.corruption(),
        config.level,
        data.examples,
        data.labels,
        loops=config.max_loops,
        copies=copies,
        batch_size=_even_batch(copies * len(data.labels)),
        key=key,
    )
    gaps = {count: step_gaps(losses, levels=step_levels(generator, count), steps=count) for count in steps}
    if data.distance is None:
        count = steps[0]
        only = StepQuality(gaps=gaps[count], full=0.0, one=max(sum(row[0] for row in gaps[count]), 0.0))
        return Quality(measure=GAP, by_steps=(only,), error=None, samples=0, sets=0)
    cells = [(count, loops) for count in steps for loops in (config.max_loops, 1)]
    labels = np.arange(samples, dtype=np.int32) % config.num_classes
    distances = np.empty((len(cells), sets))
    for index, (count, loops) in enumerate(cells):
        for number in range(sets):
            pixels = generator.sample(
                labels,
                key=jax.random.fold_in(key, number),
                loops=constant_budget(loops, count),
                steps=count,
                guidance=guidance,
                batch_size=min(samples, _LARGEST_BATCH),
            )
            distances[index, number] = data.distance(pixels, labels)
    if not np.isfinite(distances).all():
        raise ValueError(f"`measure_quality`: the {data.measure} of the samples is not finite: {distances.tolist()}.")
    by_steps = []
    for count, (full, one) in zip(steps, distances.mean(axis=1).reshape(-1, 2).tolist(), strict=True):
        # Fewer loops are no gain: where they seem to be, the two differ by their noise.
        full, one = (full, one) if full <= one else ((full + one) / 2,) * 2
        by_steps.append(StepQuality(gaps=gaps[count], full=full, one=one))
    error = None if sets == 1 else float(np.sqrt(distances.var(axis=1, ddof=1).mean() / sets))
    return Quality(measure=data.measure, by_steps=tuple(by_steps), error=error, samples=samples, sets=sets)


def step_levels(generator: Generator, steps: int) -> tuple[float, ...] | None:
    """The level of corruption at every step of a generator's sampler; `None` where its family has none.

    A level does not depend on what the network predicts: it predicts zeros here, and nothing is computed.
    """
    config, sampler = generator.config, generator.sampler(steps=steps, guidance=1.0)
    labels = jnp.zeros(1, jnp.int32)
    asked = sampler.step_inputs(_Zeros(generator.model), labels, loops=1, key=jax.random.key(0))
    levels = [config.level(*(leaf[step, 0] for leaf in asked), labels[0]) for step in range(steps)]
    known = tuple(float(level) for level in levels if level is not None)
    return known if len(known) == steps else None


def step_gaps(losses: LevelLosses, *, levels: Sequence[float] | None, steps: int) -> tuple[tuple[float, ...], ...]:
    """What every step loses with 1, …, L_max loops against L_max, see
    [`measure_quality`][elt_zoo.anytime.measure_quality]. Between the measured levels it is interpolated.

    **Arguments:** `losses`: of the exits, by level; `levels`: of the steps, or `None` if all steps count alike;
    `steps`: how many.
    """
    seen = np.flatnonzero(np.asarray(losses.num_examples))
    loss = np.asarray(losses.loss, np.float64)[seen]
    gaps = loss - loss[:, -1:]
    if levels is None:
        return tuple(tuple((gaps.mean(axis=0) / steps).tolist()) for _ in range(steps))
    measured = np.asarray(losses.level, np.float64)[seen]
    falls = -np.diff([*levels, 0.0])
    weighted = np.stack([falls * np.interp(levels, measured, column) for column in gaps.T], axis=1)
    return tuple(tuple(row) for row in weighted.tolist())


def _even_batch(examples: int) -> int:
    """A batch size that leaves no smaller last batch, which would be compiled as well, if there is one near 64."""
    return next((size for size in range(64, 31, -1) if examples % size == 0), 64)


class _Zeros(eqx.Module):
    """Predicts zeros of the shape that a model predicts."""

    model: ElasticModel

    def __call__(self, *inputs: Array, loops: int) -> Array:
        shapes = jax.eval_shape(functools.partial(BatchedPredict(self.model), loops=loops), *inputs)
        return jnp.zeros(shapes.shape, shapes.dtype)
