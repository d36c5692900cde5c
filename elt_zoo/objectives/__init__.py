"""Objectives: what a looped model is trained for, their losses, and the corruptions and schedules behind the
targets.
"""

from ._alternatives import DeepSupervisionLoss as DeepSupervisionLoss
from ._alternatives import ExitWeighting as ExitWeighting
from ._alternatives import RandomDepthLoss as RandomDepthLoss
from ._alternatives import VanillaLoss as VanillaLoss
from ._corruption import AbstractCorruption as AbstractCorruption
from ._corruption import Corrupted as Corrupted
from ._corruption import DiffusionCorruption as DiffusionCorruption
from ._corruption import MaskedCorruption as MaskedCorruption
from ._ilsd import ILSDLoss as ILSDLoss
from ._mask_schedules import AbstractMaskSchedule as AbstractMaskSchedule
from ._mask_schedules import ArccosMaskSchedule as ArccosMaskSchedule
from ._mask_schedules import CosineMaskSchedule as CosineMaskSchedule
from ._mask_schedules import LinearMaskSchedule as LinearMaskSchedule
from ._mask_schedules import PowerMaskSchedule as PowerMaskSchedule
from ._masked_cross_entropy import MaskedCrossEntropy as MaskedCrossEntropy
from ._masked_cross_entropy import MaskedTarget as MaskedTarget
from ._noise_schedules import AbstractNoiseSchedule as AbstractNoiseSchedule
from ._noise_schedules import LinearBetaSchedule as LinearBetaSchedule
from ._noise_schedules import ShiftedCosineSchedule as ShiftedCosineSchedule
from ._objective import AbstractObjective as AbstractObjective
from ._objective import DistillationLoss as DistillationLoss
from ._objective import Exits as Exits
from ._objective import GroundTruthLoss as GroundTruthLoss
from ._sigmoid_weighted_mse import DiffusionTarget as DiffusionTarget
from ._sigmoid_weighted_mse import SigmoidWeightedMSE as SigmoidWeightedMSE
