"""Objectives: which exits of a looped model are trained, and the losses of one example."""

from ._alternatives import DeepSupervisionLoss as DeepSupervisionLoss
from ._alternatives import ExitWeighting as ExitWeighting
from ._alternatives import RandomDepthLoss as RandomDepthLoss
from ._alternatives import VanillaLoss as VanillaLoss
from ._ilsd import ILSDLoss as ILSDLoss
from ._loss import AbstractLoss as AbstractLoss
from ._masked_cross_entropy import MaskedCrossEntropy as MaskedCrossEntropy
from ._objective import AbstractObjective as AbstractObjective
from ._objective import DistillationLoss as DistillationLoss
from ._objective import Exits as Exits
from ._objective import GroundTruthLoss as GroundTruthLoss
from ._sigmoid_weighted_mse import SigmoidWeightedMSE as SigmoidWeightedMSE
