"""Runs cases and seeds, as many at a time as there are cores, and leaves each in a folder of its own."""

import dataclasses
import json
import multiprocessing
import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from elt_zoo.generator import Generator
from elt_zoo.generator import save as save_generator
from elt_zoo.profile import environment
from elt_zoo.storage import write_json

from ._cases import Case
from ._train import Run, Settings, run, run_together

PICTURES = "pictures.npz"
MODEL = "model"


def result_path(runs: Path, case: Case, seed: int) -> Path:
    return runs / f"{case.name}-seed{seed}" / "result.json"


def train_and_save(runs: Path, case: Case, seed: int, settings: Settings) -> str:
    """Runs one case, in a process of its own, and leaves its figures and pictures."""
    return save(runs, case, seed, settings, run(case, seed, settings))


def train_and_save_together(runs: Path, cases: Sequence[Case], seeds: Sequence[int], settings: Settings) -> str:
    """The same of one model at several rates, from several seeds."""
    return ", ".join(
        save(runs, case, seed, settings, done) for (case, seed), done in run_together(cases, seeds, settings).items()
    )


def save(runs: Path, case: Case, seed: int, settings: Settings, done: Run) -> str:
    """Leaves a run in its folder: pictures and the model if its samples were judged, and the figures."""
    path = result_path(runs, case, seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    if done.pictures:
        loops, images = list(done.pictures), np.stack(list(done.pictures.values()))
        np.savez_compressed(path.parent / PICTURES, loops=loops, images=images)
    record = {"case": dataclasses.asdict(case), "seed": seed, "settings": dataclasses.asdict(settings)}
    record |= {"environment": environment(), "figures": done.figures}
    if done.pictures:
        save_generator(path.parent / MODEL, described(done.generator, record), overwrite=True)
    write_json(path, record)  # whole or not at all: the file says that the run is finished
    return path.parent.name


def described(generator: Generator, record: Mapping[str, Any]) -> Generator:
    """With what its card says: how it was trained, and how good every exit is."""
    case, settings, figures = record["case"], record["settings"], record["figures"]
    losses = list(figures["curve"].values())[-1]
    quality = {int(loops): scores for loops, scores in figures["quality"].items()}
    rows = [{"loops": loops, "heldout_loss": loss} | quality.get(loops, {}) for loops, loss in enumerate(losses, 1)]
    height, width, _ = generator.pixels.shape
    training = {name: value for name, value in (settings | case).items() if name not in ("mnist", "cifar10")}
    protocol = {
        "distance": "classifier Fréchet distance of `python -m reproduction.loops`",
        "environment": record["environment"],
    }
    about = {"data": f"{case['data']}, {height} × {width} pixels", "objective": case["objective"], "results": rows}
    about |= {"protocol": protocol, "training": training | {"seed": record["seed"]}}
    return dataclasses.replace(generator, metadata=about)


def use_one_core(cores: "multiprocessing.Queue[int]") -> None:
    """Each worker process keeps to one core; JAX makes as many threads as it may use cores."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {cores.get()})


def check_settings(paths: Iterable[Path], settings: Settings) -> None:
    """Refuses runs of other settings: they would not compare."""
    for path in paths:
        before = json.loads(path.read_text())["settings"]
        now = dataclasses.asdict(settings)
        for place in ("mnist", "cifar10"):  # which may differ
            now[place] = before.get(place)
        differences = [f"{name} {before.get(name)} → {now[name]}" for name in now if before.get(name) != now[name]]
        if differences:
            raise SystemExit(
                f"error: {path.parent} was run with other settings ({', '.join(differences)}). Give another `--runs`."
            )


def run_all(runs: Path, wanted: Sequence[tuple[Case, int]], settings: Settings, *, jobs: int) -> list[Path]:
    """Runs what is not in the folder yet, each on one core, and returns the files of all results."""
    paths = [result_path(runs, case, seed) for case, seed in wanted]
    check_settings([path for path in paths if path.exists()], settings)
    missing = [pair for pair, path in zip(wanted, paths, strict=True) if not path.exists()]
    # The longest first, so that no core is left with one of them at the end.
    missing.sort(key=lambda pair: -pair[0].cost)
    context = multiprocessing.get_context("spawn")
    cores = context.Queue()
    allowed = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(jobs))
    for job in range(jobs):
        cores.put(allowed[job % len(allowed)])
    with ProcessPoolExecutor(jobs, mp_context=context, initializer=use_one_core, initargs=(cores,)) as pool:
        _wait(pool, [pool.submit(train_and_save, runs, case, seed, settings) for case, seed in missing])
    return paths


def run_all_together(
    runs: Path, models: Sequence[Sequence[Case]], seeds: Sequence[int], settings: Settings, *, jobs: int
) -> list[Path]:
    """The same for models at several rates, each with all its rates and seeds in one program, in their order. A model
    of which one run is missing is trained as a whole.
    """
    paths = [result_path(runs, case, seed) for cases in models for case in cases for seed in seeds]
    check_settings([path for path in paths if path.exists()], settings)
    missing = [
        cases for cases in models if not all(result_path(runs, case, seed).exists() for case in cases for seed in seeds)
    ]
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        _wait(pool, [pool.submit(train_and_save_together, runs, cases, seeds, settings) for cases in missing])
    return paths


def _wait(pool: ProcessPoolExecutor, running: Sequence[Future[str]]) -> None:
    try:
        for job in tqdm(as_completed(running), total=len(running), unit="run"):
            tqdm.write(job.result())
    except BaseException:
        pool.shutdown(cancel_futures=True)
        raise
