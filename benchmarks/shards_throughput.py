"""Precomputed tokens through `training_batches`, beside a PyTorch DataLoader over the same tokens in a memory-mapped
array, on one thread each.

    taskset -c 0 python benchmarks/shards_throughput.py --csv shards.csv

Requirement: at least 50,000 examples per second and core; seconds are those of the processor. Both sides shuffle, draw
one of two views of 16 × 16 ids for each example, and collate batches of 256. Both find their files in the operating
system's cache. Without PyTorch its columns are left out.
"""

import argparse
import importlib.util
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from timing import environment, write_csv

from elt_zoo.data import ShardedTokens, ShardPlan, ShardWriter, Views, training_batches

SIDE, CODES, CLASSES, BATCH = 16, 1024, 1000, 256


def write_tokens(folder: Path, ids: np.ndarray, labels: np.ndarray) -> None:
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


def endless(loader: Any) -> Iterator[Any]:
    """Epoch after epoch of a DataLoader."""
    while True:
        yield from loader


def torch_batches(folder: Path, ids: np.ndarray, labels: np.ndarray) -> Iterator[Any]:
    """The other side: what most PyTorch code does with precomputed codes (DiT, LlamaGen)."""
    import torch  # pyright: ignore[reportMissingImports]

    np.save(folder / "ids.npy", ids)
    mapped = np.load(folder / "ids.npy", mmap_mode="r")

    class Codes(torch.utils.data.Dataset):
        def __len__(self):
            return len(mapped)

        def __getitem__(self, index):
            view = int(torch.randint(mapped.shape[1], ()))
            return torch.from_numpy(mapped[index, view].astype(np.int32)), labels[index]

    torch.set_num_threads(1)
    return endless(torch.utils.data.DataLoader(Codes(), batch_size=BATCH, shuffle=True, drop_last=True, num_workers=0))


def examples_per_second(batches: Iterator[Any], count: int) -> float:
    """Of `count` batches, per second of the processor: what one core does, also on a machine that is shared."""
    started = time.process_time()
    for _ in range(count):
        next(batches)
    return count * BATCH / (time.process_time() - started)


def rows(examples: int = 100_000, rounds: int = 7, batches: int = 100) -> list[dict[str, Any]]:
    """One row: examples per second of both sides, medians of rounds in turn."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ids = np.random.default_rng(0).integers(0, CODES, (examples, Views.FLIP.count, SIDE, SIDE)).astype(np.uint16)
        labels = np.arange(examples) % CLASSES
        write_tokens(folder / "shards", ids, labels)
        source = ShardedTokens(folder / "shards")
        ours = training_batches(source, batch_size=BATCH, seed=0, workers=0)
        theirs = None
        if importlib.util.find_spec("torch"):
            theirs = torch_batches(folder, ids, labels)
        speeds = []
        for index in range(rounds + 1):
            order = [side for side in (ours, theirs)[:: 1 if index % 2 else -1] if side is not None]
            speeds.append({id(side): examples_per_second(side, batches) for side in order})
    speeds = speeds[1:]  # the first opens files
    mine = sorted(speed[id(ours)] for speed in speeds)
    row: dict[str, Any] = {
        "case": f"tokens {SIDE} x {SIDE}, 2 views, batches of {BATCH}, one thread",
        "rounds": rounds,
        "examples_per_second": statistics.median(mine),
        "low": mine[rounds // 4],
        "high": mine[3 * rounds // 4],
    }
    if theirs is not None:
        ratios = sorted(speed[id(ours)] / speed[id(theirs)] for speed in speeds)
        row |= {
            "torch_examples_per_second": statistics.median(speed[id(theirs)] for speed in speeds),
            "ratio": statistics.median(ratios),
            "ratio_low": ratios[rounds // 4],
            "ratio_high": ratios[3 * rounds // 4],
        }
    return [row]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--csv", type=Path, help="also write the table here")
    arguments = parser.parse_args()
    print(environment())
    table = rows(arguments.examples, arguments.rounds)
    print(json.dumps(table, indent=2))
    write_csv(arguments.csv, table)


if __name__ == "__main__":
    main()
