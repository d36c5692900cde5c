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
import json
from pathlib import Path

from ._cases import FAMILIES, all_cases, exit_cases
from ._data import digits, mnist
from ._options import add_options, settings_of
from ._pool import PICTURES, result_path, run_all
from ._report import plot_samples, save_report
from ._results import read_results
from ._train import Settings, load


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser, runs="runs/reproduce")
    parser.add_argument("--mnist-seeds", type=int, nargs="+", default=[0, 1])
    arguments = parser.parse_args()
    settings = settings_of(parser, arguments)
    sets = {"digits": (digits(), arguments.seeds)}
    if arguments.mnist is not None:
        sets["MNIST"] = (mnist(arguments.mnist), arguments.mnist_seeds)
    wanted = [(case, seed) for name, (_, seeds) in sets.items() for seed in seeds for case in all_cases(name)]
    paths = run_all(arguments.runs, wanted, settings, jobs=arguments.jobs)
    report(arguments.out, arguments.runs, paths, settings, list(sets))


def report(out: Path, runs: Path, paths: list[Path], settings: Settings, sets: list[str]) -> None:
    """Gathers the runs into tables and plots."""
    out.mkdir(parents=True, exist_ok=True)
    results = read_results(paths)
    results.save(out)
    floors = {}
    for name in sets:
        data, judge = load(name, settings.place(name))
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
