from typing import Any

import equinox as eqx
import jax
import numpy as np

from ..figures import save_reconstructions
from ..recipes import TokenizerData, TokenizerOptions, TrainedTokenizer, heldout_batches
from ..storage import write_json
from ..tokenizer_training import TokenizerQuality, evaluate_tokenizer
from ..tokenizers import save_tokenizer


def report_tokenizer(options: TokenizerOptions, data: TokenizerData, trained: TrainedTokenizer) -> TokenizerQuality:
    """Measures a trained tokenizer on held-out data, and leaves it in the run's folder.

    It writes the tokenizer (`tokenizer`), held-out pictures above their reconstructions (`reconstructions.png`) and
    `summary.json`.

    **Returns:** the quality on held-out data.
    """
    folder, tokenizer = options.folder, trained.tokenizer
    quality = evaluate_tokenizer(tokenizer, heldout_batches(options, data.heldout))
    shown = 6 if options.video else 16
    originals = np.asarray(next(heldout_batches(options, data.heldout)).examples)[:shown]
    reconstruct = eqx.filter_jit(jax.vmap(lambda pixels: tokenizer.decode(tokenizer.encode(pixels))))
    save_reconstructions(folder / "reconstructions.png", originals, np.asarray(reconstruct(originals)))
    summary: dict[str, Any] = {
        "config": options.defining(),
        "heldout": quality._asdict(),
        "seconds_per_step": trained.seconds_per_step,
        "device": str(jax.devices()[0]),
    }
    write_json(folder / "summary.json", summary)
    save_tokenizer(folder / "tokenizer", tokenizer, metadata=summary, overwrite=True)
    return quality
