import contextlib
import dataclasses
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import numpy as np
from tqdm import tqdm

from .._version import __version__
from ..distributed import agree, first_says, is_first, together
from ..generator import Generator
from ..profile import FLOPS, sample_compute
from ..storage import FolderLock, hash_arrays
from ._cells import Cell, CellStore
from ._evaluator import Evaluator
from ._measured import Measured, gather_measured
from ._results import save_results
from ._sample_files import SampleFiles
from ._samples import CellSampler, SamplePlan


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
    Several processes that all call it share the batches of every cell; process 0 alone writes, into a folder that all
    see.

    **Arguments:**

    - `generator`: what to measure.
    - `cells`: ways to sample it, see [`grid`][elt_zoo.evaluation.grid].
    - `evaluator`: what measures the samples, see [`make_evaluator`][elt_zoo.evaluation.make_evaluator].
    - `plan`: how many samples, and how they are made.
    - `folder`: where the cells, `results.csv`, `results.json`, `results.md` and `pareto.png` go.
    - `name`: of the generator, for the titles.
    - `export`: also write the samples of every cell to `samples/<cell>.npz`, which ADM's evaluator reads.

    **Returns:** the table in Markdown, in process 0; in others nothing.

    **Raises:** `ValueError` for cells that cannot be sampled, or a folder that holds an evaluation under another
    protocol, or something else; `FolderLocked` if another command writes to it, and nothing is changed then;
    `ProcessFailed` if another process of this evaluation fails.
    """
    for cell in cells:  # before anything takes long
        sampler = generator.sampler(steps=cell.steps, guidance=cell.guidance)
        sample_compute(generator.config, sampler, loops=cell.budget)
    shape = generator.pixels.shape
    evaluator.check(plan.samples)
    protocol = protocol_of(generator, evaluator, plan)
    agree({"protocol": protocol})  # weights and libraries may differ between machines
    sampler, lock = CellSampler(generator, plan), FolderLock(folder)

    def opened() -> CellStore | None:
        if not is_first():
            return None
        CellStore.check(folder, protocol)
        lock.acquire()
        return CellStore(folder, protocol)

    with contextlib.ExitStack() as stack:
        stack.callback(lock.release)
        store = together(opened)
        missing = first_says(None if store is None else [row for row, cell in enumerate(cells) if cell not in store])
        for row in tqdm(missing, desc="cells", unit="cell", disable=None if is_first() else True):
            cell = cells[row]
            with contextlib.ExitStack() as files:
                samples = SampleFiles(folder, cell.key, shape, sampler) if export else None
                together(lambda samples=samples, files=files: samples and files.enter_context(samples))
                measured = _measure(sampler, evaluator, cell, samples, name)
                together(files.close)
            # After its samples, since a cell that is there is not sampled again.
            together(lambda cell=cell, measured=measured: store and store.write(cell, measured))
        return "" if store is None else save_results(folder, name, list(store.read()), evaluator)


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
    sampler: CellSampler, evaluator: Evaluator, cell: Cell, samples: SampleFiles | None, name: str
) -> dict[str, Any]:
    """Samples the sets of a cell and measures them: scores, their compute, and where and with what that was. The
    processes share the batches, and process 0 has the scores.
    """
    generator, plan, sets = sampler.generator, sampler.plan, []
    for repeat in range(plan.repeats):

        def measured(repeat: int = repeat) -> Measured | None:
            batches = sampler.batches(cell, repeat=repeat)
            if not sampler.part(jax.process_index()):
                return None
            return evaluator.measure(batches if samples is None else samples.written(batches))

        whole = gather_measured(together(measured))

        def scored(whole: Measured | None = whole) -> dict[str, float]:
            if whole is None:
                return {}
            if samples is not None:
                samples.append_others()
            return evaluator.scores(whole)

        sets.append(together(scored))
    if not is_first():
        return {}
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
