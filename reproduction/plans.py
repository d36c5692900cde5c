"""What plans by the clock are worth beside simpler ways to save the same time.

    python -m reproduction.plans
    python -m reproduction.plans --models mnist-dit --mnist /data/mnist

For bundled models, a planner measures the machine and the model. Its rivals are

- constant loops: the same loops at every step;
- fewer steps: all loops at fewer steps;
- a cache: only every second or third step runs its loops (`CachedPredict`);
- a warm start: the loops start half way to what they added at the last step.

For each of them, in all sizes, the planner says what it would do in the time that it predicts for that one. Both are
sampled from the same noises and timed in turn; the warm start is not timed, its distances say enough. A difference of
distances is given over sampling seeds of one trained model. Writes `plans-<model>.csv`, and `plans.md` and `plans.png`
of all that are there.
"""

import argparse
import csv
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator
from tqdm import tqdm

from elt_zoo import ElasticModel, Generator, load
from elt_zoo.anytime import PlanningData, make_planner
from elt_zoo.profile import environment
from elt_zoo.sampling import table_budget

from ._data import CLASSES, Judge, digits, mnist
from ._options import ROOT
from ._results import Spread

MODELS = ("digits-dit", "digits-maskgit", "mnist-dit")
CONSTANT, FEWER, CACHE, WARM, PLAN = "constant loops", "fewer steps", "cache", "warm start", "plan"
_COLUMNS = ("model", "way", "steps", "loops", "milliseconds", "seed", "distance")
CALLS = 60


class Way(NamedTuple):
    """One way to sample: the loops of each step; `warm`: the share of what the last loops added that the next start
    from.
    """

    name: str
    loops: tuple[int, ...]
    warm: float = 0.0


class WarmPredict(eqx.Module):
    """A model whose loops start from the tokens and a share of what the loops of the step before added to theirs."""

    model: ElasticModel
    share: float

    def __call__(self, *inputs: Any, loops: Any) -> Array:
        return self.recall(self.blank(*inputs), *inputs, loops=loops)[0]

    def blank(self, *inputs: Any) -> Float[Array, "batch tokens dim"]:
        shape = jax.eval_shape(lambda *inputs: jax.vmap(self.model.head.embed)(*inputs)[0], *inputs)
        return jnp.zeros(shape.shape, shape.dtype)

    def recall(self, memory: Array, *inputs: Any, loops: Any) -> tuple[Array, Array]:
        def one(added: Array, *example: Any) -> tuple[Array, Array]:
            tokens, conditioning = self.model.head.embed(*example)
            state = self.model.trunk(tokens + self.share * added, conditioning, loops=loops)
            return self.model.head(state, conditioning), state - tokens

        return jax.vmap(one)(memory, *inputs)


def rivals(steps: Sequence[int], max_loops: int) -> Iterator[Way]:
    """Every size of every rival, of so many steps at most."""
    for count in steps:
        for loops in range(1, max_loops + 1):
            yield Way(FEWER if loops == max_loops else CONSTANT, (loops,) * count)
            for every in (2, 3):
                yield Way(CACHE, tuple(0 if step % every else loops for step in range(count)))
    yield from (Way(WARM, (loops,) * max(steps), warm=0.5) for loops in range(1, max_loops + 1))


def drawn(generator: Generator, way: Way, labels: np.ndarray, key: Array) -> np.ndarray:
    """Samples by one way."""
    budget = table_budget(way.loops)
    if not way.warm:
        return generator.sample(labels, loops=budget, steps=len(way.loops), batch_size=len(labels), key=key)
    sampler, predict = generator.sampler(steps=len(way.loops)), WarmPredict(generator.model, way.warm)
    samples = sampler(predict, jnp.asarray(labels), loops=budget, key=jax.random.fold_in(key, 0))
    return np.asarray(jax.jit(jax.vmap(generator.decode))(samples))


def distances(generator: Generator, way: Way, judge: Judge, *, samples: int, seeds: int) -> tuple[float, ...]:
    """One for each sampling seed."""
    labels = np.arange(samples, dtype=np.int32) % CLASSES
    keys = [jax.random.key(1000 + seed) for seed in range(seeds)]
    return tuple(judge(drawn(generator, way, labels, key), labels)["distance"] for key in keys)


