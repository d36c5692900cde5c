"""The paper's comparisons repeated in the small, over seeds: on the digits, and on MNIST where you have it.

    python -m reproduction                           # digits alone
    python -m reproduction --mnist /data/mnist       # and MNIST's 10,000 test images (t10k-*.gz)

(a) ILSD beside vanilla looping, deep supervision and random depth, at every exit, in both families; (b) N×L at equal
compute beside models of unique layers, down to a single layer; (c) schedules of λ; (d) loops past L_max; (e) how fast
models of equal compute converge. (d) and (e) are measured on the models of (a) and (b).

Every run is one process on one core, and as many as there are cores run at a time: under two hours on two cores, MNIST
included. A run that is in the folder already is not repeated, so the command goes on where it was stopped. Writes
`exits.csv`, `curves.csv`, the tables as Markdown and the plots, with what they were measured on.
"""

import argparse
import dataclasses
import json
import multiprocessing
import os
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import numpy as np
from tqdm import tqdm

from elt_zoo.profile import environment
from elt_zoo.storage import write_json

from ._cases import FAMILIES, Case, all_cases, exit_cases
from ._data import CLASSES, digits, mnist
from ._report import plot_samples, save_report
from ._results import read_results
from ._train import Settings, load, run

ROOT = Path(__file__).parents[1]
PICTURES = "pictures.npz"


def result_path(runs: Path, case: Case, seed: int) -> Path:
    return runs / f"{case.name}-seed{seed}" / "result.json"


def train_and_save(runs: Path, case: Case, seed: int, settings: Settings) -> str:
    """Runs one case, in a process of its own, and leaves its figures and pictures."""
    path = result_path(runs, case, seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    figures, pictures = run(case, seed, settings)
    loops, images = list(pictures), np.stack(list(pictures.values()))
    np.savez_compressed(path.parent / PICTURES, loops=loops, images=images)
    record = {"case": dataclasses.asdict(case), "seed": seed, "settings": dataclasses.asdict(settings)}
    record |= {"environment": environment(), "figures": figures}
    write_json(path, record)  # whole or not at all: the file says that the run is finished
    return path.parent.name


def use_one_core(cores: "multiprocessing.Queue[int]") -> None:
    """Each worker process keeps to one core; JAX makes as many threads as it may use cores."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {cores.get()})


def check_settings(paths: Iterable[Path], settings: Settings) -> None:
    """Refuses runs of other settings: they would not compare."""
    for path in paths:
        before = json.loads(path.read_text())["settings"]
        now = dataclasses.asdict(settings) | {"mnist": before["mnist"]}  # a place, which may differ
        differences = [f"{name} {before.get(name)} → {now[name]}" for name in now if before.get(name) != now[name]]
        if differences:
            raise SystemExit(
                f"error: {path.parent} was run with other settings ({', '.join(differences)}). Give another `--runs`."
            )


def main() -> None:
    defaults = Settings()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mnist", type=Path, help="the folder of t10k-images-idx3-ubyte.gz and its labels")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--mnist-seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--steps", type=int, default=defaults.steps)
    parser.add_argument("--samples", type=int, default=defaults.samples, help="generated images at each loop count")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="runs at a time")
    parser.add_argument("--runs", type=Path, default=Path("runs/reproduce"))
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "reproduction")
    arguments = parser.parse_args()
    if arguments.steps < 1 or arguments.samples < 100 or arguments.samples % CLASSES:
        parser.error(
            f"--steps {arguments.steps} must be at least 1, and --samples {arguments.samples} at least 100 and a "
            f"multiple of the {CLASSES} classes."
        )
    folder = None if arguments.mnist is None else str(arguments.mnist.resolve())
    settings = Settings(mnist=folder, steps=arguments.steps, samples=arguments.samples)
    sets = {"digits": (digits(), arguments.seeds)}
    if arguments.mnist is not None:
        sets["MNIST"] = (mnist(arguments.mnist), arguments.mnist_seeds)
    wanted = [(case, seed) for name, (_, seeds) in sets.items() for seed in seeds for case in all_cases(name)]
    paths = [result_path(arguments.runs, case, seed) for case, seed in wanted]
    check_settings([path for path in paths if path.exists()], settings)
    missing = [pair for pair, path in zip(wanted, paths, strict=True) if not path.exists()]
    # The longest first, so that no core is left with one of them at the end.
    missing.sort(key=lambda pair: -pair[0].cost)
    context = multiprocessing.get_context("spawn")
    cores = context.Queue()
    allowed = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(arguments.jobs))
    for job in range(arguments.jobs):
        cores.put(allowed[job % len(allowed)])
    with ProcessPoolExecutor(arguments.jobs, mp_context=context, initializer=use_one_core, initargs=(cores,)) as pool:
        jobs = [pool.submit(train_and_save, arguments.runs, case, seed, settings) for case, seed in missing]
        try:
            for job in tqdm(as_completed(jobs), total=len(jobs), unit="run"):
                tqdm.write(job.result())
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    report(arguments.out, arguments.runs, paths, settings, list(sets))


def report(out: Path, runs: Path, paths: list[Path], settings: Settings, sets: list[str]) -> None:
    """Gathers the runs into tables and plots."""
    out.mkdir(parents=True, exist_ok=True)
    results = read_results(paths)
    results.save(out)
    floors = {}
    for name in sets:
        data, judge = load(name, settings.mnist)
        floors[name] = judge.floor(data)
    where = " and ".join(dict.fromkeys(json.loads(path.read_text())["environment"] for path in paths))
    counts = [f"{len(results.seeds(case))} on {name}" for name in sets for case in all_cases(name)[:1]]
    note = (
        f"Mean ± standard deviation over seeds ({', '.join(counts)}); {settings.steps} steps, width {settings.dim}; "
        f"{settings.samples:,} samples for every distance. {where}."
    )
    save_report(out, results, floors, note)
    with_pictures = {
        case: result_path(runs, case, results.seeds(case)[0]).with_name(PICTURES)
        for name in sets
        for family in FAMILIES
        for case in exit_cases(name, family)[:2]
    }
    plot_samples(out / "samples.png", with_pictures)
    print(f"Tables and plots are in {out}.")
