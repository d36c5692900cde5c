import dataclasses
import functools
from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from ..diagnostics import LevelLosses, held_out_level_losses
from ..generator import Generator
from ..models import BatchedPredict, ElasticModel
from ..sampling import table_budget
from ._allocate import cached_steps, spread_out
from ._data import PlanningData

GAP = "held-out gap to L_max"
"""The measure where there is no distance."""
_LARGEST_BATCH = 250


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepQuality:
    r"""How good samples of one number of steps are, for any loops at the steps that run them: all steps, or every n-th,
    with [steps without loops][elt_zoo.models.CachedPredict] in between.

    The gaps say which loops are best for every total. Distances are known of three of these: one loop at every step
    that runs them, the loops of the least gap, and L_max. In between they are interpolated: from one loop to those of
    the least gap along the gap,

    $$\text{distance} = \text{least} + (\text{one} - \text{least}) \cdot
    \frac{\text{gap} - \text{least gap}}{\text{gap of one loop} - \text{least gap}}$$

    and from there to L_max, where the held-out loss has nothing more to say, along the loops.

    **Fields:**

    - `gaps`: for every step that runs loops, what is lost with 1, …, L_max of them against L_max.
    - `one`, `least`, `full`: the distance with one loop at each of these, with `least_loops`, and with L_max.
    - `every`: n; 1 runs the loops at all steps.
    - `steps`: sampling steps; default as many as run loops.

    **Raises:** `ValueError` for rows of unlike lengths, or other than one for each step that runs loops.
    """

    gaps: tuple[tuple[float, ...], ...]
    one: float
    least: float
    full: float
    every: int = 1
    steps: int = 0

    def __post_init__(self):
        if not self.steps:
            object.__setattr__(self, "steps", len(self.gaps))
        widths = {len(row) for row in self.gaps}
        if len(widths) != 1 or 0 in widths:
            raise ValueError("`StepQuality(gaps)` needs as many numbers for every step, one for each number of loops.")
        if self.every < 1 or len(self.gaps) != -(-self.steps // self.every):
            raise ValueError(
                f"`StepQuality(steps={self.steps}, every={self.every})` needs gaps for as many steps as run loops, and "
                f"has {len(self.gaps)}."
            )

    def at_steps(self, loops: Sequence[int]) -> tuple[int, ...]:
        """Loops of the steps that run them → of all steps, 0 at the others."""
        return spread_out(loops, self.steps, self.every)

    @property
    def least_loops(self) -> tuple[int, ...]:
        """The loops that have the least gap at each step that runs them, of equal ones the fewest."""
        return least_loops(self.gaps)

    def distance(self, gap: float, loops: int) -> tuple[float, float]:
        """The distance with the best loops of a total, and how far it is from one of the two measured ones that it lies
        between to the other, in [0, 1].

        **Arguments:** `gap`: the summed gap of the loops; `loops`: their sum.
        """
        most, fewest = len(self.gaps) * len(self.gaps[0]), sum(self.least_loops)
        if loops > fewest:
            share = (loops - fewest) / (most - fewest)
            return self.least + (self.full - self.least) * share, share
        one, least = sum(row[0] for row in self.gaps), sum(min(row) for row in self.gaps)
        share = min(max((gap - least) / (one - least), 0.0), 1.0) if one > least else 0.0
        return self.least + (self.one - self.least) * share, share


@dataclasses.dataclass(frozen=True, kw_only=True)
class Quality:
    """How good samples are for any steps and loops, as [`measure_quality`][elt_zoo.anytime.measure_quality] finds out.

    **Fields:**

    - `measure`: the name of the distance; lower is better.
    - `by_steps`: for each number of steps, all but the smallest also with loops at every n-th step alone.
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
    every: int = 3,
    guidance: float | None = None,
    samples: int = 500,
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
    training loss over the times that it crosses. A step that runs loops for those after it answers for all of them.

    Distances are then measured with one loop and with L_max, for each number of steps and, but for the smallest, also
    with loops at every n-th step alone; for the largest also with the loops of the least gap. Of the others these are
    taken to be as good as L_max.

    **Arguments:**

    - `generator`: what to measure.
    - `data`: held-out examples, and a distance. Without a distance, the quality is the summed gap, which cannot be
      compared between numbers of steps.
    - `steps`: numbers of sampling steps; one without a distance.
    - `every`: n; 1 leaves the cache out, as does a missing distance.
    - `guidance`: the scale; default as the generator is sampled.
    - `samples`, `sets`: samples of a distance, the classes in turn, and sets of them, each from its own noise.
    - `copies`: how many times each held-out example is corrupted.
    - `seed`: of the corruption and the samples.

    **Returns:** the [`Quality`][elt_zoo.anytime.Quality].

    **Raises:** `ValueError` for counts below 1, examples that do not fit, several numbers of steps without a distance,
    or a distance that is not finite.
    """
    if min(samples, sets, copies, every, len(steps), *steps) < 1:
        raise ValueError(
            f"`measure_quality(steps={tuple(steps)}, every={every}, samples={samples}, sets={sets}, copies={copies})`: "
            "each must be at least 1."
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
    kinds = [(count, 1) for count in steps]
    if data.distance is not None:
        kinds += [(count, every) for count in cached_steps(steps, every)]
    levels = {count: step_levels(generator, count) for count in steps}
    gaps = {}
    for count, apart in kinds:
        at = levels[count]
        gaps[count, apart] = step_gaps(losses, levels=at and at[::apart], steps=-(-count // apart))
    if data.distance is None:
        (only,) = gaps.values()
        one, least = sum(row[0] for row in only), sum(min(row) for row in only)
        by_steps = StepQuality(gaps=only, one=one, least=least, full=0.0)
        return Quality(measure=GAP, by_steps=(by_steps,), error=None, samples=0, sets=0)
    cells = [(kind, (loops,) * len(gaps[kind])) for kind in kinds for loops in (1, config.max_loops)]
    cells += [(kind, least_loops(gaps[kind])) for kind in kinds if kind[0] == max(steps)]
    cells = list(dict.fromkeys(cells))
    budgets = [spread_out(loops, *kind) for kind, loops in cells]
    distances = _distances(generator, data, budgets, guidance=guidance, samples=samples, sets=sets, key=key)
    found, by_kind = dict(zip(cells, distances.mean(axis=1).tolist(), strict=True)), []
    for kind in kinds:
        rows = gaps[kind]
        one, full = (found[kind, (loops,) * len(rows)] for loops in (1, config.max_loops))
        least = found.get((kind, least_loops(rows)), full)
        # The loops of the least gap are no worse than one: where they seem to be, the two differ by their noise.
        one, least = (one, least) if least <= one else ((one + least) / 2,) * 2
        by_kind.append(StepQuality(gaps=rows, one=one, least=least, full=full, every=kind[1], steps=kind[0]))
    error = None if sets == 1 else float(np.sqrt(distances.var(axis=1, ddof=1).mean() / sets))
    return Quality(measure=data.measure, by_steps=tuple(by_kind), error=error, samples=samples, sets=sets)


def _distances(
    generator: Generator,
    data: PlanningData,
    budgets: Sequence[Sequence[int]],
    *,
    guidance: float | None,
    samples: int,
    sets: int,
    key: PRNGKeyArray,
) -> Float[np.ndarray, "budgets sets"]:
    """Of samples with the loops of each step that each budget says, from the same noises."""
    assert data.distance is not None
    labels = np.arange(samples, dtype=np.int32) % generator.config.num_classes
    distances = np.empty((len(budgets), sets))
    for index, loops in enumerate(budgets):
        for number in range(sets):
            pixels = generator.sample(
                labels,
                key=jax.random.fold_in(key, number),
                loops=table_budget(loops),
                steps=len(loops),
                guidance=guidance,
                batch_size=min(samples, _LARGEST_BATCH),
            )
            distances[index, number] = data.distance(pixels, labels)
    if not np.isfinite(distances).all():
        raise ValueError(f"`measure_quality`: the {data.measure} of the samples is not finite: {distances.tolist()}.")
    return distances


def least_loops(gaps: Sequence[Sequence[float]]) -> tuple[int, ...]:
    """The loops of each step that have the least gap, of equal ones the fewest."""
    return tuple(1 + int(np.argmin(row)) for row in gaps)


def step_levels(generator: Generator, steps: int) -> tuple[float, ...] | None:
    """The level of corruption at every step of a generator's sampler; `None` where its family has none.

    A level does not depend on what the network predicts: it predicts zeros here, and nothing is computed.
    """
    config, sampler = generator.config, generator.sampler(steps=steps, guidance=1.0)
    labels = jnp.zeros(1, jnp.int32)

    # It runs once, so that the program had better be compiled fast than be fast.
    @functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
    def ask() -> list[Array | None]:
        asked = sampler.step_inputs(_Zeros(generator.model), labels, loops=1, key=jax.random.key(0))
        return [config.level(*(leaf[step, 0] for leaf in asked), labels[0]) for step in range(steps)]

    known = tuple(float(level) for level in ask() if level is not None)
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
