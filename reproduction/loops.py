"""What loops are worth: looped models beside the same layers without loops and beside unique depth.

    python -m reproduction.loops --data digits
    python -m reproduction.loops --data digits --steps 4000 --rates 0.008 --models "2 unique layers" "the paper's"
    python -m reproduction.loops --data MNIST --mnist /data/mnist
    python -m reproduction.loops --data CIFAR-10 --cifar10 /data/cifar-10-binary.tar.gz --dim 128 --together

Every model is trained at each learning rate on the first seed, and on the other seeds at the rate that was best for
it, since one rate for all favours some. `--report` takes, of the rates with the most seeds, that of the lowest mean.
The looped models have two or four unique layers and an effective depth of eight. Each option of the trunk stands alone
and with the others; so do, on top of "re-injected × 1/2", the options of its layers. Muon moves the matrices of all
models' trunks, unless `--optimizer adamw` says otherwise. With `--together`, all rates and seeds of a model train in
one program: for a GPU. Writes `loops-<data>-<optimizer>-<steps>.md` and `.csv`, with `--family maskgit`
`loops-<data>-masked-…`. `--report` trains nothing and writes them from the runs that are there. `--add` keeps the runs
of the files in `--out` and adds others to them: models, rates or seeds, of the same settings.

φ is the exponent with which L loops of N layers are worth N·L^φ unique ones. It is read off the losses of models of 1,
2, 4 and 8 unique layers, interpolated over the logarithm of their number and clipped to its range; layers before and
after the loops count as themselves. A loop that adds nothing has φ = 0, one as good as unique layers φ = 1.
"""

import argparse
import csv
import dataclasses
import itertools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from elt_zoo.training import OptimizerKind

from ._cases import FAMILIES, Case
from ._options import add_options, settings_of
from ._pool import check_settings, result_path, run_all, run_all_together
from ._results import Results, Spread, read_results

RATES = (0.004, 0.008, 0.016)
UNIQUE = (1, 2, 4, 8)
_COLUMNS = ("model", "case", "learning_rate", "seed", "exit", "heldout_loss", "train_loss", "distance")
_ONLY_IN_TABLES = ("Parameters", "distance, L = 1", "distance, L_max")
"""Columns that the CSV files of earlier studies cannot fill."""


def unique_cases(data: str, family: str) -> dict[str, Case]:
    """Models of unique layers."""
    return {f"{each} unique layers": Case(data, family, each, 1, "vanilla") for each in UNIQUE}


def looped_cases(data: str, family: str) -> dict[str, Case]:
    """Models of effective depth 8, each option alone and some together."""
    plain, around = Case(data, family, 2, 4), Case(data, family, 2, 3, prelude=1, coda=1)
    four = Case(data, family, 4, 2)
    lighter, light_around = (
        dataclasses.replace(plain, student_weight=0.25),
        dataclasses.replace(around, student_weight=0.25),
    )
    return {
        "the paper's": plain,
        "the paper's, vanilla": dataclasses.replace(plain, objective="vanilla"),
        "the paper's, student × 1/4": lighter,
        "the paper's, re-injected × 1/2": dataclasses.replace(plain, reinjection=0.5),
        "the paper's, four layers": four,
        "the paper's, four layers, student × 1/4": dataclasses.replace(four, student_weight=0.25),
        "branches × 1/2": dataclasses.replace(lighter, residual_scale=0.5),
        "branches × 1/4": dataclasses.replace(lighter, residual_scale=0.25),
        "re-injected × 1/2": dataclasses.replace(lighter, reinjection=0.5),
        "re-injected × 1/4": dataclasses.replace(lighter, reinjection=0.25),
        "re-injected × 3/4": dataclasses.replace(lighter, reinjection=0.75),
        "re-injected × 1/2, branches × 1/2": dataclasses.replace(lighter, reinjection=0.5, residual_scale=0.5),
        "grown from 2 loops": dataclasses.replace(lighter, grow_from=2),
        "re-injected × 1/2, grown from 2 loops": dataclasses.replace(lighter, reinjection=0.5, grow_from=2),
        "prelude and coda": light_around,
        "prelude and coda, branches × 1/2": dataclasses.replace(light_around, residual_scale=0.5),
        "prelude and coda, re-injected × 1/2": dataclasses.replace(light_around, reinjection=0.5),
    }


