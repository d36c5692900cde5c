"""Sampling by the clock on digits: are calls within their time, and are plans as good as the best that it allows?

    python benchmarks/deadlines.py            # about ten minutes on two idle cores

For each bundled model of digits a planner measures the machine. Then, at six budgets from the time of four steps of one
loop to three times the time of the default settings:

- **In time**: the share of 200 calls, one sample each, that are within the budget, and the 95th percentile.
- **Regret**: the digits Fréchet distance of the plan's samples, less that of the best constant setting whose calls take
  no longer: every number of steps that the planner may choose, with 1 to L_max loops. That grid holds the baselines
  "constant loops" and "fewer steps at full loops". Both are means over sampling seeds, of the same noises, with the
  standard deviation of their difference.

Writes `deadlines.csv` and `deadlines.md`.
"""

import argparse
import dataclasses
import time
from pathlib import Path

import jax
import numpy as np
from timing import write_csv

from elt_zoo import Generator, load
from elt_zoo.anytime import Plan, Planner, make_planner
from elt_zoo.metrics import DigitsEvaluator
from elt_zoo.profile import environment
from elt_zoo.sampling import Loops

ROOT = Path(__file__).parents[1]
MODELS = ("digits-dit", "digits-maskgit")
BUDGETS, CALLS, SAMPLES, SEEDS = 6, 200, 1000, 5


def budgets(planner: Planner) -> np.ndarray:
    """Milliseconds, evenly spaced in their logarithm."""
    latency, settings = planner.latency(1), planner.generator.settings
    least = 1e3 * latency.predict(steps=4, loops=4) * latency.tail
    most = 3e3 * latency.predict(steps=settings.steps, loops=settings.steps * planner.generator.config.max_loops)
    return np.geomspace(max(least, 1.001 * planner.frontier()[0].late_milliseconds), most, BUDGETS)


def calls(generator: Generator, milliseconds: float, count: int) -> np.ndarray:
    """The milliseconds that calls took, each of another class and another noise."""
    times = []
    for index in range(count + 1):
        started = time.perf_counter()
        generator.sample([index % 10], milliseconds=milliseconds, key=jax.random.key(index))
        times.append(1e3 * (time.perf_counter() - started))
    return np.asarray(times[1:])


def distances(
    generator: Generator, evaluate: DigitsEvaluator, *, steps: int, loops: Loops, samples: int, seeds: int
) -> np.ndarray:
    """One for each sampling seed."""
    labels = np.arange(samples, dtype=np.int32) % 10
    drawn = (
        generator.sample(labels, steps=steps, loops=loops, batch_size=samples, key=jax.random.key(1000 + seed))
        for seed in range(seeds)
    )
    return np.asarray([evaluate(pixels, labels).frechet_distance for pixels in drawn])


def measure(name: str, count: int, samples: int, seeds: int) -> list[dict]:
    """A row for every budget."""
    generator, evaluate = load(name), DigitsEvaluator()
    started = time.perf_counter()
    planner = make_planner(generator)
    planning = time.perf_counter() - started
    latency, by_clock = planner.latency(1), dataclasses.replace(generator, planner=planner)
    options = {"samples": samples, "seeds": seeds}
    grid = {
        (by_steps.steps, loops): distances(generator, evaluate, steps=by_steps.steps, loops=loops, **options)
        for by_steps in planner.quality.by_steps
        for loops in range(1, generator.config.max_loops + 1)
    }
    known: dict[tuple, np.ndarray] = {}
    rows = []
    for milliseconds in budgets(planner):
        plan: Plan = planner.plan(milliseconds)
        way = (plan.steps, plan.loops)
        if way not in known:
            known[way] = distances(generator, evaluate, steps=plan.steps, loops=plan.budget, **options)
        took = calls(by_clock, milliseconds, count)
        within = {
            cell: found
            for cell, found in grid.items()
            if 1e3 * latency.tail * latency.predict(steps=cell[0], loops=cell[0] * cell[1]) <= milliseconds
        }
        row = {
            "model": name,
            "budget_ms": round(float(milliseconds), 2),
            "plan": f"{plan.steps} steps, {sum(plan.loops)} loops in all",
            "in_time": float(np.mean(took <= milliseconds)),
            "predicted_ms": round(plan.milliseconds, 2),
            "median_ms": round(float(np.median(took)), 2),
            "p95_ms": round(float(np.quantile(took, 0.95)), 2),
            "distance": round(float(known[way].mean()), 3),
            "planning_s": round(planning, 1),
        }
        if within:
            cell = min(within, key=lambda each: within[each].mean())
            regret = known[way] - within[cell]
            row |= {"best_cell": f"{cell[0]} steps × {cell[1]}", "best_distance": round(float(within[cell].mean()), 3)}
            row |= {"regret": round(float(regret.mean()), 3), "spread": round(float(regret.std(ddof=1)), 3)}
        rows.append(row)
        print(row, flush=True)
    return rows


def markdown(rows: list[dict], where: str) -> str:
    """A table, and what it was measured on."""
    header = ["Model", "Budget", "Plan", "Calls in time", "Predicted median", "Median", "95th percentile", "Distance"]
    lines = ["| " + " | ".join([*header, "Best constant setting", "Regret"]) + " |"]
    lines.append("|---" * 10 + "|")
    for row in rows:
        cells = [row["model"], f"{row['budget_ms']:.1f} ms", row["plan"], f"{row['in_time']:.1%}"]
        cells += [f"{row[name]:.1f} ms" for name in ("predicted_ms", "median_ms", "p95_ms")]
        cells.append(f"{row['distance']:.2f}")
        has = "best_cell" in row
        cells.append(f"{row['best_cell']}: {row['best_distance']:.2f}" if has else "none fits")
        cells.append(f"{row['regret']:+.2f} ± {row['spread']:.2f}" if has else "")
        lines.append("| " + " | ".join(cells) + " |")
    planning = {row["model"]: row["planning_s"] for row in rows}
    took = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in planning.items())
    return "\n".join([*lines, "", f"Planning took: {took}. {where}."]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    parser.add_argument("--calls", type=int, default=CALLS)
    parser.add_argument("--samples", type=int, default=SAMPLES)
    parser.add_argument("--seeds", type=int, default=SEEDS, help="sampling seeds of each distance, at least 2")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    arguments = parser.parse_args()
    if arguments.calls < 1 or arguments.samples < 100 or arguments.samples % 10 or arguments.seeds < 2:
        parser.error("--calls must be at least 1, --samples a multiple of 10 and at least 100, and --seeds at least 2.")
    rows = [
        row for name in arguments.models for row in measure(name, arguments.calls, arguments.samples, arguments.seeds)
    ]
    columns = list(dict.fromkeys(name for row in rows for name in row))
    arguments.out.mkdir(parents=True, exist_ok=True)
    write_csv(arguments.out / "deadlines.csv", [{name: row.get(name, "") for name in columns} for row in rows])
    text = markdown(rows, environment())
    (arguments.out / "deadlines.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
