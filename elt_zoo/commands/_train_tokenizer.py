import dataclasses
import time

from ..evaluation import report_tokenizer
from ..recipes import TokenizerOptions, open_tokenizer_data, where_to_watch
from ..recipes import train_tokenizer as train_run
from ..tokenizers import AbstractTokenizer, load_tokenizer


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainTokenizerOptions(TokenizerOptions):
    """Train a tokenizer with a learned codebook, a VQGAN for images or a 3D-VQ for clips, and measure it."""


def train_tokenizer(options: TokenizerOptions) -> None:
    """`elt-zoo train-tokenizer`."""
    started = time.perf_counter()
    data = open_tokenizer_data(options)
    print(where_to_watch(options.folder), flush=True)
    trained = train_run(options, data)
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


def tokenizer_for_moving_digits(options: TokenizerOptions) -> AbstractTokenizer | None:
    """The 3D-VQ of moving digits, trained first if it is not there; `None` if that was asked to stop."""
    folder = options.folder / "tokenizer"
    if not folder.exists():
        train_tokenizer(options)
    return load_tokenizer(folder) if folder.exists() else None  # pyright: ignore[reportReturnType]
