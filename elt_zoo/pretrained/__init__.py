"""Saved models: write and read our own, and the small trained ones that ship with the library."""

from ._files import LoadedModel as LoadedModel
from ._files import WeightsError as WeightsError
from ._files import bundled_names as bundled_names
from ._files import load as load
from ._files import save as save
