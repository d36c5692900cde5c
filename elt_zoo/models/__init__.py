"""Models: a trunk and a head together, their configs, and presets with published sizes."""

from ._configs import DiTConfig as DiTConfig
from ._configs import MaskGITConfig as MaskGITConfig
from ._configs import ModelConfig as ModelConfig
from ._configs import config_from_dict as config_from_dict
from ._dit_names import dit_diffusers_names as dit_diffusers_names
from ._dit_names import dit_names as dit_names
from ._loopify import Retrofit as Retrofit
from ._loopify import loopify as loopify
from ._maskgit_names import maskgit_names as maskgit_names
from ._maskgit_names import split_vocabulary as split_vocabulary
from ._model import BatchedPredict as BatchedPredict
from ._model import ElasticModel as ElasticModel
from ._presets import preset as preset
from ._presets import preset_names as preset_names
