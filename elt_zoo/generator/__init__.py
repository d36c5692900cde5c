"""Generators: models that can be saved, loaded by name or from a folder, and sampled."""

from ._card import model_card as model_card
from ._exit_guidance import ExitGuidance as ExitGuidance
from ._exit_guidance import ExitGuidedPredict as ExitGuidedPredict
from ._files import bundled_names as bundled_names
from ._files import load as load
from ._files import save as save
from ._generator import Generator as Generator
from ._generator import SampleProgress as SampleProgress
from ._planner import Planner as Planner
from ._planner import SamplingPlan as SamplingPlan
from ._push import push as push
from ._settled_exit import EarlyExitPredict as EarlyExitPredict
from ._settled_exit import ExitSignal as ExitSignal
from ._settled_exit import SettledExit as SettledExit
from ._settled_exit import divergence as divergence
from ._settled_exit import doubt as doubt
from ._settled_exit import flips as flips
from ._settled_exit import relative_change as relative_change
