from collections.abc import Mapping
from pathlib import Path

import numpy as np

from .._optional import optional_import
from ._tracker import AbstractTracker


class TensorBoardTracker(AbstractTracker):
    """Writes event files for TensorBoard, which `tensorboard --logdir FOLDER` shows.

    **Arguments:** `folder`: where they go; `taken`: training steps taken already. What an earlier process logged past
    them is dropped, as those steps are taken again.

    **Raises:** `ImportError` without tensorboardX, the extra `examples`.
    """

    def __init__(self, folder: Path, *, taken: int = 0):
        tensorboard = optional_import("tensorboardX", extra="examples")
        self._writer = tensorboard.SummaryWriter(str(folder), purge_step=taken + 1)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def log_picture(self, step: int, name: str, file: Path) -> None:
        pillow = optional_import("PIL.Image")
        with pillow.open(file) as picture:
            self._writer.add_image(name, np.asarray(picture.convert("RGB")), step, dataformats="HWC")

    def close(self) -> None:
        self._writer.close()
