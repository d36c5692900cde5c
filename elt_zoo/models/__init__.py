"""Models: a trunk and a head together, their configs, and presets with published sizes."""

from ._configs import DiTConfig as DiTConfig
from ._configs import MaskGITConfig as MaskGITConfig
from ._configs import ModelConfig as ModelConfig
from ._configs import config_from_dict as config_from_dict
from ._model import BatchedPredict as BatchedPredict
from ._model import ElasticModel as ElasticModel
from ._presets import preset as preset
from ._presets import preset_names as preset_names
