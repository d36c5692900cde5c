"""Storage: files of tensors, tables that say where each tensor goes, and folders written whole or not at all."""

from ._assemble import Shardings as Shardings
from ._assemble import assemble as assemble
from ._assemble import named_arrays as named_arrays
from ._assemble import own_names as own_names
from ._folder import CONFIG as CONFIG
from ._folder import WEIGHTS as WEIGHTS
from ._folder import read_description as read_description
from ._folder import refuse_to_overwrite as refuse_to_overwrite
from ._folder import write_folder as write_folder
from ._read import read_tensors as read_tensors
from ._tensor_file import StoredTensor as StoredTensor
from ._tensor_file import TensorFile as TensorFile
from ._tensor_file import WeightsError as WeightsError
from ._tensor_map import CONV_2D as CONV_2D
from ._tensor_map import CONV_3D as CONV_3D
from ._tensor_map import LINEAR as LINEAR
from ._tensor_map import Placement as Placement
from ._tensor_map import prefixed as prefixed
