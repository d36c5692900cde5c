"""How soon a command has its first step or its first picture, without and with the programs that it keeps.

    python benchmarks/start.py
    git worktree add --detach ../before 75c3797  # of the first wave
    python benchmarks/start.py --before ../before

A first start compiles everything; a second finds the programs that the first one kept. Each is a process of its own,
timed from its start to the first line of the training's metrics or to the picture of `elt-zoo sample`, and then ended.
With `--before`, another tree of the project takes turns with this one, where it has the command. Seconds of the
processor stand beside those of the clock: they hardly grow where other work keeps the machine busy, but add up over
threads. The last row is the first step of one model alone, in this tree, which is above all its compilation.

Goals on two cores: a second start takes its first step within 4 seconds, and has its first picture within 3. A model's
first step compiles within 6.
"""

import argparse
import math
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from timing import write_csv

from elt_zoo.recipes import Run, TrainingOptions, digits_task, time_training

TRAIN = "train_imagenet.py on the digits, first step"
ONE_MODEL = "The first step of one of its models, compiled"
SAMPLE = "elt-zoo sample digits-dit, first picture"
HERE = Path(__file__).parents[1]


def training(tree: Path, folder: Path) -> tuple[list[str], Callable[[], bool]]:
    """The command, and whether it has taken its first step."""
    out = folder / "run"
    script = str(tree / "examples" / "train_imagenet.py")

    def stepped() -> bool:
        return any(len(file.read_text().splitlines()) > 1 for file in out.glob("metrics-*.csv"))

    return [sys.executable, script, "--log-every", "1", "--out", str(out)], stepped


def sampling(tree: Path, folder: Path) -> tuple[list[str], Callable[[], bool]]:
    """The command, and whether its first picture is there."""
    out = folder / "picture.png"
    command = [sys.executable, "-m", "elt_zoo", "sample", "--loops", "4", "--out", str(out)]
    return command, out.exists


COMMANDS = {TRAIN: training, SAMPLE: sampling}
NEEDS = {TRAIN: "examples/train_imagenet.py", SAMPLE: "elt_zoo/__main__.py"}


def start(command: list[str], arrived: Callable[[], bool], tree: Path, cache: Path) -> tuple[float, float]:
    """Seconds of the clock and of the processor until it arrives."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("JAX_COMPILATION_CACHE")}
    environment |= {"PYTHONPATH": str(tree), "XDG_CACHE_HOME": str(cache)}
    used, began = _processor_seconds(), time.perf_counter()
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, cwd=tree, env=environment, stdout=log, stderr=subprocess.STDOUT)
        try:
            while not arrived():
                if process.poll() not in (None, 0):
                    log.seek(0)
                    raise RuntimeError(f"{command} failed:\n{log.read().decode()}")
                time.sleep(0.02)
            elapsed = time.perf_counter() - began
        finally:
            process.kill()
            process.wait()
    return elapsed, _processor_seconds() - used


def first_step() -> tuple[float, float]:
    """Seconds of the clock and of the processor that a model of the digits takes for its first step, without what a
    command does before it.
    """
    options = TrainingOptions(compare=False)
    run = Run.of(options, digits_task(options.model("digits-dit"), settings=options.sampler.given))
    used = time.process_time()
    (timing,) = time_training(run)
    return timing.compiling, time.process_time() - used


def _processor_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--before", type=Path, help="another tree of the project to compare with")
    parser.add_argument("--commands", nargs="+", default=list(COMMANDS), choices=COMMANDS)
    parser.add_argument("--csv", type=Path, default=HERE / "benchmarks" / "results" / "start.csv")
    arguments = parser.parse_args()
    trees = {"now": HERE} if arguments.before is None else {"before": arguments.before.resolve(), "now": HERE}
    rows: list[dict[str, Any]] = []
    for name in arguments.commands:
        able = [tree for tree, path in trees.items() if (path / NEEDS[name]).exists()]
        seconds: dict[tuple[str, str], list[tuple[float, float]]] = {}
        for index in range(arguments.rounds):
            for tree in sorted(able, reverse=bool(index % 2)):
                with tempfile.TemporaryDirectory() as cache:
                    for which in ("first", "second"):
                        with tempfile.TemporaryDirectory() as folder:
                            command, arrived = COMMANDS[name](trees[tree], Path(folder))
                            taken = start(command, arrived, trees[tree], Path(cache))
                        seconds.setdefault((which, tree), []).append(taken)
                        print(
                            f"{name}, {which} start, {tree}: {taken[0]:.1f} s, processor {taken[1]:.1f} s", flush=True
                        )
        for which in ("first", "second"):
            row: dict[str, Any] = {"case": f"{name}, {which} start", "rounds": arguments.rounds}
            for tree in trees:
                clock, processor = zip(*seconds.get((which, tree), [(math.nan, math.nan)]), strict=True)
                row |= {f"{tree}_s": statistics.median(clock), f"{tree}_processor_s": statistics.median(processor)}
            rows.append(row)
            print(row)
    clock, processor = zip(*(first_step() for _ in range(arguments.rounds)), strict=True)
    rows.append({"case": ONE_MODEL, "rounds": arguments.rounds})
    rows[-1] |= {f"{tree}_{what}": math.nan for tree in trees for what in ("s", "processor_s")}
    rows[-1] |= {"now_s": statistics.median(clock), "now_processor_s": statistics.median(processor)}
    write_csv(arguments.csv, rows)


if __name__ == "__main__":
    main()
