import abc
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self


class AbstractTracker(abc.ABC):
    """Takes the numbers and pictures of one training. A context that closes it at its end.

    Trackers only read: a training is the same with them and without.
    """

    @abc.abstractmethod
    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Takes numbers by name, after `step` training steps. Steps never fall."""

    @abc.abstractmethod
    def log_picture(self, step: int, name: str, file: Path) -> None:
        """Takes a PNG, which is there until the call returns."""

    @abc.abstractmethod
    def close(self) -> None:
        """Writes what is left to write."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class Trackers(AbstractTracker):
    """Several trackers as one; none of them is a tracker that does nothing.

    **Arguments:** `trackers`: each is told everything.
    """

    def __init__(self, trackers: Sequence[AbstractTracker] = ()):
        self._trackers = tuple(trackers)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for tracker in self._trackers:
            tracker.log(step, values)

    def log_picture(self, step: int, name: str, file: Path) -> None:
        for tracker in self._trackers:
            tracker.log_picture(step, name, file)

    def close(self) -> None:
        for tracker in self._trackers:
            tracker.close()
