"""Training: state, step, loop, optimiser and checkpoints, for any model, objective and data."""

from ._checkpoint_files import CheckpointError as CheckpointError
from ._checkpoints import Checkpoints as Checkpoints
from ._config_differences import config_differences as config_differences
from ._ema import ema_decay_at as ema_decay_at
from ._ema import update_ema as update_ema
from ._loop import FitResult as FitResult
from ._loop import HasPosition as HasPosition
from ._loop import TrainingDiverged as TrainingDiverged
from ._loop import TrainingInterrupted as TrainingInterrupted
from ._loop import fit as fit
from ._optimizer import Decay as Decay
from ._optimizer import OptimizerConfig as OptimizerConfig
from ._optimizer import OptimizerKind as OptimizerKind
from ._optimizer import decay_mask as decay_mask
from ._optimizer import make_optimizer as make_optimizer
from ._pace import Report as Report
from ._precision import Precision as Precision
from ._signals import stop_on_signals as stop_on_signals
from ._state import TrainState as TrainState
from ._step import HasExits as HasExits
from ._step import LabelledBatch as LabelledBatch
from ._step import TrainStep as TrainStep
from ._step import batch_loss as batch_loss
from ._step import jit_step as jit_step
from ._step import make_train_step as make_train_step
from ._step import predict_exits as predict_exits
