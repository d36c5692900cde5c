"""Sampling: masked parallel decoding and diffusion, guidance, and how many loops each step may take."""

from ._budgets import LoopBudget as LoopBudget
from ._budgets import Loops as Loops
from ._budgets import average_loops as average_loops
from ._budgets import constant_budget as constant_budget
from ._budgets import linear_budget as linear_budget
from ._budgets import table_budget as table_budget
from ._budgets import total_loops as total_loops
from ._diffusion import DiffusionSampler as DiffusionSampler
from ._guidance import AbstractGuidance as AbstractGuidance
from ._guidance import ConstantGuidance as ConstantGuidance
from ._guidance import CosineGuidance as CosineGuidance
from ._guidance import IntervalGuidance as IntervalGuidance
from ._guidance import LinearGuidance as LinearGuidance
from ._guidance import apply_guidance as apply_guidance
from ._masked import MaskedSampler as MaskedSampler
from ._predict import Predict as Predict
from ._predict import RecallingPredict as RecallingPredict
from ._progress import ProgressCallback as ProgressCallback
from ._sampler import AbstractSampler as AbstractSampler
from ._updates import DDIM as DDIM
from ._updates import DDPM as DDPM
from ._updates import AbstractUpdate as AbstractUpdate
from ._updates import DiffusionStep as DiffusionStep
from ._updates import diffusion_steps as diffusion_steps
