"""Encode a data set once, so that training reads tokens or latents and not pictures.

    python examples/precompute.py --data /data/imagenet --tokenizer models/maskgit-vqgan --views ten_crops --out tokens
    python examples/precompute.py --data /data/imagenet --tokenizer models/sd-vae --out latents
    python examples/precompute.py --data /data/ucf101 --tokenizer models/vq3d --views one --out video-tokens
    python examples/precompute.py --data /data/imagenet --out images

Tokenizers are folders that `examples/convert.py` or `elt_zoo.tokenizers.save_tokenizer` wrote; what comes of them,
ids or means and log-variances, is theirs to say. Without a tokenizer the image files themselves are packed. Stop it at
any time with Ctrl-C and run the same command again to resume.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import jax
import numpy as np
import tyro
from datasets import Split, open_source
from tqdm import tqdm

from elt_zoo.data import (
    ShardIndex,
    ShardOptions,
    ShardProgress,
    UnreadableLog,
    Views,
    decode_image,
    pack_images,
    precompute,
)
from elt_zoo.sharding import data_mesh, replicate, shard_batch
from elt_zoo.storage import FolderLocked, WeightsError
from elt_zoo.tokenizers import VQ3D, AutoencoderKL, GreyLevels, MaskGITVQGAN, PatchCodebook, load_tokenizer
from elt_zoo.training import stop_on_signals


@dataclasses.dataclass(frozen=True)
class Config:
    """Encode a data set once, so that training reads tokens or latents and not pictures."""

    data: str
    """`digits`, `moving-digits`, or the path of images or videos."""
    out: Path
    """The folder of shards to write, or to go on with."""
    tokenizer: Path | None = None
    """The folder of a tokenizer or an autoencoder; without one, image files are packed as they are."""
    split: Split = "train"
    """Where the data has one."""
    size: int = 256
    """Height and width of images for an autoencoder; other tokenizers have one size."""
    views: Literal["one", "flip", "ten_crops"] = "flip"
    """Of each example, to draw from in training."""
    margin: float = 1.1
    """How much larger than the crop the pictures for ten crops are."""
    dtype: Literal["float16", "float32"] = "float16"
    """Of means and log-variances."""
    batch_size: int = 64
    """Views to encode at once on each device."""
    shard_size: int = 8192
    """Examples of a file."""
    workers: int | None = None
    """Threads that read; by default one for each core, 16 at most."""
    max_unreadable: int = 100
    """Examples that may be unreadable before it gives up."""
    process_index: int = 0
    """To share the work among processes: the number of this one."""
    process_count: int = 1
    """How many share the work."""


def main(config: Config) -> None:
    with stop_on_signals() as stop, progress_bar() as on_progress:
        options = ShardOptions(
            shard_size=config.shard_size,
            workers=config.workers,
            process_index=config.process_index,
            process_count=config.process_count,
            description={"data": Path(config.data).name, "split": config.split},
            unreadable=UnreadableLog(config.max_unreadable),
            on_progress=on_progress,
            stop=stop,
        )
        index = pack(config, options) if config.tokenizer is None else encode(config, config.tokenizer, options)
    if index is None:
        print("Not complete yet. Run the same command again to resume.")
        return
    print(
        f"{len(index)} examples ({index.kind}) in {index.num_shards} shards of {index.num_bytes / 1e6:.1f} MB in all."
    )
    for name, reason in index.skipped.items():
        print(f"skipped {name}: {reason}")


@contextlib.contextmanager
def progress_bar() -> Iterator[Callable[[ShardProgress], None]]:
    """A bar that appears with the first report. What earlier runs did is in it, but does not count as speed."""
    bar = None

    def show(progress: ShardProgress) -> None:
        nonlocal bar
        if bar is None:
            bar = tqdm(total=progress.total, initial=progress.done, unit="example")
        bar.set_postfix(skipped=progress.skipped, refresh=False)
        bar.update(progress.done - bar.n)

    try:
        yield show
    finally:
        if bar is not None:
            bar.close()


def encode(config: Config, folder: Path, options: ShardOptions) -> ShardIndex | None:
    """Shards of tokens or latents."""
    mesh = data_mesh(jax.local_devices())
    tokenizer = load_tokenizer(folder)
    frames, size = None, config.size
    match tokenizer:
        case VQ3D():
            frames, size, _ = tokenizer.config.shape
        case MaskGITVQGAN():
            size = tokenizer.config.image_size
        case AutoencoderKL():
            pass
        case PatchCodebook() | GreyLevels():
            size = tokenizer.shape[0]
    views = Views(config.views)
    # Whole examples on every device.
    batch_size = max(config.batch_size // views.count, 1) * views.count * mesh.size
    larger = int(config.margin * size) if views is Views.TEN_CROPS else size
    source = open_source(config.data, split=config.split, size=larger, frames=frames, exact=True)
    return precompute(
        source,
        replicate(tokenizer, mesh),
        config.out,
        size=size,
        views=views,
        dtype=np.dtype(config.dtype),
        batch_size=batch_size,
        put=lambda batch: shard_batch(batch, mesh),
        options=options,
    )


def pack(config: Config, options: ShardOptions) -> ShardIndex | None:
    """Shards of image files."""
    source = open_source(config.data, split=config.split, size=config.size)
    return pack_images(source, config.out, check=decode_image, options=options)


if __name__ == "__main__":
    try:
        main(tyro.cli(Config, description=__doc__))
    except (ValueError, OSError, WeightsError, FolderLocked) as error:
        raise SystemExit(f"error: {error}") from None
