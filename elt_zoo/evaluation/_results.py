import csv
from pathlib import Path
from typing import Any

from ..figures import plot_pareto
from ..metrics import pareto_front
from ..storage import atomic_write, write_json
from ._evaluator import Evaluator


def save_results(folder: Path, name: str, results: list[dict[str, Any]], evaluator: Evaluator) -> str:
    """Writes all cells of the folder as CSV, JSON, Markdown and a plot, the Pareto front marked. Returns the table."""
    front = pareto_front(
        [result["compute"]["flops"] for result in results],
        [result["figures"][evaluator.distance] for result in results],
    )
    rows = []
    for result, best in zip(results, front.tolist(), strict=True):
        compute = result["compute"]
        rows.append(
            result["cell"]
            | result["figures"]
            | {
                "unique_parameters": compute["parameters"],
                "effective_parameters": compute["effective_parameters"],
                "flops_per_sample": compute["flops"],
                "milliseconds_per_sample": 1e3 * compute["time"]["median"],
                "pareto": best,
            }
        )
    write_csv(folder / "results.csv", rows)
    write_json(folder / "results.json", results)
    protocol = results[0]["protocol"]
    title = (
        f"{name}: {protocol['samples']:,} samples"
        + (f" × {protocol['repeats']}" if protocol["repeats"] > 1 else "")
        + f", trained for {protocol['model']['max_loops']} loops"
    )
    plot_pareto(folder / "pareto.png", rows, metric=evaluator.distance, floors=evaluator.floors, title=title)
    text = markdown(rows) + notes(results, evaluator)
    with atomic_write(folder / "results.md") as file:
        file.write_text(text)
    return text


def markdown(rows: list[dict[str, Any]]) -> str:
    """Rows of one set of columns as a table in Markdown."""
    lines = ["| " + " | ".join(name.replace("_", " ") for name in rows[0]) + " |", "|---" * len(rows[0]) + "|"]
    lines += ["| " + " | ".join(map(_text, row.values())) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "*" if value else ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def notes(results: list[dict[str, Any]], evaluator: Evaluator) -> str:
    """What the table's figures depend on."""
    protocol, time = results[-1]["protocol"], results[-1]["compute"]["time"]
    reference = evaluator.card["reference"]
    if isinstance(reference, dict):
        reference = ", ".join(f"{name} {value}" for name, value in reference.items())
    lines = [
        f"{protocol['samples']:,} samples a set, {protocol['repeats']} set(s), seed {protocol['seed']}, "
        f"batches of {protocol['batch_size']}; parameters averaged with decay {protocol['ema_decay']}.",
        f"Evaluator: {evaluator.card['name']}; reference: {reference}.",
        f"Guidance: {protocol['guidance_formula']}.",
        f"FLOPs: {protocol['flops']}, without the tokenizer's. Time: median of {time['repeats']} batches, decoding to "
        f"pixels included, on {time['device']}.",
    ]
    lines += [f"{name}: {evaluator.distance} {floor:.2f}." for name, floor in evaluator.floors.items()]
    return "\n" + "\n".join(f"- {line}" for line in lines) + "\n"


def write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    """Writes rows of one set of columns."""
    with atomic_write(path) as file, file.open("w", newline="") as handle:
        writer = csv.DictWriter(handle, rows[0])
        writer.writeheader()
        writer.writerows(rows)
