import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..data import AbstractSource, first_examples
from ..diagnostics import LossByExit, held_out_exits, held_out_losses, sample_at_exits, sampling_update_norms
from ..figures import plot_exits, plot_update_norms, save_grid
from ..generator import Generator
from ..recipes import Task, make_task, representation_of
from ..storage import read_json, write_json
from ._results import write_csv
from ._run_report import loop_counts

_SUMMARY = "loops.json"
_PICTURED = 10


def report_loops(
    folder: Path,
    generator: Generator,
    *,
    heldout: AbstractSource | None,
    examples: int,
    copies: int,
    batch_size: int,
    seed: int,
) -> str:
    """Reports what the loops of a generator do, in tables and pictures of all exits up to 2·L_max.

    It writes `exits.csv`, `exits.png`, `update_norms.csv`, `update_norms.png` and `samples.png`, unless those of the
    same data are there.

    **Arguments:**

    - `folder`: where they go.
    - `generator`: what to look into.
    - `heldout`: data that the model has not seen, whose first `examples` are corrupted `copies` times over,
      `batch_size` at a time; `None` leaves their measures out.
    - `seed`: of the noise.

    **Returns:** the same in words.

    **Raises:** `ValueError` if the data do not fit the model.
    """
    summary = folder / _SUMMARY
    used = None if heldout is None else [heldout.name(0), len(heldout), examples, copies, batch_size]
    if summary.exists() and (saved := read_json(summary))["heldout"] == used:
        return saved["text"]
    folder.mkdir(parents=True, exist_ok=True)
    config, key = generator.config, jax.random.key(seed)
    max_loops, text = config.max_loops, []
    if heldout is not None:
        task = heldout_task(generator, heldout, examples)
        measured = task.heldout.examples, task.heldout.labels
        counts: dict[str, Any] = {"copies": copies, "batch_size": batch_size, "key": key}
        model, corruption, loops = generator.model, config.corruption(), 2 * max_loops
        losses = held_out_losses(model, config.loss(), corruption, *measured, loops=loops, **counts)
        by_exit = LossByExit.of(losses, max_loops=max_loops)
        compare = functools.partial(config.compare_exits, model, corruption, loops=loops, settings=generator.settings)
        exits = held_out_exits(compare, *measured, **counts)
        rows = [
            {"exit": row["exit"], "heldout_loss": loss} | row
            for row, loss in zip(exits.rows(), np.asarray(losses).tolist(), strict=True)
        ]
        write_csv(folder / "exits.csv", rows)
        plot_exits(folder / "exits.png", np.asarray(losses).tolist(), exits, max_loops=max_loops)
        past = f"{by_exit.degradation:+.1%} at worst"
        text += [f"Held-out loss by exit\n\n{by_exit}", f"Past L_max the loss changes by {past}.", f"Exits\n\n{exits}"]
    labels = jnp.arange(_PICTURED) % config.num_classes
    sampler = generator.sampler()
    norms = sampling_update_norms(generator.model, sampler, labels, loops=2 * max_loops, budget=max_loops, key=key)
    absolute, relative = (np.asarray(jnp.mean(each, axis=1)) for each in norms)
    write_csv(
        folder / "update_norms.csv",
        [
            {"step": step + 1, "loop": loop + 1, "absolute": float(value), "relative": float(relative[step, loop])}
            for (step, loop), value in np.ndenumerate(absolute)
        ],
    )
    plot_update_norms(folder / "update_norms.png", relative, max_loops=max_loops)
    save_exits(folder / "samples.png", generator, labels, key=key)
    # Last, so that it vouches for the rest.
    write_json(summary, {"text": "\n\n".join(text), "heldout": used})
    return "\n\n".join(text)


def heldout_task(generator: Generator, heldout: AbstractSource, examples: int) -> Task:
    """The parts that a generator was trained with, on data that it has not seen.

    **Raises:** `ValueError` if the data do not fit, with every difference.
    """
    config = generator.config
    task = make_task(
        config,
        heldout,
        first_examples(heldout, examples),
        representation_of(generator.tokenizer),
        data="held-out data",
        tokenizer=generator.tokenizer,
    )
    mine, theirs = config.to_dict(), task.config.to_dict()
    different = [f"its {name} is {mine[name]}, theirs {theirs[name]}" for name in mine if mine[name] != theirs[name]]
    if different:
        raise ValueError(
            f"The held-out data do not fit the model: {'; '.join(different)}. Give data such as it was trained on, or "
            "`--no-diagnostics`."
        )
    return task


def save_exits(path: Path, generator: Generator, labels: jax.Array, *, key: jax.Array) -> None:
    """Writes a picture of the same samples at every loop count up to L_max, and two past it."""
    max_loops = generator.config.max_loops
    counts = loop_counts(max_loops)
    samples = sample_at_exits(generator.model, generator.sampler(), labels, exits=counts, key=key)
    pixels = jax.lax.map(jax.vmap(generator.decode), samples)
    rows = {f"L = {loops}": np.asarray(row) for loops, row in zip(counts, pixels, strict=True)}
    title = f"one model, trained for {max_loops} loops, sampled with L"
    save_grid(path, rows, labels.tolist(), title=title)
