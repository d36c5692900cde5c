"""Tokenizers: images to grids of discrete tokens and back."""

from ._base import AbstractTokenizer as AbstractTokenizer
from ._grey_levels import GreyLevels as GreyLevels
from ._patch_codebook import PatchCodebook as PatchCodebook
