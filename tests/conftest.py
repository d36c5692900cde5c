import os

# Before JAX is imported: several CPU devices, strict types and ranks, so that a careless promotion fails here first.
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=4"
os.environ["JAX_NUMPY_DTYPE_PROMOTION"] = "strict"
os.environ["JAX_NUMPY_RANK_PROMOTION"] = "raise"

from pathlib import Path

import jax
import pytest
from hypothesis import settings
from jaxtyping import install_import_hook

# The first example of a property compiles, which no deadline foresees.
settings.register_profile("elt_zoo", deadline=None, derandomize=True, max_examples=25)
settings.load_profile("elt_zoo")

# Users get the shape check on public functions; tests get it on every function.
with install_import_hook("elt_zoo", "beartype.beartype"):
    import elt_zoo  # noqa: F401

_MAPS, _MAPS_ALLOWED = Path("/proc/self/maps"), Path("/proc/sys/vm/max_map_count")


@pytest.fixture(scope="module", autouse=True)
def forget_programs():
    """Drops compiled programs between modules once they are many: each keeps about ten pieces of memory mapped, and
    when a process has no more of them to give (65,530 by default on Linux) the compiler aborts it.
    """
    yield
    if _MAPS.exists() and _MAPS.read_text().count("\n") > int(_MAPS_ALLOWED.read_text()) // 4:
        jax.clear_caches()
