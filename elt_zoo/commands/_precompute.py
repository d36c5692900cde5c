import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import jax
import numpy as np
from tqdm import tqdm

from ..data import (
    ShardIndex,
    ShardOptions,
    ShardProgress,
    UnreadableLog,
    Views,
    decode_image,
    pack_images,
)
from ..data import precompute as write_shards
from ..distributed import gather, is_first
from ..recipes import Split, open_source
from ..sharding import data_mesh, replicate, shard_batch
from ..tokenizers import VQ3D, AutoencoderKL, GreyLevels, MaskGITVQGAN, PatchCodebook, load_tokenizer
from ..training import stop_on_signals
from ._processes import ProcessOptions


@dataclasses.dataclass(frozen=True, kw_only=True)
class PrecomputeOptions(ProcessOptions):
    """Encode a data set once, so that training reads tokens or latents and not pictures."""

    data: str
    """`digits`, `moving-digits`, `cifar10`, `mnist`, or the path of images or videos."""
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
    """To share the work among commands that know nothing of each other: the number of this one."""
    process_count: int = 1
    """How many such commands share the work."""

    def __post_init__(self):
        for name in ("size", "batch_size", "shard_size", "process_count"):
            if getattr(self, name) < 1:
                raise ValueError(f"`--{name.replace('_', '-')} {getattr(self, name)}` must be at least 1.")
        if self.workers is not None and self.workers < 1:
            raise ValueError(f"`--workers {self.workers}` must be at least 1.")
        if self.max_unreadable < 0:
            raise ValueError(f"`--max-unreadable {self.max_unreadable}` must be 0 or more.")
        if not 0 <= self.process_index < self.process_count:
            raise ValueError(f"`--process-index {self.process_index}` must be in [0, {self.process_count}).")
        if not 1.0 <= self.margin < math.inf:
            raise ValueError(f"`--margin {self.margin}` must be at least 1.")


def precompute(options: PrecomputeOptions) -> None:
    """`elt-zoo precompute`."""
    options.start()
    if jax.process_count() == 1:
        index, _ = write(options, options.process_index, options.process_count)
    else:
        if options.process_count > 1:
            raise ValueError(
                f"`--process-count {options.process_count}` is for commands that know nothing of each other. These "
                f"{jax.process_count()} processes share the work by themselves: leave it out."
            )
        # No process waits for another on the way, so that a failure is said, and ends all, at once.
        index, stopped = write(options, jax.process_index(), jax.process_count())
        stopped = any(gather("stopped" if stopped else ""))
        if not is_first():
            return
        if index is None and not stopped:
            index, _ = write(options, 0, jax.process_count())  # it takes the index: others have written the rest
    report(index)


def write(options: PrecomputeOptions, process_index: int, process_count: int) -> tuple[ShardIndex | None, bool]:
    """Writes the shards of one process. Returns the index if all are there, and whether a signal came."""
    with stop_on_signals() as stop, progress_bar() as on_progress:
        shards = ShardOptions(
            shard_size=options.shard_size,
            workers=options.workers,
            process_index=process_index,
            process_count=process_count,
            description={"data": Path(options.data).name, "split": options.split},
            unreadable=UnreadableLog(options.max_unreadable),
            on_progress=on_progress if is_first() else None,
            stop=stop,
        )
        index = pack(options, shards) if options.tokenizer is None else encode(options, options.tokenizer, shards)
        return index, stop.is_set()


def report(index: ShardIndex | None) -> None:
    """Says what was written."""
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


def encode(options: PrecomputeOptions, folder: Path, shards: ShardOptions) -> ShardIndex | None:
    """Shards of tokens or latents."""
    mesh = data_mesh(jax.local_devices())
    tokenizer = load_tokenizer(folder)
    frames, size = None, options.size
    match tokenizer:
        case VQ3D():
            frames, size, _ = tokenizer.config.shape
        case MaskGITVQGAN():
            size = tokenizer.config.image_size
        case AutoencoderKL():
            pass
        case PatchCodebook() | GreyLevels():
            *of_clips, size, _, _ = tokenizer.shape
            frames = of_clips[0] if of_clips else None
    views = Views(options.views)
    # Whole examples on every device.
    batch_size = max(options.batch_size // views.count, 1) * views.count * mesh.size
    larger = int(options.margin * size) if views is Views.TEN_CROPS else size
    source = open_source(options.data, split=options.split, size=larger, frames=frames, exact=True)
    return write_shards(
        source,
        replicate(tokenizer, mesh),
        options.out,
        size=size,
        views=views,
        dtype=np.dtype(options.dtype),
        batch_size=batch_size,
        put=lambda batch: shard_batch(batch, mesh),
        options=shards,
    )


def pack(options: PrecomputeOptions, shards: ShardOptions) -> ShardIndex | None:
    """Shards of image files."""
    source = open_source(options.data, split=options.split, size=options.size)
    return pack_images(source, options.out, check=decode_image, options=shards)
