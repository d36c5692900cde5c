from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

from ...storage import download
from .._source import DataError
from ._cifar10 import CIFAR10
from ._image_set import ImageSet
from ._mnist import MNIST

IMAGE_SETS: Mapping[str, ImageSet] = MappingProxyType({each.name: each for each in (CIFAR10, MNIST)})
"""The published sets that are read from their official files, by name."""


def fetch_images(
    name: str,
    folder: str | Path | None = None,
    *,
    mirror: str | None = None,
    on_progress: Callable[[str, int, int], None] | None = None,
) -> Path:
    """Downloads the official files of a set, and checks their sizes and hashes. Files that are there already are
    checked and kept.

    **Arguments:**

    - `name`: `cifar10` (the binary version, 170 MB) or `mnist` (12 MB).
    - `folder`: where they go; default `~/.cache/elt_zoo/<name>`, where commands look for them.
    - `mirror`: another address that holds the same files, such as `https://example.org/mnist`.
    - `on_progress`: called with the name of a file, the bytes that have come, and the bytes that it has.

    **Returns:** the folder.

    **Raises:** `ValueError` for another name; `DataError` if another file of that name is there;
    [`DownloadError`][elt_zoo.storage.DownloadError] if a file cannot be downloaded, or is not what was published;
    `OSError` if it cannot be written.
    """
    if name not in IMAGE_SETS:
        raise ValueError(f"`fetch_images({name!r})`: known are {', '.join(IMAGE_SETS)}.")
    images = IMAGE_SETS[name]
    folder = images.folder if folder is None else Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for file in images.files:
        path = folder / file.name
        if path.exists():
            if difference := file.difference(path):
                raise DataError(f"{path} {difference}. Delete it and fetch it again.")
            continue
        url = f"{(images.address if mirror is None else mirror).rstrip('/')}/{file.name}"
        size = file.size or 0

        def report(received: int, name: str = file.name, size: int = size) -> None:
            if on_progress is not None:
                on_progress(name, received, size)

        download(url, path, file, on_progress=report)
    return folder
