"""Sharding: meshes of devices, and how batches and states are laid out on them."""

from ._layout import Gather as Gather
from ._layout import Layout as Layout
from ._layout import one_copy as one_copy
from ._mesh import data_mesh as data_mesh
from ._mesh import make_mesh as make_mesh
from ._place import replicate as replicate
from ._place import shard_batch as shard_batch
from ._rules import RULES as RULES
from ._rules import Rule as Rule
from ._rules import spec_of as spec_of
