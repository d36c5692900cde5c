"""Reading data: examples per second and core, beside a PyTorch `DataLoader` that does the same work on the same files.

    pip install -e '.[data,parity]'
    python benchmarks/data.py --csv benchmarks/results/data.csv            # all files are made here
    python benchmarks/data.py --only images --images imagenet/val          # or those of a folder of class folders
    python benchmarks/data.py --only clips --videos UCF-101

Requirements: at least 1.5 times the DataLoader on ordinary JPEGs of 500 × 375, and an exact mode whose crops equal
ADM's, 0 grey levels apart; at least 50,000 precomputed examples per second and core; and a training loop that waits for
these less than 2% of its time.

Both sides of a comparison run in this process, without workers, on one core, and take turns, see `throughput.py`. The
sections are the files `data_*.py`.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import data_clips
import data_images
import data_tokens
import data_wait
from timing import write_csv

from elt_zoo.profile import environment

PACKAGES = ("torch", "pillow", "av")


def show(row: dict[str, Any]) -> None:
    """Prints what a row has."""
    line = f"{row['case']:52}"
    if "ratio" in row:
        rates = "".join(f"{row[side]:10,.0f}/s" for side in ("ours_per_second", "baseline_per_second"))
        line += f"{rates}{row['ratio']:8.2f} ({row['ratio_low']:.2f} to {row['ratio_high']:.2f})"
    if "mean_difference" in row:
        line += f"  grey levels: {row['mean_difference']:.2f} on average, {row['max_difference']} at most"
    if "data_wait" in row:
        line += f"  waited {row['data_wait']:.2%} of steps of {row['step_ms']:.0f} ms"
    print(line, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, help="a folder of class folders of images, instead of JPEGs made here")
    parser.add_argument("--videos", type=Path, help="a folder of class folders of videos, instead of some made here")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", choices=["images", "clips", "tokens", "wait"], nargs="+", help="these sections")
    parser.add_argument("--csv", type=Path, help="also write the table here")
    arguments = parser.parse_args()
    rounds = arguments.rounds
    sections: dict[str, Callable[[], list[dict[str, Any]]]] = {
        "images": lambda: data_images.rows(arguments.images, rounds=rounds),
        "clips": lambda: data_clips.rows(arguments.videos, rounds=rounds),
        "tokens": lambda: data_tokens.rows(rounds=rounds),
        "wait": data_wait.rows,
    }
    # This also starts JAX while all cores may be used, which training does.
    print(f"{environment(*PACKAGES)}; medians and quartiles of {rounds} rounds")
    print(f"{'':52}{'elt_zoo':>12}{'DataLoader':>12}{'ratio':>8}")
    table = []
    for name in arguments.only or sections:
        for row in sections[name]():
            show(row)
            table.append(row)
    write_csv(arguments.csv, table, *PACKAGES)


if __name__ == "__main__":
    main()
