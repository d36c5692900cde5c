"""Corruption: what a network predicts, noise and mask schedules, and the way forward that samplers walk back."""

from ._corruption import AbstractCorruption as AbstractCorruption
from ._corruption import Corrupted as Corrupted
from ._corruption import DiffusionCorruption as DiffusionCorruption
from ._corruption import MaskedCorruption as MaskedCorruption
from ._mask_schedules import AbstractMaskSchedule as AbstractMaskSchedule
from ._mask_schedules import ArccosMaskSchedule as ArccosMaskSchedule
from ._mask_schedules import CosineMaskSchedule as CosineMaskSchedule
from ._mask_schedules import LinearMaskSchedule as LinearMaskSchedule
from ._mask_schedules import PowerMaskSchedule as PowerMaskSchedule
from ._noise_schedules import AbstractNoiseSchedule as AbstractNoiseSchedule
from ._noise_schedules import LinearBetaSchedule as LinearBetaSchedule
from ._noise_schedules import ShiftedCosineSchedule as ShiftedCosineSchedule
from ._noise_schedules import alpha_sigma as alpha_sigma
from ._prediction import Prediction as Prediction
from ._targets import DiffusionTarget as DiffusionTarget
from ._targets import MaskedTarget as MaskedTarget
