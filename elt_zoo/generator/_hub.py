import hashlib
import re
from pathlib import Path
from typing import NamedTuple

from .._optional import optional_import
from ..storage import CONFIG, WEIGHTS, PublishedFile, WeightsError

SCHEME = "hf://"
_ADDRESS = re.compile(rf"{SCHEME}(?P<repository>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w./-]+))?", re.ASCII)


class Address(NamedTuple):
    """Where a model is on the Hugging Face hub."""

    repository: str
    revision: str | None

    @classmethod
    def parse(cls, text: str) -> "Address":
        """Reads `hf://owner/name` or `hf://owner/name@revision`. **Raises:** `ValueError` for anything else."""
        match = _ADDRESS.fullmatch(text)
        if match is None:
            raise ValueError(
                f"{text!r} is no address on the Hugging Face hub. Write hf://owner/name, or hf://owner/name@revision "
                "with a branch, a tag or a commit."
            )
        return cls(match["repository"], match["revision"])

    def __str__(self) -> str:
        return f"{SCHEME}{self.repository}" + ("" if self.revision is None else f"@{self.revision}")


def download_model(address: str) -> Path:
    """The folder of a model on the Hugging Face hub, downloaded into the hub's own cache if it is not there.

    The bytes are compared with the hash that the hub has for them, also when they come from the cache.

    **Raises:** `ValueError` for a wrong address; `ImportError` without the extra `hub`; `FileNotFoundError` if there is
    no such model, or none in the cache and no network; [`WeightsError`][elt_zoo.storage.WeightsError] for a file that
    is not the one on the hub.
    """
    where = Address.parse(address)
    hub = optional_import("huggingface_hub", extra="hub")
    try:
        folder = hub.snapshot_download(where.repository, revision=where.revision, allow_patterns=[WEIGHTS, CONFIG])
    except Exception as error:  # The hub's client raises errors of three libraries.
        raise FileNotFoundError(
            f"{address} is neither on the hub nor in the cache, or cannot be reached ({first_line(error)})."
        ) from error
    path = Path(folder) / WEIGHTS
    if not path.is_file():
        raise FileNotFoundError(f"{address} holds no {WEIGHTS}: `elt_zoo.save` or `elt-zoo push` did not write it.")
    _verify(path, address)
    return Path(folder)


def _verify(path: Path, address: str) -> None:
    """Compares a file with the hash that the hub's cache names it by: SHA-256, or git's for a file outside LFS."""
    name = path.resolve().name
    difference = None
    if re.fullmatch("[0-9a-f]{64}", name):
        difference = PublishedFile(WEIGHTS, sha256=name).difference(path)
    elif re.fullmatch("[0-9a-f]{40}", name):
        content = path.read_bytes()
        found = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        difference = None if found == name else f"has the hash {found}, but {name} was published"
    if difference is not None:
        raise WeightsError(f"{path}, of {address}, {difference}. Delete the file and load it again.")


def first_line(error: Exception) -> str:
    """An error of the hub's client, whose messages have many lines."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"
