import dataclasses
import time
from pathlib import Path

import jax

from ..distributed import is_first, together
from ..evaluation import report_tokenizer
from ..families import ModelConfig
from ..recipes import (
    MOVING_DIGITS,
    Run,
    TokenizerOptions,
    TrainingOptions,
    clip_task,
    open_tokenizer_data,
    time_tokenizer,
    time_training,
    where_to_watch,
)
from ..recipes import train_tokenizer as train_run
from ..tokenizers import AbstractTokenizer, load_tokenizer
from ._processes import ProcessOptions


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainTokenizerOptions(ProcessOptions, TokenizerOptions):
    """Train a tokenizer with a learned codebook, a VQGAN for images or a 3D-VQ for clips, and measure it."""


def train_tokenizer(options: TokenizerOptions) -> None:
    """`elt-zoo train-tokenizer`."""
    started = time.perf_counter()
    if isinstance(options, ProcessOptions):
        options.start()
    data = together(lambda: open_tokenizer_data(options))
    if is_first():
        print(where_to_watch(options.folder), flush=True)
    trained = train_run(options, data)
    if not is_first():
        return
    if not trained.finished:
        print(f"Stopped on request; the state is saved. Run the same command again to resume {options.folder}.")
        return
    quality = report_tokenizer(options, data, trained)
    print(
        f"Held out ({quality.examples} examples): PSNR {quality.psnr:.2f} dB, {quality.usage:.0%} of "
        f"{trained.tokenizer.codebook_size} codes used, perplexity {quality.perplexity:.1f}.\n"
        f"Tokens: {' × '.join(map(str, trained.tokenizer.grid))} for each example. The tokenizer is in "
        f"{options.folder / 'tokenizer'} ({time.perf_counter() - started:.0f} s)."
    )


def tokenizer_for_moving_digits(options: TrainingOptions, model: ModelConfig) -> AbstractTokenizer | None:
    """The 3D-VQ of moving digits, trained first if it is not there, in a folder beside the run's; `None` if that was
    asked to stop. Before anything is trained, it prints which trainings follow and how long each takes on this machine.

    **Arguments:** `options`: of the generator's training; `model`: its config.
    """
    name = f"{MOVING_DIGITS}-vq"
    folder = Path("runs") / name if options.out is None else options.out.with_name(name)
    tokenizer = TokenizerOptions(data=MOVING_DIGITS, out=folder, seed=options.seed, wandb=options.wandb)
    finished = folder / "tokenizer"
    if not folder.exists():
        print("Timing the first steps of each training …", flush=True)
        print(what_follows(options, model, tokenizer), flush=True)
    if not finished.exists():
        train_tokenizer(tokenizer)
    return load_tokenizer(finished) if finished.exists() else None  # pyright: ignore[reportReturnType]


def what_follows(options: TrainingOptions, model: ModelConfig, tokenizer: TokenizerOptions) -> str:
    """Which trainings moving digits take, and how long each lasts here, from their first steps."""
    first = time_tokenizer(tokenizer, open_tokenizer_data(tokenizer))
    # Steps take no longer with the tokens of a trained tokenizer than with those of a fresh one.
    network = tokenizer.network.build(key=jax.random.key(0))
    task = clip_task(
        model, MOVING_DIGITS, tokenizer=network, clips=options.batch_size, heldout=1, settings=options.sampler.given
    )
    others = time_training(Run.of(options, task))
    lines = [
        f"  {each.name:<10} {each.steps:>6,} steps of {each.batch_size} clips: about {_minutes(each.seconds)}"
        for each in (first, *others)
    ]
    beside = " The last two run side by side." if len(others) > 1 else ""
    total = _minutes(sum(each.seconds for each in (first, *others)))
    return "\n".join(
        [
            f"{len(lines)} trainings follow. On this machine they take",
            *lines,
            f"and together at most about {total}.{beside}",
        ]
    )


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
