import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .._optional import optional_import
from ..storage import atomic_write
from ._tracker import AbstractTracker


class WandbTracker(AbstractTracker):
    """A run on [Weights & Biases](https://docs.wandb.ai). A training that resumes goes on in the same run, whose id is
    kept in `folder/wandb/NAME.id`.

    Needs an account (`wandb login`), or `WANDB_MODE=offline`, which leaves everything in `folder/wandb` for a later
    `wandb sync`.

    **Arguments:**

    - `folder`: of the training; its name becomes the group, which holds a run for each objective.
    - `project`: of Weights & Biases.
    - `name`: of the run within the group.
    - `config`: the knobs of the training, to filter runs by.

    **Raises:** `ImportError` without wandb, the extra `wandb`; `ConnectionError` if the run cannot begin.
    """

    def __init__(self, folder: Path, *, project: str, name: str, config: Mapping[str, Any]):
        self._wandb = optional_import("wandb", extra="wandb")
        (folder / "wandb").mkdir(exist_ok=True)
        try:
            self._run = self._wandb.init(
                project=project,
                group=folder.name,
                name=f"{folder.name}-{name}",
                id=_kept_id(folder / "wandb" / f"{name}.id"),
                resume="allow",
                dir=str(folder),
                config=dict(config),
                reinit="create_new",  # two objectives train at once in one process
                settings=self._wandb.Settings(console="off", silent=True),
            )
        except self._wandb.Error as error:
            raise ConnectionError(
                f"Weights & Biases did not begin the run: {error} Log in with `wandb login`, or set WANDB_MODE=offline."
            ) from error

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def log_picture(self, step: int, name: str, file: Path) -> None:
        self._run.log({name: self._wandb.Image(str(file))}, step=step)

    def close(self) -> None:
        self._run.finish()


def _kept_id(file: Path) -> str:
    """The id that a file holds; a new one is written there first."""
    if not file.exists():
        with atomic_write(file) as new:
            new.write_text(uuid.uuid4().hex[:16])
    return file.read_text().strip()
