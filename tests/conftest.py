import os

# Before JAX is imported: several CPU devices, strict types and ranks, so that a careless promotion fails here first.
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=4"
os.environ["JAX_NUMPY_DTYPE_PROMOTION"] = "strict"
os.environ["JAX_NUMPY_RANK_PROMOTION"] = "raise"

from hypothesis import settings
from jaxtyping import install_import_hook

# The first example of a property compiles, which no deadline foresees.
settings.register_profile("elt_zoo", deadline=None, derandomize=True, max_examples=25)
settings.load_profile("elt_zoo")

# Users get the shape check on public functions; tests get it on every function.
with install_import_hook("elt_zoo", "beartype.beartype"):
    import elt_zoo  # noqa: F401
