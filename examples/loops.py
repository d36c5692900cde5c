"""What the loops of a saved model do, as tables and pictures: loss and answers of every exit on held-out data, how far
each loop moves the state, and the same samples at every exit.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from cells import read_json, write_json
from measure import heldout_losses
from pictures import save_clip_grid, save_sample_grid
from plots import plot_exits, plot_update_norms
from results import write_csv
from tasks import Representation, Task, as_latents, as_pixels, as_tokens, make_task

from elt_zoo.corruption import DiffusionCorruption, MaskedCorruption
from elt_zoo.data import AbstractSource, first_examples
from elt_zoo.diagnostics import LossByExit, diffusion_exits, sample_at_exits, sampling_update_norms, token_exits
from elt_zoo.generator import LoadedModel
from elt_zoo.sampling import DiffusionSampler, MaskedSampler
from elt_zoo.tokenizers import AutoencoderKL

_SUMMARY = "loops.json"
_PICTURED = 10


def report_loops(
    folder: Path,
    loaded: LoadedModel,
    sampler: DiffusionSampler | MaskedSampler,
    settings: Any,
    *,
    heldout: AbstractSource | None,
    examples: int,
    copies: int,
    batch: int,
    seed: int,
) -> str:
    """Writes tables and pictures of all exits up to 2·L_max, unless those of the same data are there. Returns
    what they say in words.

    **Arguments:** `sampler`, `settings`: how samples are drawn; `heldout`: data that the model has not seen, whose
    first `examples` are corrupted `copies` times over, `batch` at a time; `None` leaves their measures out.

    **Raises:** `ValueError` if the data do not fit the model.
    """
    summary = folder / _SUMMARY
    used = None if heldout is None else [heldout.name(0), len(heldout), examples, copies, batch]
    if summary.exists() and (saved := read_json(summary))["heldout"] == used:
        return saved["text"]
    folder.mkdir(parents=True, exist_ok=True)
    max_loops = loaded.config.max_loops
    text = []
    if heldout is not None:
        task = heldout_task(loaded, heldout, settings, examples)
        losses = heldout_losses(loaded.model, task, copies=copies, batch=batch)
        by_exit = LossByExit.of(np.asarray(losses), max_loops=max_loops)
        exits = compare_exits(loaded, task, copies=copies, batch=batch, clip_x0=settings.clip_x0, seed=seed)
        rows = exit_rows(losses, exits)
        write_csv(folder / "exits.csv", rows)
        plot_exits(folder / "exits.png", rows, max_loops=max_loops)
        past = f"{by_exit.degradation:+.1%} at worst"
        text += [f"Held-out loss by exit\n\n{by_exit}", f"Past L_max the loss changes by {past}.", f"Exits\n\n{exits}"]
    key = jax.random.key(seed)
    labels = jnp.arange(_PICTURED) % loaded.config.num_classes
    norms = sampling_update_norms(loaded.model, sampler, labels, loops=2 * max_loops, budget=max_loops, key=key)
    absolute, relative = (np.asarray(jnp.mean(each, axis=1)) for each in norms)
    write_csv(
        folder / "update_norms.csv",
        [
            {"step": step + 1, "loop": loop + 1, "absolute": float(value), "relative": float(relative[step, loop])}
            for (step, loop), value in np.ndenumerate(absolute)
        ],
    )
    plot_update_norms(folder / "update_norms.png", relative, max_loops=max_loops)
    save_exits(folder / "samples.png", loaded, sampler, labels, key=key)
    # Last, so that it vouches for the rest.
    write_json(summary, {"text": "\n\n".join(text), "heldout": used})
    return "\n\n".join(text)


def heldout_task(loaded: LoadedModel, heldout: AbstractSource, settings: Any, examples: int) -> Task:
    """The parts that the model was trained with, on data that it has not seen."""
    task = make_task(
        loaded.config,
        heldout,
        first_examples(heldout, examples),
        representation_of(loaded),
        settings=settings,
        tokenizer=loaded.tokenizer,
    )
    if task.model != loaded.config:
        fields = (field.name for field in dataclasses.fields(task.model))
        different = [name for name in fields if getattr(task.model, name) != getattr(loaded.config, name)]
        raise ValueError(
            "The held-out data do not fit the model: "
            + "; ".join(
                f"its {name} is {getattr(loaded.config, name)}, theirs {getattr(task.model, name)}"
                for name in different
            )
            + ". Give data such as it was trained on, or `--no-diagnostics`."
        )
    return task


def representation_of(loaded: LoadedModel) -> Representation:
    """How held-out examples become what the model sees."""
    tokenizer = loaded.tokenizer
    if tokenizer is None:
        return as_pixels()
    if isinstance(tokenizer, AutoencoderKL):
        return as_latents(tokenizer, tokenizer.config.scaling_factor)
    return as_tokens(tokenizer, tokenizer.codebook_size)


def compare_exits(loaded: LoadedModel, task: Task, *, copies: int, batch: int, clip_x0: float | None, seed: int) -> Any:
    """What the exits say about the same corrupted examples, and what each loop changes: sums over all batches."""
    loops, count = 2 * loaded.config.max_loops, len(task.heldout.labels)
    batch = min(batch, count)
    corruption = task.corruption(0.0)
    total: Any = None
    for copy in range(copies):
        for start in range(0, count - batch + 1, batch):
            part = tuple(leaf[start : start + batch] for leaf in task.heldout)
            key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), copy), start)
            if isinstance(corruption, MaskedCorruption):
                sums = token_exits(loaded.model, corruption, *part, loops=loops, key=key)
            else:
                assert isinstance(corruption, DiffusionCorruption)
                sums = diffusion_exits(loaded.model, corruption, *part, loops=loops, clip_x0=clip_x0, key=key)
            total = sums if total is None else total + sums
    return total


def exit_rows(losses: Sequence[float], exits: Any) -> list[dict[str, Any]]:
    """One row for each exit; what compares it with the exit before is empty for the first."""
    masked = hasattr(exits, "flips")
    if masked:
        columns = {"accuracy": exits.accuracy, "forgotten": exits.forgotten, "same_as_last": exits.agreement[:, -1]}
        changes = {"agreement_with_previous": 1.0 - exits.flips, "flips": exits.flips, "kl": exits.divergence}
    else:
        columns = {"rms_error": exits.rms_error, "best_of_all": exits.best}
        changes = {"rms_change": exits.rms_change}
    changes |= {"self_correction": exits.self_correction, "overthinking": exits.overthinking}
    rows = []
    for index, loss in enumerate(losses):
        row: dict[str, Any] = {"exit": index + 1, "heldout_loss": loss}
        row |= {name: float(values[index]) for name, values in columns.items()}
        row |= {name: float(values[index - 1]) if index else "" for name, values in changes.items()}
        rows.append(row)
    return rows


def save_exits(path: Path, loaded: LoadedModel, sampler: Any, labels: jax.Array, *, key: jax.Array) -> None:
    """The same samples at every loop count up to L_max, and two past it."""
    max_loops, tokenizer = loaded.config.max_loops, loaded.tokenizer
    counts = [*range(1, max_loops + 1), max_loops + max(max_loops // 2, 1), 2 * max_loops]
    drawn = sample_at_exits(loaded.model, sampler, labels, exits=counts, key=key)
    pixels = drawn if tokenizer is None else jax.lax.map(jax.vmap(tokenizer.decode), drawn)
    rows = {f"L = {loops}": np.asarray(row) for loops, row in zip(counts, pixels, strict=True)}
    save = save_clip_grid if pixels.ndim == 6 else save_sample_grid
    save(path, rows, labels.tolist(), title=f"one model, trained for {max_loops} loops, drawn with L")
