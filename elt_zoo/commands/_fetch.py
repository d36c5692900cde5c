import dataclasses
from pathlib import Path
from typing import Literal

from tqdm import tqdm

from ..data import fetch_images


@dataclasses.dataclass(frozen=True, kw_only=True)
class FetchOptions:
    """Download a published set of images, so that `--data` takes its name. Sizes and hashes are checked."""

    data: Literal["cifar10", "mnist"]
    """CIFAR-10 (the binary version, 170 MB) or MNIST (12 MB)."""
    out: Path | None = None
    """The folder of the files; default `~/.cache/elt_zoo/<data>`. Give another one as `--data` later."""
    mirror: str | None = None
    """Another address that holds the same files."""


def fetch(options: FetchOptions) -> None:
    """`elt-zoo fetch`."""
    with tqdm(unit="B", unit_scale=True, disable=None) as bar:
        shown = ""

        def progress(name: str, received: int, size: int) -> None:
            nonlocal shown
            if name != shown:
                shown = name
                bar.reset(total=size)
                bar.set_description(name)
            bar.update(received - bar.n)

        folder = fetch_images(options.data, options.out, mirror=options.mirror, on_progress=progress)
    print(f"{options.data} is in {folder}; use it with `--data {options.data if options.out is None else folder}`.")
