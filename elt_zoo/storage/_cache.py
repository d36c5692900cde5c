import os
from pathlib import Path


def cache_folder(name: str) -> Path:
    """The folder of that name in this library's cache, `~/.cache/elt_zoo` or `$XDG_CACHE_HOME/elt_zoo`. It need not
    exist.
    """
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "elt_zoo" / name
