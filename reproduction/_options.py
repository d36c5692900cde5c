"""What the commands of the reproduction have in common."""

import argparse
import os
from pathlib import Path

from ._data import CLASSES
from ._train import Settings

ROOT = Path(__file__).parents[1]


def add_options(parser: argparse.ArgumentParser, *, runs: str) -> None:
    """Options of any study. `runs`: the folder of its runs."""
    defaults = Settings()
    parser.add_argument("--mnist", type=Path, help="the folder of t10k-images-idx3-ubyte.gz and its labels")
    parser.add_argument("--cifar10", help="CIFAR-10: its official files, or a folder or archive of its images by class")
    parser.add_argument("--dim", type=int, default=defaults.dim, help="width of all models, with a head for every 32")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=defaults.steps)
    parser.add_argument("--samples", type=int, default=defaults.samples, help="generated images at each loop count")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="runs at a time")
    parser.add_argument("--runs", type=Path, default=Path(runs))
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "reproduction")


def settings_of(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> Settings:
    """The settings of all runs; an error of the parser for sizes that cannot be."""
    if arguments.steps < 1 or arguments.samples < 100 or arguments.samples % CLASSES:
        parser.error(
            f"--steps {arguments.steps} must be at least 1, and --samples {arguments.samples} at least 100 and a "
            f"multiple of the {CLASSES} classes."
        )
    folder = None if arguments.mnist is None else str(arguments.mnist.resolve())
    cifar10 = None if arguments.cifar10 is None else str(Path(arguments.cifar10).resolve())
    if arguments.dim < 32 or arguments.dim % 32:
        parser.error(f"--dim {arguments.dim} must be a multiple of 32, the width of an attention head.")
    return Settings(
        mnist=folder,
        cifar10=cifar10,
        steps=arguments.steps,
        samples=arguments.samples,
        dim=arguments.dim,
        num_heads=arguments.dim // 32,
    )
