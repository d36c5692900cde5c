"""What the benchmarks share: timing two sides in turn, and saying where."""

import csv
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax

from elt_zoo.profile import environment


def seconds(call: Callable, repeats: int = 1) -> float:
    """Wall time of `repeats` calls, each waited for."""
    start = time.perf_counter()
    for _ in range(repeats):
        jax.block_until_ready(call())
    return time.perf_counter() - start


def compare(ours: Callable, baseline: Callable, *, rounds: int, baseline_repeats: int = 1) -> dict[str, float]:
    """Times two calls in turn and takes their ratio within each round, so that a busy machine hits both.

    The order alternates between rounds: a slow drift of the clock then falls on both sides alike. The first calls,
    which compile, are timed apart; a second pair is not counted.
    """
    compile_ours, compile_baseline = seconds(ours), seconds(baseline)
    seconds(ours)
    seconds(baseline, baseline_repeats)
    pairs = []
    for index in range(rounds):
        if index % 2:
            mine, theirs = seconds(ours), seconds(baseline, baseline_repeats)
        else:
            theirs, mine = seconds(baseline, baseline_repeats), seconds(ours)
        pairs.append((mine, theirs))
    return {
        "rounds": rounds,
        "ours_ms": 1e3 * statistics.median(mine for mine, _ in pairs),
        "baseline_ms": 1e3 * statistics.median(theirs for _, theirs in pairs) / baseline_repeats,
        **spread([mine / theirs for mine, theirs in pairs]),
        "compile_ours_s": compile_ours,
        "compile_baseline_s": compile_baseline,
    }


def spread(ratios: Sequence[float]) -> dict[str, float]:
    """The median of the rounds' ratios, and their quartiles."""
    ordered = sorted(ratios)
    low, high = ordered[len(ordered) // 4], ordered[(3 * len(ordered)) // 4]
    return {"ratio": statistics.median(ordered), "ratio_low": low, "ratio_high": high}


def show(name: str, row: dict[str, float]) -> None:
    """Prints one comparison."""
    quartiles = f"{row['ratio_low']:.3f} to {row['ratio_high']:.3f}"
    print(
        f"{name:34}{row['ours_ms']:12.2f}ms{row['baseline_ms']:12.2f}ms{row['ratio']:8.3f}{quartiles:>18}"
        f"{row['compile_ours_s']:8.1f}s ({row['compile_baseline_s']:.1f}s)",
        flush=True,
    )


def header(ours: str, baseline: str) -> None:
    """Prints the names of the columns of `show`."""
    print(f"{'':34}{ours:>14}{baseline:>14}{'ratio':>8}{'quartiles':>18}{'compile':>10}")


def write_csv(path: Path | None, rows: Sequence[dict[str, Any]], *packages: str) -> None:
    """Writes the rows, each with the environment unless it has one. A row that lacks a column leaves it empty."""
    if path is None:
        return
    names = dict.fromkeys(name for row in rows for name in row)
    where = environment(*packages)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=[name for name in names if name != "environment"] + ["environment"])
        writer.writeheader()
        writer.writerows({"environment": where, **row} for row in rows)


def read_csv(path: Path) -> list[dict[str, str]]:
    """The rows of a table, none if there is no such file."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))