def layer_cases(data: str, family: str) -> dict[str, Case]:
    """Models whose layers have other parts than the paper's, and those layers without loops: in diffusion each part
    alone and together, on top of re-injection; in masked generation adaLN, which conditions the layers by the class.
    """
    if family == "maskgit":
        looped = Case(data, family, 2, 4, layers=("ada_ln",), student_weight=0.25)
        return {
            "adaLN, 2 unique layers": Case(data, family, 2, 1, "vanilla", layers=("ada_ln",)),
            "adaLN": looped,
            "adaLN, re-injected × 1/2": dataclasses.replace(looped, reinjection=0.5),
        }
    options = {"RMS norm": "rms_norm", "QK norm": "qk_norm", "rotary": "rotary", "SwiGLU": "swiglu"}
    together, every = "RMS, QK, rotary, SwiGLU", tuple(options.values())
    looped, unlooped = looped_cases(data, family)["re-injected × 1/2"], unique_cases(data, family)["2 unique layers"]
    return {
        **{name: dataclasses.replace(looped, layers=(option,)) for name, option in options.items()},
        together: dataclasses.replace(looped, layers=every),
        f"2 unique layers, {together}": dataclasses.replace(unlooped, layers=every),
    }


def all_models(data: str, optimizer: str, family: str = "dit") -> dict[str, Case]:
    """Every model of the study by its name."""
    models = unique_cases(data, family) | looped_cases(data, family) | layer_cases(data, family)
    return {name: dataclasses.replace(case, optimizer=optimizer) for name, case in models.items()}


def at_rates(case: Case, rates: Sequence[float]) -> list[Case]:
    return [dataclasses.replace(case, learning_rate=rate) for rate in rates]


def best(results: Results, case: Case, rates: Sequence[float]) -> Case:
    """The case at the rate that has the lowest mean loss at L_max, of the rates that were tried on the most seeds.

    **Raises:** `ValueError` if there is no run of it.
    """
    tried = [each for each in at_rates(case, rates) if each in results]
    if not tried:
        named = ", ".join(f"{rate:g}" for rate in rates)
        raise ValueError(
            f"There is no run of {case.name} on these seeds at the rates {named}. Train it first: leave `--report` out."
        )
    most = max(len(results.seeds(each)) for each in tried)
    return min(
        (each for each in tried if len(results.seeds(each)) == most),
        key=lambda each: Spread.of(results.last_exit(each)).mean,
    )


