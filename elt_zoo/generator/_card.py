import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..storage import atomic_write, named_arrays
from ._generator import Generator

CARD = "README.md"
"""The file of a folder that says what the model is."""
_OURS = (
    "<!-- Written by `elt_zoo.save`, and written again when the model is. Delete this line to keep your own text. -->"
)
_SAMPLE = """\
```python
import elt_zoo
import jax

generator = elt_zoo.load("{address}")
images = generator.sample([0], loops={loops}, key=jax.random.key(0))  # pixels in [-1, 1]
```
"""


def model_card(generator: Generator, *, address: str = "path/to/this/folder") -> str:
    """What a model is, what it was trained on and how good it is, as Markdown with the header that the Hugging Face hub
    reads.

    Facts about the training come from the generator's `metadata`: `data`, `licence` (an SPDX name, such as
    `apache-2.0`), `source`, `objective`, `results` (a list of rows of figures) and `protocol` (how they were measured).
    What is missing there is left out.

    **Arguments:** `generator`: the model; `address`: what `load` takes.
    """
    config, metadata = generator.config, generator.metadata
    licence = metadata.get("licence")
    header = ["library_name: elt_zoo", "tags: [elastic-looped-transformer, jax, equinox]"]
    if isinstance(licence, str) and re.fullmatch(r"[a-z0-9.-]+", licence):
        header.append(f"license: {licence}")
    facts: dict[str, Any] = {
        "Family": config.family,
        "Unique layers N": _layers(generator),
        "Trained loops L_max": config.max_loops,
        "Width, heads": f"{config.dim:,}, {config.num_heads:,}",
        "Parameters": f"{sum(math.prod(leaf.shape) for leaf in named_arrays(generator.model).values()):,}",
        "Samples": _samples(generator),
        "Classes": config.num_classes,
    }
    facts |= {
        name: metadata[key]
        for name, key in (("Data", "data"), ("Objective", "objective"), ("Source", "source"), ("Licence", "licence"))
        if metadata.get(key)
    }
    lines = ["---", *header, "---", "", _OURS, "", f"# {config.family}, {config.num_layers}N × {config.max_loops}L", ""]
    lines += ["An [Elastic Looped Transformer](https://arxiv.org/abs/2604.09168): sample it with any number of loops."]
    lines += ["", *_table([{"": f"**{name}**", "Value": value} for name, value in facts.items()])]
    lines += ["", "## Sample it", "", _SAMPLE.format(address=address, loops=config.max_loops)]
    lines += ["Sampled by default with:", "", *_block(generator.settings), ""]
    results = metadata.get("results")
    if isinstance(results, Sequence) and results and all(isinstance(row, Mapping) for row in results):
        lines += ["## Figures", "", *_table(results), ""]
    if metadata.get("protocol"):
        lines += ["## Protocol", "", *_block(metadata["protocol"]), ""]
    if metadata.get("training"):
        lines += ["## Training", "", *_block(metadata["training"]), ""]
    return "\n".join(lines)


def write_card(folder: Path, generator: Generator) -> None:
    """Writes the card, unless the folder has one that somebody wrote by hand."""
    if card_by_hand(folder) is None:
        with atomic_write(folder / CARD) as file:
            file.write_text(model_card(generator))


def card_by_hand(folder: Path) -> str | None:
    """The card of a folder, if it is not one of ours."""
    path = folder / CARD
    text = path.read_text(errors="replace") if path.exists() else _OURS
    return None if _OURS in text else text


def _layers(generator: Generator) -> str:
    config = generator.config
    around = [f"{count} {name}" for count, name in ((config.prelude, "before"), (config.coda, "after")) if count]
    return f"{config.num_layers}{', and ' + ' and '.join(around) + ' the loops' if around else ''}"


def _samples(generator: Generator) -> str:
    try:
        return " × ".join(map(str, generator.pixels.shape)) + " pixels"
    except ValueError:
        return f"{' × '.join(map(str, generator.config.example.shape))}, to be decoded with a tokenizer"


def _table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    columns = list(dict.fromkeys(name for row in rows for name in row))
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    return lines + ["| " + " | ".join(_cell(row.get(name, "")) for name in columns) + " |" for row in rows]


def _cell(value: Any) -> str:
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return text.replace("|", "\\|").replace("\n", " ")


def _block(content: Any) -> list[str]:
    return ["```json", json.dumps(content, indent=2, default=vars), "```"]
