import os
import platform
from importlib.metadata import version
from pathlib import Path

import jax

from .._platform import usable_cores


def environment(*packages: str) -> str:
    """The machine and the versions that something was measured with, in one line.

    **Arguments:** `packages`: more distributions whose versions to name.
    """
    versions = ", ".join(f"{name} {version(name)}" for name in ("jax", "equinox", "elt_zoo", *packages))
    device = jax.devices()[0].device_kind
    if device == "cpu":
        device = _processor()
    usable, cores = usable_cores(), os.cpu_count() or 1
    counted = f"{usable} of {cores}" if usable < cores else f"{cores}"
    return f"{device}, {counted} cores, Python {platform.python_version()}; {versions}"


def _processor() -> str:
    """The name of the processor where Linux tells it, else its architecture."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
