import dataclasses
import hashlib
import http.client
import os
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

from ._atomic import atomic_write

_CHUNK = 1 << 20
_TIMEOUT = 60.0
"""Seconds without a byte."""


@dataclasses.dataclass(frozen=True)
class PublishedFile:
    """A file that somebody has published. Size in bytes and SHA-256 are `None` where they are not known."""

    name: str
    size: int | None = None
    sha256: str | None = None

    def difference(self, path: str | os.PathLike) -> str | None:
        """What tells the file at a path from the published one, such as "has 7 bytes, but 8 were published"; `None` if
        nothing does.
        """
        size = os.path.getsize(path)
        if self.size is not None and size != self.size:
            return f"has {size} bytes, but {self.size} were published"
        if self.sha256 is not None:
            with open(path, "rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
            if found != self.sha256:
                return f"has the SHA-256 {found}, but {self.sha256} was published"
        return None


class DownloadError(OSError):
    """A file could not be downloaded, or is not what was published. Nothing was written."""


def download(
    url: str,
    path: str | os.PathLike,
    published: PublishedFile,
    *,
    on_progress: Callable[[int], None] | None = None,
) -> None:
    """Downloads a file over HTTP(S), whole or not at all, and checks its size and hash before it takes its place.

    **Arguments:**

    - `url`: where it is.
    - `path`: the file to write, in a folder that exists.
    - `published`: what it should be.
    - `on_progress`: called with the bytes that have come so far.

    **Raises:** [`DownloadError`][elt_zoo.storage.DownloadError] in one line if the server cannot be reached, breaks
    off, or sends something else; `OSError` if the file cannot be written.
    """
    if not url.startswith(("http://", "https://")):
        raise DownloadError(f"{url} is no address that starts with http:// or https://.")
    with atomic_write(path) as part:
        received = 0
        with part.open("wb") as file:
            for chunk in _chunks(url):
                file.write(chunk)
                received += len(chunk)
                if published.size is not None and received > published.size:
                    raise DownloadError(
                        f"{url} is longer than the {published.size} bytes that were published; the server sends "
                        "something else. Nothing was written."
                    )
                if on_progress is not None:
                    on_progress(received)
        if difference := published.difference(part):
            raise DownloadError(
                f"What came from {url} {difference}. Nothing was written. Try again; if it stays so, the server sends "
                f"something else: get {published.name} elsewhere and put it at {Path(path)}."
            )


def _chunks(url: str) -> Iterator[bytes]:
    """The content at an address. **Raises:** `DownloadError` for whatever the network does."""
    request = urllib.request.Request(url, headers={"User-Agent": "elt_zoo"})
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT) as answer:
            while chunk := answer.read(_CHUNK):
                yield chunk
    except (OSError, http.client.HTTPException) as error:
        raise DownloadError(f"{url} could not be downloaded ({error}). Nothing was written.") from error
