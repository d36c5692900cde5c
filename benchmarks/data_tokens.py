"""Precomputed tokens, beside a memory-mapped array: the section `tokens` of `data.py`.

Both sides shuffle, draw one of two views of 16 × 16 ids for each example, and collate batches. Both find their files in
the operating system's cache.
"""

import tempfile
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import torch  # pyright: ignore[reportMissingImports]
from throughput import compare_streams, endless

from elt_zoo.data import AbstractSource, Images, ShardedTokens, Views, Visit, precompute, training_batches

SIDE, CODES, CLASSES = 16, 1024, 1000
BATCH = 256


class SpelledCodes(AbstractSource):
    """Images whose pixels spell random ids: the lower byte in red, the upper one in green."""

    class_names = tuple(map(str, range(CLASSES)))
    in_memory = True

    def __init__(self, examples: int):
        self.ids = np.random.default_rng(0).integers(0, CODES, (examples, SIDE, SIDE)).astype(np.uint16)

    def __len__(self) -> int:
        return len(self.ids)

    def name(self, index: int) -> str:
        return f"image {index}"

    def read(self, visit: Visit) -> Images:
        ids = self.ids[visit.index]
        pixels = np.stack([ids % 256, ids // 256], axis=-1).astype(np.uint8)
        return Images(pixels, np.asarray(visit.index % CLASSES, np.int32))


class Reader(eqx.Module):
    """The tokenizer that reads them."""

    codebook_size: int = eqx.field(static=True, default=CODES)

    def encode(self, image: jax.Array) -> jax.Array:
        red, green = jnp.moveaxis(jnp.rint(127.5 * image + 127.5).astype(jnp.int32), -1, 0)
        return red + 256 * green


class MappedTokens(torch.utils.data.Dataset):
    """What most PyTorch code does with precomputed codes (DiT, LlamaGen)."""

    def __init__(self, file: Path, labels: np.ndarray):
        self.ids = np.load(file, mmap_mode="r")
        self.labels = labels

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        view = int(torch.randint(self.ids.shape[1], ()))
        return torch.from_numpy(self.ids[index, view].astype(np.int32)), self.labels[index]


def rows(examples: int = 100_000, *, batches: int = 100, rounds: int) -> list[dict[str, Any]]:
    """One row."""
    with tempfile.TemporaryDirectory() as scratch:
        codes = SpelledCodes(examples)
        precompute(codes, Reader(), Path(scratch) / "shards", size=SIDE, batch_size=2048)
        source = ShardedTokens(Path(scratch) / "shards")
        np.save(Path(scratch) / "ids.npy", np.stack([codes.ids, codes.ids[..., ::-1]], axis=1))
        dataset = MappedTokens(Path(scratch) / "ids.npy", np.arange(examples) % CLASSES)
        loader = torch.utils.data.DataLoader(dataset, batch_size=BATCH, shuffle=True, drop_last=True)
        ours = training_batches(source, batch_size=BATCH, seed=0, workers=0)
        case = f"tokens, {SIDE} × {SIDE} in {Views.FLIP.count} views"
        return [compare_streams(case, ours, endless(loader), batches=batches, batch_size=BATCH, rounds=rounds)]
