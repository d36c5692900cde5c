"""Exits with a promise on digits: how often a calibration breaks its word, and the time that the exits save.

    python benchmarks/calibrated_exits.py            # about a quarter of an hour on two CPU cores
    python benchmarks/calibrated_exits.py --recalibrations 20

For each bundled model, thresholds are calibrated again and again, each time on samples of other seeds, for two risks:
that the digit becomes another one, and how far the picture moves in the features of a classifier, relative to the mean
distance of two real digits. The true risk of a threshold is its mean over the samples of all calibrations. The times
are those of whole calls, with the exits of the median calibration and with all loops, in turn. Beside them stands the
same threshold where the examples of a batch leave together, by their mean; no promise covers that.

Writes `calibrated-exits.csv` (every calibration) and `calibrated-exits.md`.
"""

import argparse
from pathlib import Path

import jax
import numpy as np
from timing import compare, write_csv

from elt_zoo import Generator, load
from elt_zoo.anytime import Risk, changed_class, feature_change, risk_p_value, used_loops
from elt_zoo.data import digits_to_pixels, load_digits
from elt_zoo.generator import ExitSignal, SettledExit, divergence, relative_change
from elt_zoo.metrics import DigitsEvaluator
from elt_zoo.profile import environment

ROOT = Path(__file__).parents[1]
SIGNALS: dict[str, ExitSignal] = {"digits-dit": relative_change, "digits-maskgit": divergence}
THRESHOLDS = {"digits-dit": np.geomspace(0.02, 0.64, 11), "digits-maskgit": np.geomspace(0.001, 0.256, 9)}
SAMPLES, LIMIT, ERROR = 100, 0.05, 0.1
BATCHES = (1, 16, 64)
LARGE, TOGETHER = 500, 2048


def risks_of(evaluate: DigitsEvaluator) -> dict[str, Risk]:
    """The two risks by name."""
    real = evaluate.features(digits_to_pixels(load_digits("heldout").images))
    apart = np.linalg.norm(real[:, None] - real[None], axis=-1)
    mean = float(apart[np.triu_indices(len(real), 1)].mean())
    return {
        "another digit": changed_class(evaluate.classify),
        "features": feature_change(evaluate.features, largest=mean),
    }


def lost(generator: Generator, signal: ExitSignal, thresholds: np.ndarray, risks: dict[str, Risk], count: int) -> dict:
    """For each risk an array of (thresholds, samples)."""
    labels, key = np.arange(count) % 10, jax.random.key(0)
    full = generator.sample(labels, batch_size=LARGE, key=key)
    rows: dict[str, list[np.ndarray]] = {name: [] for name in risks}
    for threshold in thresholds:
        early = generator.sample(labels, exit_rule=SettledExit(signal, threshold), batch_size=LARGE, key=key)
        for name, risk in risks.items():
            rows[name].append(risk(early, full))
    return {name: np.stack(each) for name, each in rows.items()}


def chosen(part: np.ndarray) -> int:
    """The last threshold that passes before one fails, from (thresholds, samples); −1 for none."""
    for index, row in enumerate(part):
        if risk_p_value(float(row.mean()), len(row), LIMIT) > ERROR:
            return index - 1
    return len(part) - 1


def saved(generator: Generator, rule: SettledExit, rounds: int) -> dict[int, dict]:
    """The time with exits over that with all loops, by batch size."""
    times = {}
    for batch in BATCHES:
        labels = np.arange(batch) % 10

        def draw(exit_rule: SettledExit | None, labels: np.ndarray = labels) -> np.ndarray:
            return generator.sample(labels, exit_rule=exit_rule, batch_size=len(labels), key=jax.random.key(1))

        times[batch] = compare(lambda draw=draw: draw(rule), lambda draw=draw: draw(None), rounds=rounds)
    return times


def risk_together(generator: Generator, rule: SettledExit, risk: Risk) -> float:
    """The risk of a rule by which whole batches leave."""
    labels, key = np.arange(TOGETHER) % 10, jax.random.key(2)
    full, early = (generator.sample(labels, exit_rule=each, batch_size=max(BATCHES), key=key) for each in (None, rule))
    return float(np.mean(risk(early, full)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recalibrations", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=15, help="of timing")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    arguments = parser.parse_args()
    if arguments.recalibrations < 2 or arguments.rounds < 1:
        parser.error("--recalibrations must be at least 2, and --rounds at least 1.")
    risks, rows, table = risks_of(DigitsEvaluator()), [], []
    for model, signal in SIGNALS.items():
        generator, thresholds = load(model), THRESHOLDS[model]
        losses = lost(generator, signal, thresholds, risks, arguments.recalibrations * SAMPLES)
        for name, of_risk in losses.items():
            true, parts = of_risk.mean(axis=1), np.split(of_risk, arguments.recalibrations, axis=1)
            picks = [chosen(part) for part in parts]
            broken = sum(pick >= 0 and true[pick] > LIMIT for pick in picks)
            for number, pick in enumerate(picks):
                about = {"model": model, "risk": name, "calibration": number}
                found = (thresholds[pick], true[pick]) if pick >= 0 else ("", "")
                rows.append(about | dict(zip(("threshold", "true_risk"), found, strict=True)))
            typical = int(np.median(picks))
            cells = [model, f"`{signal.__name__}`", name, f"{broken} of {len(picks)}"]
            if typical < 0:
                table.append([*cells, "example", "none passes", "", "4.00", *[""] * len(BATCHES)])
                continue
            for together in (False, True):
                rule = SettledExit(signal, float(thresholds[typical]), together=together)
                labels = np.arange(max(BATCHES) if together else LARGE) % 10
                loops = used_loops(generator, rule, labels, key=jax.random.key(1)).mean()
                times = saved(generator, rule, arguments.rounds)
                found = risk_together(generator, rule, risks[name]) if together else float(true[typical])
                told = [*cells[:3], "none made"] if together else cells
                told = [*told, "batch" if together else "example", f"{thresholds[typical]:.3g}", f"{found:.3f}"]
                table.append([*told, f"{loops:.2f}", *(f"{times[batch]['ratio']:.2f}" for batch in BATCHES)])
                print(table[-1], flush=True)
    header = ["Model", "Signal", "Risk", "promises broken", "who leaves", "threshold", "its true risk", "loops a step"]
    header += [f"time, batch {batch}" for batch in BATCHES]
    pairs = arguments.recalibrations * SAMPLES
    note = (
        f"Each calibration sees {SAMPLES} pairs of samples and promises a risk of at most {LIMIT:g} with an error of "
        f"at most {ERROR:g}; a promise is broken if the true risk of its threshold, over {pairs:,} pairs, is larger. "
        "The threshold is the median of the calibrations. Loops are of 4 at most and 2 at least; times are relative to "
        f"all loops, medians of {arguments.rounds} rounds. The risk of a batch of {max(BATCHES)} that leaves "
        f"together is that of {TOGETHER:,} pairs. {environment()}."
    )
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    lines += ["| " + " | ".join(row) + " |" for row in table] + ["", note]
    arguments.out.mkdir(parents=True, exist_ok=True)
    write_csv(arguments.out / "calibrated-exits.csv", rows)
    (arguments.out / "calibrated-exits.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
