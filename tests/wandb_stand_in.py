"""A module with the part of wandb's interface that trackers use. It keeps what it is told."""

import dataclasses
from pathlib import Path
from types import ModuleType
from typing import Any


@dataclasses.dataclass
class Run:
    """What was given to `init`, the logged rows as `(step, values)`, and whether the run was finished."""

    given: dict[str, Any]
    rows: list[tuple[int, dict[str, Any]]] = dataclasses.field(default_factory=list)
    finished: bool = False

    def log(self, values: dict[str, Any], *, step: int) -> None:
        assert not self.finished and (not self.rows or step >= self.rows[-1][0])
        self.rows.append((step, values))

    def finish(self) -> None:
        self.finished = True


@dataclasses.dataclass
class Image:
    """A picture: the bytes of its file."""

    content: bytes

    def __init__(self, file: str):
        self.content = Path(file).read_bytes()


class Error(Exception):
    """What wandb raises."""


class Wandb(ModuleType):
    """The module; `sys.modules["wandb"] = Wandb()`."""

    Image, Error, Settings = Image, Error, dict

    def __init__(self):
        super().__init__("wandb")
        self.runs: list[Run] = []
        self.refuses = ""

    def init(
        self,
        *,
        project: str,
        group: str,
        name: str,
        id: str,
        resume: str,
        dir: str,
        config: dict[str, Any],
        reinit: str,
        settings: dict[str, Any],
    ) -> Run:
        if self.refuses:
            raise Error(self.refuses)
        self.runs.append(Run({name: value for name, value in locals().items() if name != "self"}))
        return self.runs[-1]
