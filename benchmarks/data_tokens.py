"""Precomputed tokens, beside a memory-mapped array: the section `tokens` of `data.py`.

Both sides shuffle, draw one of two views of 16 × 16 ids for each example, and collate batches. Both find their files in
the operating system's cache.
"""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch  # pyright: ignore[reportMissingImports]
from throughput import compare_streams, endless

from elt_zoo.data import ShardedTokens, ShardPlan, ShardWriter, Views, training_batches

SIDE, CODES, CLASSES = 16, 1024, 1000
BATCH = 256


def random_tokens(examples: int) -> tuple[np.ndarray, np.ndarray]:
    """Ids of two views, and labels."""
    ids = np.random.default_rng(0).integers(0, CODES, (examples, Views.FLIP.count, SIDE, SIDE))
    return ids.astype(np.uint16), np.arange(examples) % CLASSES


def write_tokens(folder: Path, ids: np.ndarray, labels: np.ndarray) -> ShardedTokens:
    """Shards of ids that are there already."""
    plan = ShardPlan(
        kind="tokens",
        fields={"ids": ("<u2", ids.shape[1:])},
        class_names=tuple(map(str, range(CLASSES))),
        examples=len(ids),
        shard_size=8192,
        views=Views.FLIP,
        codebook_size=CODES,
    )
    records = np.zeros(len(ids), plan.record)
    records["ids"], records["label"] = ids, labels
    writer = ShardWriter(folder, plan)
    for number in range(plan.num_shards):
        rows = plan.rows(number)
        writer.write(number, (record.tobytes() for record in records[rows.start : rows.stop]), {})
    writer.finish()
    return ShardedTokens(folder)


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
        ids, labels = random_tokens(examples)
        source = write_tokens(Path(scratch) / "shards", ids, labels)
        np.save(Path(scratch) / "ids.npy", ids)
        dataset = MappedTokens(Path(scratch) / "ids.npy", labels)
        loader = torch.utils.data.DataLoader(dataset, batch_size=BATCH, shuffle=True, drop_last=True)
        ours = training_batches(source, batch_size=BATCH, seed=0, workers=0)
        case = f"tokens, {SIDE} × {SIDE} in {Views.FLIP.count} views"
        return [compare_streams(case, ours, endless(loader), batches=batches, batch_size=BATCH, rounds=rounds)]
