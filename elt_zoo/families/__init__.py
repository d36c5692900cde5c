"""Families: what a generator is made of, from one config; presets with published sizes."""

from ._configs import DiTConfig as DiTConfig
from ._configs import MaskGITConfig as MaskGITConfig
from ._configs import ModelConfig as ModelConfig
from ._configs import config_from_dict as config_from_dict
from ._loopify import Retrofit as Retrofit
from ._loopify import loopify as loopify
from ._presets import preset as preset
from ._presets import preset_names as preset_names
