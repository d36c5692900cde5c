"""What the loops of a trained model do: how far each moves the state, how it changes the prediction, and which loops no
longer help.
"""

from ._diffusion_exits import DiffusionExits as DiffusionExits
from ._diffusion_exits import compare_diffusion_exits as compare_diffusion_exits
from ._diffusion_exits import diffusion_exits as diffusion_exits
from ._exit_losses import exit_losses as exit_losses
from ._exits import AbstractExits as AbstractExits
from ._exits import ExitColumn as ExitColumn
from ._held_out import held_out_exits as held_out_exits
from ._held_out import held_out_losses as held_out_losses
from ._level_losses import LevelLosses as LevelLosses
from ._level_losses import held_out_level_losses as held_out_level_losses
from ._loss_by_exit import LossByExit as LossByExit
from ._protocols import HasExits as HasExits
from ._protocols import HasStates as HasStates
from ._sample_at_exits import sample_at_exits as sample_at_exits
from ._token_exits import TokenExits as TokenExits
from ._token_exits import compare_token_exits as compare_token_exits
from ._token_exits import token_exits as token_exits
from ._update_norms import UpdateNorms as UpdateNorms
from ._update_norms import sampling_update_norms as sampling_update_norms
from ._update_norms import update_norms as update_norms
