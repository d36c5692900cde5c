import dataclasses
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from elt_zoo.demo import loop_views
from elt_zoo.figures import save_png
from elt_zoo.generator import Generator, load
from elt_zoo.storage import write_json

from ._sheets import hash_generator

DESCRIPTIONS = "strips.json"
_SCALE = 6


@dataclasses.dataclass(frozen=True, kw_only=True)
class Strip:
    """How a model samples, step by step, as one picture.

    For every class two rows: the unfinished sample before each step that is shown, and what the network takes it for;
    both end with the finished sample.

    **Fields:**

    - `model`: what `elt_zoo.load` takes.
    - `labels`: a pair of rows each.
    - `every`: of how many steps one is shown.
    - `seed`: of the noise.
    """

    model: str
    labels: tuple[int, ...] = (3, 8)
    every: int = 1
    seed: int = 0


STRIPS = (Strip(model="mnist-dit", every=2), Strip(model="digits-maskgit"))
"""The strips of the documentation. One more is one more line."""


def describe(strip: Strip, generator: Generator) -> dict[str, Any]:
    """What a strip depends on, of JSON's types."""
    description = dataclasses.asdict(strip) | {"sampled": hash_generator(generator)}
    return json.loads(json.dumps(description))  # tuples are lists there


def draw(strip: Strip, generator: Generator) -> np.ndarray:
    """Pixels in [−1, 1] of (rows, columns, height, width, channels)."""
    loops = generator.config.max_loops
    rows: list[np.ndarray] = []
    for label in strip.labels:
        labels, key = jnp.asarray([label]), jax.random.key(strip.seed)
        sample = generator.sample(labels, loops=loops, key=key)
        first = jax.random.fold_in(key, 0)  # the noise of its first batch
        views = loop_views(generator, generator.sampler(), labels, loops=loops, exits=loops, key=first)
        for shown in (views.known, views.guesses[:, -1]):
            rows.append(np.concatenate([shown[:: strip.every], sample]))
    return np.stack(rows)


def _on_white(pixels: np.ndarray) -> np.ndarray:
    """Rows and columns of images as one image. White lies between them, as grey means masked."""
    padded = np.pad(pixels, ((0, 0), (0, 0), (1, 1), (1, 1), (0, 0)), constant_values=1.0)
    rows, columns, height, width, channels = padded.shape
    return padded.transpose(0, 2, 1, 3, 4).reshape(rows * height, columns * width, channels)


def write_strips(folder: str | os.PathLike, strips: tuple[Strip, ...] = STRIPS) -> None:
    """Writes a PNG for every strip, and `strips.json`, which says what they depend on."""
    folder, descriptions = Path(folder), []
    folder.mkdir(parents=True, exist_ok=True)
    for strip in strips:
        generator, path = load(strip.model), folder / f"{strip.model}.png"
        save_png(path, _on_white(draw(strip, generator)), scale=_SCALE)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        descriptions.append(describe(strip, generator) | {"sha256": digest})
    write_json(folder / DESCRIPTIONS, descriptions)
