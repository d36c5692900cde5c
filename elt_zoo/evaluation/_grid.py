import contextlib
import dataclasses
import platform
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import numpy as np
from tqdm import tqdm

from .._version import __version__
from ..data import from_pixels
from ..generator import Generator
from ..metrics import SampleWriter
from ..profile import FLOPS, sample_compute
from ..storage import FolderLock, hash_arrays
from ._cells import Cell, CellStore
from ._evaluator import Evaluator
from ._results import save_results
from ._samples import CellSampler, SamplePlan, Samples


def evaluate_grid(
    generator: Generator,
    cells: Sequence[Cell],
    evaluator: Evaluator,
    plan: SamplePlan,
    folder: Path,
    *,
    name: str,
    export: bool = False,
) -> str:
    """Measures a generator at every cell of a grid, and leaves tables and a plot in a folder.

    A cell is saved when it is measured: an interrupted grid goes on where it was, and more cells may be added later.

    **Arguments:**

    - `generator`: what to measure.
    - `cells`: ways to sample it, see [`grid`][elt_zoo.evaluation.grid].
    - `evaluator`: what measures the samples, see [`make_evaluator`][elt_zoo.evaluation.make_evaluator].
    - `plan`: how many samples, and how they are made.
    - `folder`: where the cells, `results.csv`, `results.json`, `results.md` and `pareto.png` go.
    - `name`: of the generator, for the titles.
    - `export`: also write the samples of every cell to `samples/<cell>.npz`, which ADM's evaluator reads.

    **Returns:** the table in Markdown.

    **Raises:** `ValueError` for cells that cannot be sampled, or a folder that holds an evaluation under another
    protocol, or something else; `FolderLocked` if another process writes to it. Nothing is changed then.
    """
    for cell in cells:  # before anything takes long
        sampler = generator.sampler(steps=cell.steps, guidance=cell.guidance)
        sample_compute(generator.config, sampler, loops=cell.budget)
    shape = generator.pixels.shape
    evaluator.check(plan.samples)
    protocol = protocol_of(generator, evaluator, plan)
    CellStore.check(folder, protocol)
    sampler = CellSampler(generator, plan)
    with FolderLock(folder):
        store = CellStore(folder, protocol)
        missing = [cell for cell in cells if cell not in store]
        for cell in tqdm(missing, desc="cells", unit="cell", disable=None):
            with _exporting(export, folder, cell, shape, plan.repeats * plan.samples) as write:
                measured = _measure(sampler, evaluator, cell, write, name)
            store.write(cell, measured)  # after its samples, since a cell that is there is not sampled again
        return save_results(folder, name, list(store.read()), evaluator)


def protocol_of(generator: Generator, evaluator: Evaluator, plan: SamplePlan) -> dict[str, Any]:
    """All that two cells must share for their measures to be compared."""
    settings = dataclasses.asdict(generator.settings)
    return {
        "model": generator.config.to_dict(),
        "parameters_sha256": hash_arrays({"model": generator.model, "tokenizer": generator.tokenizer}),
        "ema_decay": generator.metadata.get("training", {}).get("ema_decay", "unknown"),
        "sampler": {name: value for name, value in settings.items() if name not in ("steps", "guidance")},
        "guidance_formula": "unconditional + scale * (conditional - unconditional); 1 is the conditional model alone",
        "samples": plan.samples,
        "repeats": plan.repeats,
        "classes": f"{generator.config.num_classes}, in turn",
        "seed": plan.seed,
        "batch_size": plan.batch_size,
        "evaluator": evaluator.card,
        "flops": FLOPS,
    }


def _measure(
    sampler: CellSampler, evaluator: Evaluator, cell: Cell, write: Callable[[Samples], None], name: str
) -> dict[str, Any]:
    """Samples the sets of a cell and measures them: scores, their compute, and where and with what that was."""
    generator, plan = sampler.generator, sampler.plan

    def written(batches: Iterator[Samples]) -> Iterator[Samples]:
        for batch in batches:
            yield batch
            write(batch)  # once it is measured, so that what cannot be is not written either

    sets = [evaluator(written(sampler.batches(cell, repeat=repeat))) for repeat in range(plan.repeats)]
    compute = sample_compute(
        generator.config,
        generator.sampler(steps=cell.steps, guidance=cell.guidance),
        loops=cell.budget,
        time=sampler.time,
    )
    return {
        "figures": {metric: float(np.mean([each[metric] for each in sets])) for metric in sets[0]},
        "sets": sets,
        "compute": dataclasses.asdict(compute) | {"flops": compute.flops},
        "run": {"model": name, "versions": versions(), "machine": platform.platform()},
    }


def versions() -> dict[str, str]:
    """Versions of what computes."""
    return {
        "elt_zoo": __version__,
        "jax": jax.__version__,
        "equinox": eqx.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
    }


@contextlib.contextmanager
def _exporting(
    export: bool, folder: Path, cell: Cell, shape: tuple[int, ...], count: int
) -> Iterator[Callable[[Samples], None]]:
    """What to do with every batch of a cell: write it to the cell's file, if that was asked for."""
    if not export:
        yield lambda batch: None
        return
    (folder / "samples").mkdir(parents=True, exist_ok=True)
    file = folder / "samples" / f"{cell.key}.npz"
    # A file without its cell is one whose measuring was interrupted.
    with SampleWriter(file, count=count, shape=(*shape[:-1], 3), overwrite=True) as writer:

        def write(batch: Samples) -> None:
            pixels = from_pixels(batch.pixels)
            writer.add(np.broadcast_to(pixels, (*pixels.shape[:-1], 3)), batch.labels)

        yield write
