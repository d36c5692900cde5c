import dataclasses
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import jax
import numpy as np

from elt_zoo.data import from_pixels
from elt_zoo.generator import Generator, load
from elt_zoo.profile import profile
from elt_zoo.storage import atomic_write, hash_arrays, write_json

DESCRIPTIONS = "sheets.json"
_LEVELS = 16


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sheet:
    """One picture of all samples that the page shows of a model: a row for every number of steps and of loops, in each
    row the same noises of every class.

    **Fields:**

    - `model`: what `elt_zoo.load` takes.
    - `title`: its name on the page.
    - `steps`: numbers of sampling steps.
    - `loops`: loop counts, beyond L_max too.
    - `noises`: samples of every class.
    - `seed`: of the noises.
    """

    model: str
    title: str
    steps: tuple[int, ...]
    loops: tuple[int, ...] = tuple(range(1, 9))
    noises: int = 4
    seed: int = 0


SHEETS = (
    Sheet(model="mnist-dit", title="Diffusion, MNIST", steps=(1, 2, 4, 8, 16)),
    Sheet(model="cifar10-dit", title="Diffusion, CIFAR-10 in colour", steps=(1, 2, 4, 8, 16), noises=2),
    Sheet(model="cifar10-maskgit", title="Masked generation, CIFAR-10 in colour", steps=(1, 2, 4, 8, 12), noises=2),
    Sheet(model="digits-dit", title="Diffusion, digits", steps=(1, 2, 4, 8, 16)),
    Sheet(model="digits-maskgit", title="Masked generation, digits", steps=(1, 2, 4, 8, 12)),
)
"""The models of the page, in its order. One more model is one more line."""


def describe(sheet: Sheet, generator: Generator) -> dict[str, Any]:
    """What the page says of a sheet, and what its samples depend on, of JSON's types."""
    config = generator.config
    guided = generator.settings.guidance != 1.0
    costs = profile(config, guidance=guided)
    grid = [[dataclasses.replace(costs, steps=steps, loops=loops) for loops in sheet.loops] for steps in sheet.steps]
    description = dataclasses.asdict(sheet) | {
        "size": list(generator.pixels.shape[:2]),
        "classes": config.num_classes,
        "max_loops": config.max_loops,
        "num_layers": config.num_layers,
        "layers": [[(1 + guided) * each.steps * each.effective_depth for each in row] for row in grid],
        "flops": [[each.sample_flops for each in row] for row in grid],
        "sampled": hash_generator(generator),
    }
    return json.loads(json.dumps(description))  # tuples are lists there


def hash_generator(generator: Generator) -> str:
    """Of all that its samples depend on. An option that is new in this version, and off, changes nothing."""
    config, settings = generator.config, dataclasses.asdict(generator.settings)
    defaults = {field.name: field.default for field in dataclasses.fields(config)}
    chosen = {name: value for name, value in config.to_dict().items() if value != defaults.get(name)}
    return hash_arrays(
        {"model": generator.model, "tokenizer": generator.tokenizer}, {"config": chosen, "settings": settings}
    )


def sample(sheet: Sheet, generator: Generator, *, steps: int, loops: int) -> np.ndarray:
    """One row of a sheet: bytes of (classes, noises, height, width, channels)."""
    labels = np.repeat(np.arange(generator.config.num_classes), sheet.noises)
    pixels = generator.sample(labels, loops=loops, steps=steps, batch_size=len(labels), key=jax.random.key(sheet.seed))
    # Few levels of each colour make a small file, and nobody sees the difference.
    levels = np.rint(from_pixels(pixels) / 255.0 * (_LEVELS - 1))
    coarse = np.rint(levels * 255.0 / (_LEVELS - 1)).astype(np.uint8)
    return coarse.reshape(generator.config.num_classes, sheet.noises, *coarse.shape[1:])


def draw(sheet: Sheet, generator: Generator) -> np.ndarray:
    """The whole sheet: bytes of (rows, columns, channels)."""
    rows = np.stack(
        [sample(sheet, generator, steps=steps, loops=loops) for steps in sheet.steps for loops in sheet.loops]
    )
    count, classes, noises, height, width, channels = rows.shape
    return rows.transpose(0, 3, 1, 2, 4, 5).reshape(count * height, classes * noises * width, channels)


def write_sheets(folder: str | os.PathLike, sheets: tuple[Sheet, ...] = SHEETS) -> None:
    """Writes a PNG for every sheet and `sheets.json`, which describes them."""
    from PIL import Image

    folder, descriptions = Path(folder), []
    folder.mkdir(parents=True, exist_ok=True)
    for sheet in sheets:
        generator = load(sheet.model)
        description, path = describe(sheet, generator), folder / f"{sheet.model}.png"
        with atomic_write(path) as file:
            Image.fromarray(draw(sheet, generator).squeeze()).save(file, "PNG", optimize=True)
        descriptions.append(description | {"sha256": hashlib.sha256(path.read_bytes()).hexdigest()})
    write_json(folder / DESCRIPTIONS, descriptions)
