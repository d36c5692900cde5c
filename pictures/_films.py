import dataclasses
import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np

from elt_zoo.figures import save_clip_grid
from elt_zoo.generator import Generator, load
from elt_zoo.storage import atomic_write, write_json

from ._sheets import hash_generator

DESCRIPTIONS = "films.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Film:
    """Clips of a model in motion, a row for every loop count, all from the same noise.

    **Fields:**

    - `model`: what `elt_zoo.load` takes.
    - `loops`: the rows.
    - `labels`: the columns.
    - `seed`: of the noise.
    """

    model: str
    loops: tuple[int, ...] = (1, 2, 4)
    labels: tuple[int, ...] = tuple(range(10))
    seed: int = 0


FILMS = (Film(model="moving-digits"),)
"""The films of the documentation. One more is one more line."""


def describe(film: Film, generator: Generator) -> dict[str, Any]:
    """What a film depends on, of JSON's types."""
    described = dataclasses.asdict(film) | {"sampled": hash_generator(generator)}
    return json.loads(json.dumps(described))  # tuples are lists there


def sample(film: Film, generator: Generator) -> dict[str, np.ndarray]:
    """The clips of every row, by its name."""
    key = jax.random.key(film.seed)
    return {f"L = {loops}": generator.sample(film.labels, loops=loops, key=key) for loops in film.loops}


def write_films(folder: str | os.PathLike, films: tuple[Film, ...] = FILMS) -> None:
    """Writes a GIF for every film, and `films.json`, which says what they depend on."""
    folder, descriptions = Path(folder), []
    folder.mkdir(parents=True, exist_ok=True)
    for film in films:
        generator, path = load(film.model), folder / f"{film.model}.gif"
        with tempfile.TemporaryDirectory() as place:
            grid = Path(place) / "grid.png"
            save_clip_grid(grid, sample(film, generator), film.labels, title=f"{film.model}, sampled with L loops")
            with atomic_write(path) as file:
                file.write_bytes(grid.with_suffix(".gif").read_bytes())
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        descriptions.append(describe(film, generator) | {"sha256": digest})
    write_json(folder / DESCRIPTIONS, descriptions)
