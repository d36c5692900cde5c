"""Trackers: where the numbers and pictures of a training go while it runs."""

from ._tensorboard import TensorBoardTracker as TensorBoardTracker
from ._tracker import AbstractTracker as AbstractTracker
from ._tracker import Trackers as Trackers
from ._wandb import WandbTracker as WandbTracker
