"""The trunk: N unique layers, applied L times."""

from ._counts import LoopCount as LoopCount
from ._counts import StaticCount as StaticCount
from ._looped_transformer import ExitRule as ExitRule
from ._looped_transformer import LoopedTransformer as LoopedTransformer
from ._remat import Remat as Remat
