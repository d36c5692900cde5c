import hashlib
import os
import platform
from pathlib import Path
from typing import Any

import jax

from ..storage import cache_folder

_CONFIG: Any = jax.config  # its settings are attributes that it does not declare
_LARGEST = 2**30
"""Bytes of the folder; the programs that were not used for longest are dropped first."""
_WORTH_KEEPING = 0.3
"""Seconds: what compiles faster is compiled again."""


def keep_programs() -> None:
    """Keeps compiled programs on disk, so that the next command need not compile them.

    They lie in `~/.cache/elt_zoo`, or under `$XDG_CACHE_HOME`, unless the user has set JAX's cache. Where the folder
    cannot be written to, nothing is kept.
    """
    if _CONFIG.jax_compilation_cache_dir is not None or not _CONFIG.jax_enable_compilation_cache:
        return
    folder = cache_folder(_processor())
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return
    if not os.access(folder, os.W_OK):
        return
    _CONFIG.update("jax_compilation_cache_dir", str(folder))
    _CONFIG.update("jax_compilation_cache_max_size", _LARGEST)
    _CONFIG.update("jax_persistent_cache_min_compile_time_secs", _WORTH_KEEPING)


def _processor() -> str:
    """A name for this kind of processor: machines that share a home folder may lack each other's instructions."""
    described = platform.processor()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = info.read_text().splitlines()
        described = next((line for line in lines if line.startswith(("flags", "Features"))), described)
    return f"{platform.machine()}-{hashlib.sha256(described.encode()).hexdigest()[:8]}"
