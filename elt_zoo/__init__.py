"""Elastic Looped Transformers (arXiv 2604.09168) in JAX and Equinox.

A modality-free trunk that loops, heads that give it a modality at both ends, an objective that makes every exit useful,
and plain typed functions that put them together.
"""

from ._version import __version__ as __version__
from .generator import Generator as Generator
from .generator import load as load
from .generator import save as save
from .heads import DiTHead as DiTHead
from .heads import MaskGITHead as MaskGITHead
from .looped import LoopedTransformer as LoopedTransformer
from .looped import Remat as Remat
from .models import ElasticModel as ElasticModel
from .objectives import ILSDLoss as ILSDLoss