def times(generator: Generator, ways: Sequence[Way], *, calls: int = CALLS) -> list[float]:
    """The median milliseconds of calls that sample one picture. The ways take turns of five calls."""
    took: list[list[float]] = [[] for _ in ways]
    labels = np.zeros(1, np.int32)
    for turn in range(-1, calls // 5):
        for way, mine in zip(ways, took, strict=True):
            for call in range(5):
                started = time.perf_counter()
                drawn(generator, way, labels, jax.random.key(call))
                if turn >= 0:  # those before it compile
                    mine.append(1e3 * (time.perf_counter() - started))
    return [float(np.median(mine)) for mine in took]


def measure(name: str, generator: Generator, judge: Judge, data: PlanningData, *, samples: int, seeds: int) -> list:
    """Rows of the CSV: every rival, and the plan in its time."""
    planner = make_planner(generator, data)
    latency, fastest = planner.latency(1), planner.frontier(headroom=1.0)[0].milliseconds
    known: dict[Way, tuple[float, ...]] = {}
    pairs = []
    for rival in rivals(sorted({each.steps for each in planner.quality.by_steps}), generator.config.max_loops):
        budget = 1e3 * latency.predict(steps=len(rival.loops), loops=sum(rival.loops))
        plan = planner.plan(max(budget, fastest) * (1.0 + 1e-9), headroom=1.0)
        pairs.append((rival, Way(PLAN, plan.loops)))
    rows = []
    for pair in tqdm(pairs, desc=name):
        rival, _ = pair
        for way in pair:
            if way not in known:
                known[way] = distances(generator, way, judge, samples=samples, seeds=seeds)
        took = ("", "") if rival.warm else tuple(f"{each:.4g}" for each in times(generator, pair))
        for way, milliseconds in zip(pair, took, strict=True):
            loops = " ".join(map(str, way.loops))
            rows += [
                (name, way.name, len(way.loops), loops, milliseconds, seed, f"{distance:.6g}")
                for seed, distance in enumerate(known[way])
            ]
    return rows


class Comparison(NamedTuple):
    """A rival and the plan in its time."""

    model: str
    rival: str
    milliseconds: tuple[float, ...] | None
    """Of the rival, of the plan; `None` if they were not timed."""
    distances: tuple[np.ndarray, np.ndarray]

    @property
    def ahead(self) -> Spread:
        """By how much the plan's distance is lower."""
        return Spread.of(self.distances[0] - self.distances[1])


def comparisons(rows: Sequence[Mapping[str, str]]) -> list[Comparison]:
    """From the rows of a CSV: for each rival, and then for its plan, those of its seeds."""
    seeds = 1 + max(int(row["seed"]) for row in rows)
    found = []
    for start in range(0, len(rows), 2 * seeds):
        rival, plan = rows[start : start + seeds], rows[start + seeds : start + 2 * seeds]
        found.append(
            Comparison(
                rival[0]["model"],
                rival[0]["way"],
                None
                if rival[0]["milliseconds"] == ""
                else tuple(float(each[0]["milliseconds"]) for each in (rival, plan)),
                (
                    np.array([float(row["distance"]) for row in rival]),
                    np.array([float(row["distance"]) for row in plan]),
                ),
            )
        )
    return found


def table(found: Sequence[Comparison]) -> str:
    """For each model and rival, how often the plan is better or worse beyond the spread, as Markdown."""
    lines = [
        "| Model | Rival | Sizes | Plan better | Level | Plan worse | Closest to beating the plan |",
        "|" + "---|" * 7,
    ]
    for model, rival in dict.fromkeys((each.model, each.rival) for each in found):
        mine = [each for each in found if (each.model, each.rival) == (model, rival)]
        better = sum(each.ahead.mean > each.ahead.deviation for each in mine)
        worse = sum(-each.ahead.mean > each.ahead.deviation for each in mine)
        closest = min(mine, key=lambda each: each.ahead.mean)
        theirs, ours = (Spread.of(each).text(2) for each in closest.distances)
        took = [""] * 2 if closest.milliseconds is None else [f" in {each:.2g} ms" for each in closest.milliseconds]
        when = f"{theirs}{took[0]}, plan {ours}{took[1]}"
        lines.append(
            f"| {model} | {rival} | {len(mine)} | {better} | {len(mine) - better - worse} | {worse} | {when} |"
        )
    return "\n".join(lines) + "\n"


def plot(path: Path, found: Sequence[Comparison]) -> None:
    """Distance against measured time, a panel for each model."""
    models = list(dict.fromkeys(each.model for each in found))
    figure = Figure(figsize=(4.6 * len(models), 4.0), layout="constrained")
    for axes, model in zip(np.ravel(figure.subplots(1, len(models))), models, strict=True):
        timed = [(each, each.milliseconds) for each in found if each.model == model and each.milliseconds is not None]
        for rival, marker in ((CONSTANT, "o"), (FEWER, "s"), (CACHE, "D")):
            points = [(took[0], each.distances[0]) for each, took in timed if each.rival == rival]
            _points(axes, points, {"fmt": marker, "markersize": 5, "label": rival, "alpha": 0.7})
        # A plan that answers to several rivals was timed with each.
        plans: dict[tuple[float, ...], tuple[list[float], np.ndarray]] = {}
        for each, took in timed:
            plans.setdefault(tuple(each.distances[1]), ([], each.distances[1]))[0].append(took[1])
        points = sorted(
            ((float(np.median(took)), distances) for took, distances in plans.values()), key=lambda at: at[0]
        )
        _points(axes, points, {"fmt": "k.-", "linewidth": 1, "label": PLAN, "zorder": 3})
        axes.set(title=model, xlabel="milliseconds per sample", xscale="log", yscale="log")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(LogLocator(subs=(1.0, 1.5, 2.0, 3.0, 5.0, 7.0)))
            axis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.minorticks_off()
    figure.axes[0].set_ylabel("distance, lower is better")
    figure.axes[0].legend(fontsize=8)
    figure.savefig(path, dpi=120)


def _points(axes: Any, points: Sequence[tuple[float, np.ndarray]], style: dict[str, Any]) -> None:
    spreads = [Spread.of(each) for _, each in points]
    means, deviations = ([getattr(each, name) for each in spreads] for name in ("mean", "deviation"))
    axes.errorbar([at for at, _ in points], means, deviations, capsize=2, **style)


def planning_data(generator: Generator, name: str, folder: Path | None) -> tuple[PlanningData, Judge]:
    """What a model's planner judges by: here the same as what it is judged by."""
    data = mnist(folder) if name.startswith("mnist") and folder is not None else digits()
    judge = Judge(data)
    part = data.heldout
    if generator.tokenizer is not None:
        part = part._replace(examples=np.asarray(jax.jit(jax.vmap(generator.tokenizer.encode))(part.examples)))

    def distance(pixels: np.ndarray, labels: np.ndarray) -> float:
        return judge(pixels, labels)["distance"]

    return PlanningData(examples=part.examples, labels=part.labels, distance=distance, measure="distance"), judge


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS[:2])
    parser.add_argument("--mnist", type=Path, help="the folder of t10k-images-idx3-ubyte.gz and its labels")
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--seeds", type=int, default=5, help="sampling seeds, at least 2")
    parser.add_argument(
        "--report", action="store_true", help="measure nothing: table and plot of the files that are there"
    )
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "reproduction")
    arguments = parser.parse_args()
    if arguments.samples < 100 or arguments.samples % CLASSES or arguments.seeds < 2:
        parser.error("--samples must be a multiple of 10 and at least 100, and --seeds at least 2.")
    if "mnist-dit" in arguments.models and arguments.mnist is None and not arguments.report:
        parser.error("--models mnist-dit needs --mnist, where it lies.")
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name in () if arguments.report else arguments.models:
        generator = load(name)
        data, judge = planning_data(generator, name, arguments.mnist)
        rows = measure(name, generator, judge, data, samples=arguments.samples, seeds=arguments.seeds)
        with (arguments.out / f"plans-{name}.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerows([_COLUMNS, *rows])
    found: list[Comparison] = []
    for name in MODELS:
        path = arguments.out / f"plans-{name}.csv"
        if path.exists():
            with path.open(newline="") as file:
                found += comparisons(list(csv.DictReader(file)))
    if not found:
        raise FileNotFoundError(f"{arguments.out} holds no plans-<model>.csv to report: leave `--report` out.")
    note = f"Over {len(found[0].distances[0])} sampling seeds of one trained model. {environment()}."
    text = f"{table(found)}\n{note}\n"
    (arguments.out / "plans.md").write_text(text)
    plot(arguments.out / "plans.png", found)
    print(text)


if __name__ == "__main__":
    try:
        main()
    except (ValueError, FileNotFoundError) as error:
        raise SystemExit(f"error: {error}") from None
