"""Draw samples from a saved model at any loop budget.

    python examples/sample.py                                       # the bundled diffusion model at 1, 2, 4 and 8 loops
    python examples/sample.py --model digits-maskgit --loops 1 4
    python examples/sample.py --model runs/digits-dit-ilsd/model --per-step 1 4    # loops ramp from 1 to 4 over the steps
"""

import dataclasses
import time
from pathlib import Path

import elt_zoo
import jax
import jax.numpy as jnp
import numpy as np
import tyro
from elt_zoo.models import BatchedPredict, DiTConfig
from elt_zoo.objectives import ShiftedCosineSchedule
from elt_zoo.sampling import DDIM, ConstantGuidance, DiffusionSampler, MaskedSampler, linear_budget
from pictures import save_sample_grid