def wanted_models(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> dict[str, Case]:
    """The models that `--models` names, or all; an error of the parser for a name that is unknown, or for data whose
    place was not given.
    """
    place = {"MNIST": arguments.mnist, "CIFAR-10": arguments.cifar10}.get(arguments.data)
    if arguments.data != "digits" and place is None:
        parser.error(f"--data {arguments.data} needs --{arguments.data.lower().replace('-', '')}, where it lies.")
    models = all_models(arguments.data, str(arguments.optimizer), arguments.family)
    if unknown := set(arguments.models or ()) - set(models):
        parser.error(f"--models {', '.join(map(repr, sorted(unknown)))}: known are {', '.join(map(repr, models))}.")
    return {name: models[name] for name in arguments.models or models}


def stem_of(arguments: argparse.Namespace) -> str:
    """The data and the family in the names of files."""
    return arguments.data.lower() + ("-masked" if arguments.family == "maskgit" else "")


def edges(results: Results, chosen: Mapping[str, Case], rates: Sequence[float]) -> str:
    """Says which models may have a better rate than the several that were tried for them."""
    names = []
    for name, case in chosen.items():
        tried = [each.learning_rate for each in at_rates(case, sorted(rates)) if each in results]
        if len(tried) > 1 and case.learning_rate in (tried[0], tried[-1]):
            names.append(name)
    return f"\nBest at the lowest or the highest rate that was tried: {'; '.join(names)}.\n" if names else ""


def exponent(case: Case, loss: float, unique: Mapping[int, float]) -> float:
    """φ of a looped model.

    **Arguments:** `case`: the model; `loss`: at L_max; `unique`: the losses of models of unique layers by their number,
    falling.

    **Raises:** `ValueError` for fewer than two such models, or if their losses do not fall.
    """
    numbers = sorted(unique)
    if len(numbers) < 2:
        raise ValueError(f"Loops are measured by models of two or more numbers of unique layers, and not of {numbers}.")
    losses = [unique[number] for number in numbers]
    if any(after >= before for before, after in itertools.pairwise(losses)):
        raise ValueError(f"More unique layers are not better here ({losses}), so loops cannot be measured by them.")
    worth = float(np.exp(np.interp(loss, losses[::-1], np.log(numbers[::-1]))))
    looped = max(worth - case.prelude - case.coda, 1e-9) / case.num_layers
    return float(np.log(looped) / np.log(case.max_loops))


def table(results: Results, chosen: Mapping[str, Case], earlier: Mapping[str, Mapping[str, str]] | None = None) -> str:
    """Losses of every exit, and what the loops are worth, as Markdown. `earlier`: the cells of a table of the same
    models, which stay where the runs do not say.
    """

    def unique_losses(layers: tuple[str, ...]) -> dict[int, float]:
        unlooped = [each for each in chosen.values() if each.max_loops == 1 and each.layers == layers]
        return {each.num_layers: Spread.of(results.last_exit(each)).mean for each in unlooped}

    exits = max(case.max_loops for case in chosen.values())
    header = ["Model", "Layers", "Parameters", "Rate", *(f"L = {each}" for each in range(1, exits + 1)), "at 2·L_max"]
    header += ["over the same layers unlooped", "φ", "distance, L = 1", "distance, L_max"]
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    for name, case in chosen.items():
        losses = results.losses(case)
        cells = [Spread.of(losses[:, each]).text(4) if each < case.max_loops else "" for each in range(exits)]
        beyond = gain = worth = ""
        if case.max_loops > 1:
            beyond = Spread.of(losses[:, 2 * case.max_loops - 1]).text(4)
            same = next((each for each in chosen.values() if _same_layers(each, case)), None)
            if same is not None:
                gain = advantage(results.last_exit(case), results.last_exit(same))
            unique = unique_losses(case.layers)
            try:
                worth = Spread.of([exponent(case, loss, unique) for loss in results.last_exit(case)]).text(2)
            except ValueError:
                worth = "–"
        counts = [each["parameters"] for each in results.figures(case) if "parameters" in each]
        parameters = f"{counts[0] / 1e3:,.0f}k" if counts else ""
        cells = [name, case.size, parameters, f"{case.learning_rate:g}", *cells, beyond, gain, worth]
        cells += ["" if case.max_loops == 1 else _distance(results, case, 1), _distance(results, case, case.max_loops)]
        row, before = dict(zip(header, cells, strict=True)), (earlier or {}).get(name, {})
        if before.get("Rate") == row["Rate"]:
            row |= {column: row[column] or before[column] for column in _ONLY_IN_TABLES}
        lines.append("| " + " | ".join(row.values()) + " |")
    return "\n".join(lines) + "\n"


def advantage(losses: np.ndarray, others: np.ndarray) -> str:
    """By how much losses are below others, and how many standard errors that is where both have several seeds."""
    ours, theirs = Spread.of(losses), Spread.of(others)
    said = f"{100.0 * (1.0 - ours.mean / theirs.mean):.1f}%"
    if min(ours.seeds, theirs.seeds) > 1:
        error = np.hypot(ours.deviation / np.sqrt(ours.seeds), theirs.deviation / np.sqrt(theirs.seeds))
        said += f" ({(theirs.mean - ours.mean) / error:.1f} standard errors)" if error > 0.0 else ""
    return said


def _same_layers(unlooped: Case, looped: Case) -> bool:
    layers = looped.prelude + looped.num_layers + looped.coda
    return unlooped.max_loops == 1 and unlooped.num_layers == layers and unlooped.layers == looped.layers


def _distance(results: Results, case: Case, loops: int) -> str:
    distances = results.quality(case, loops, "distance")
    return "" if distances is None else Spread.of(distances).text(2)


def write_rows(path: Path, results: Results, named: Mapping[str, Sequence[Case]]) -> None:
    """Writes every figure of every run."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(_COLUMNS)
        for name, cases in named.items():
            for case in (case for case in cases if case in results):
                runs = zip(results.seeds(case), results.figures(case), results.losses(case), strict=True)
                for seed, figures, losses in runs:
                    for exit, pair in enumerate(zip(losses, figures["train_losses"], strict=True), 1):
                        distance = figures["quality"].get(str(exit), {}).get("distance")
                        about = (name, case.name, case.learning_rate, seed, exit)
                        values = ("" if value is None else f"{value:.8g}" for value in (*pair, distance))
                        writer.writerow([*about, *values])


def read_rows(path: Path, models: Mapping[str, Case]) -> dict[str, list[dict[str, Any]]]:
    """The runs of every model in a file that `write_rows` wrote, as far as it has them, in the form of `Results`.

    **Raises:** `ValueError` for rows of a model that is unknown, or that is another one now.
    """
    found: dict[str, dict[tuple[float, int], dict[int, dict[str, str]]]] = {}
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            name, rate = row["model"], float(row["learning_rate"])
            if name not in models or dataclasses.replace(models[name], learning_rate=rate).name != row["case"]:
                raise ValueError(
                    f"{path} has runs of {name!r} as {row['case']}, which this study does not have. Take `--add` away, "
                    "or give another `--out`."
                )
            found.setdefault(name, {}).setdefault((rate, int(row["seed"])), {})[int(row["exit"])] = row
    return {
        name: [
            _run_of_rows(
                dataclasses.replace(models[name], learning_rate=rate), seed, [exits[each] for each in sorted(exits)]
            )
            for (rate, seed), exits in runs.items()
        ]
        for name, runs in found.items()
    }


def _run_of_rows(case: Case, seed: int, rows: Sequence[Mapping[str, str]]) -> dict[str, Any]:
    heldout, training = ([float(row[name]) for row in rows] for name in ("heldout_loss", "train_loss"))
    distances = {row["exit"]: {"distance": float(row["distance"])} for row in rows if row.get("distance")}
    figures = {"curve": {"0": heldout}, "train_losses": training, "quality": distances}
    return {"case": dataclasses.asdict(case), "seed": seed, "figures": figures}


def in_order(names: Iterable[str]) -> list[str]:
    """Names of models without repeats: the unique layers by their number, then the others as they come."""
    unique = [f"{each} unique layers" for each in UNIQUE]
    return sorted(dict.fromkeys(names), key=lambda name: unique.index(name) if name in unique else len(unique))


def read_table(path: Path) -> dict[str, dict[str, str]]:
    """The cells of a file that holds a `table`, by model and column."""
    lines = [line for line in path.read_text().splitlines() if line.startswith("|")]
    header, _, *rows = ([cell.strip() for cell in line[1:-1].split("|")] for line in lines)
    return {row[0]: dict(zip(header, row, strict=True)) for row in rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser, runs="runs/loops")
    parser.add_argument("--data", choices=("digits", "MNIST", "CIFAR-10"), default="digits")
    parser.add_argument("--family", choices=FAMILIES, default="dit")
    parser.add_argument("--rates", type=float, nargs="+", default=list(RATES))
    parser.add_argument("--models", nargs="+", metavar="NAME", help="as the table names them; default all")
    parser.add_argument("--together", action="store_true", help="all rates and seeds of a model in one program")
    parser.add_argument("--report", action="store_true", help="train nothing: tables of the runs that are there")
    parser.add_argument("--add", action="store_true", help="to the tables that are in --out")
    parser.add_argument("--optimizer", choices=tuple(OptimizerKind), default=OptimizerKind.MUON)
    arguments = parser.parse_args()
    settings = settings_of(parser, arguments)
    models = wanted_models(parser, arguments)
    known = all_models(arguments.data, str(arguments.optimizer), arguments.family)
    stem = f"loops-{stem_of(arguments)}-{arguments.optimizer}-{settings.steps}"
    cells_file, rows_file = (arguments.out / f"{stem}.{suffix}" for suffix in ("md", "csv"))
    saved = read_rows(rows_file, known) if arguments.add and rows_file.exists() else {}
    cells = read_table(cells_file) if arguments.add and cells_file.exists() else {}
    earlier = list(itertools.chain(*saved.values()))
    before, first, others, runs = Results(earlier), arguments.seeds[0], arguments.seeds[1:], arguments.runs
    rates = sorted({*arguments.rates, *(run["case"]["learning_rate"] for run in earlier)})

    def train(cases: Iterable[Case], seeds: Sequence[int]) -> list[Path]:
        pairs = itertools.product(cases, seeds)
        wanted = [(case, seed) for case, seed in pairs if case not in before or seed not in before.seeds(case)]
        return run_all(runs, wanted, settings, jobs=arguments.jobs)

    groups = [at_rates(model, arguments.rates) for model in models.values()]
    if arguments.report:
        every = (result_path(runs, case, seed) for cases in groups for case in cases for seed in arguments.seeds)
        paths = [path for path in every if path.exists()]
        check_settings(paths, settings)
    elif arguments.together:
        paths = run_all_together(runs, groups, arguments.seeds, settings, jobs=arguments.jobs)
    else:
        paths = train(itertools.chain(*groups), [first])
        swept = read_results(paths, earlier)
        paths += train([best(swept, model, rates) for model in models.values()], others)
    results = read_results(paths, earlier)
    shown = {name: known[name] for name in in_order([*saved, *models])}
    chosen = {name: best(results, model, rates) for name, model in shown.items()}
    arguments.out.mkdir(parents=True, exist_ok=True)
    text = table(results, chosen, cells) + edges(results, chosen, rates)
    cells_file.write_text(text)
    write_rows(rows_file, results, {name: at_rates(model, rates) for name, model in shown.items()})
    print(text)


if __name__ == "__main__":
    try:
        main()
    except (ValueError, FileNotFoundError) as error:
        raise SystemExit(f"error: {error}") from None
