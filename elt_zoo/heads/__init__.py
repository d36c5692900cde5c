"""Heads: what turns the inputs of a modality into tokens, and the trunk's state into a prediction."""

from ._base import Head as Head
from ._dit import DiTHead as DiTHead
from ._maskgit import MaskGITHead as MaskGITHead
