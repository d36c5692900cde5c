"""Several processes that work together, on JAX's distributed engine: starting them, and deciding alike."""

from ._decide import ProcessFailed as ProcessFailed
from ._decide import agree as agree
from ._decide import first_says as first_says
from ._decide import gather as gather
from ._decide import is_first as is_first
from ._decide import together as together
from ._gather_arrays import gather_arrays as gather_arrays
from ._launch import launch as launch
from ._leave import leave as leave
from ._leave import lost_process as lost_process
from ._start import start as start
