"""Families: what a generator is made of, from one config; presets with published sizes."""

from ._config import ModelConfig as ModelConfig
from ._config import SamplerSettings as SamplerSettings
from ._config import TrainingDefaults as TrainingDefaults
from ._diffusion import DiffusionSamplerSettings as DiffusionSamplerSettings
from ._diffusion import DiTConfig as DiTConfig
from ._diffusion import NoiseSchedule as NoiseSchedule
from ._from_dict import config_from_dict as config_from_dict
from ._from_dict import settings_from_dict as settings_from_dict
from ._loopify import Retrofit as Retrofit
from ._loopify import loopify as loopify
from ._masked import MaskedSamplerSettings as MaskedSamplerSettings
from ._masked import MaskGITConfig as MaskGITConfig
from ._presets import preset as preset
from ._presets import preset_names as preset_names
