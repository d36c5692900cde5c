import datetime
import os
import shutil
from pathlib import Path

from ._checkpoint_files import holds_files, saved_at
from ._preservation import Preservation

_DAMAGED = ".damaged"
_DELETING = ".deleting"
_WRITING = ".writing"


class StepFolders:
    """The folders of a run's checkpoints, named after their steps. One that is not whole has another name."""

    def __init__(self, folder: Path, preservation: Preservation):
        self.folder = folder
        self._preservation = preservation
        self._damaged: set[int] = set()
        self._times: dict[int, datetime.datetime] = {}

    def __getitem__(self, step: int) -> Path:
        return self.folder / str(step)

    def saved(self) -> list[int]:
        """Newest first, without those that were found to be damaged."""
        try:
            names = os.listdir(self.folder)
        except (FileNotFoundError, NotADirectoryError):
            return []
        steps = {int(name) for name in names if name.isascii() and name.isdigit() and str(int(name)) == name}
        return [step for step in sorted(steps - self._damaged, reverse=True) if holds_files(self[step])]

    def begin(self, step: int) -> Path:
        """An empty folder for a checkpoint to be written into."""
        writing = self.writing(step)
        shutil.rmtree(writing, ignore_errors=True)
        writing.mkdir()
        return writing

    def writing(self, step: int) -> Path:
        """Where a checkpoint is written."""
        return self.folder / f"{step}{_WRITING}"

    def commit(self, step: int) -> None:
        """Makes a checkpoint of what was written."""
        os.rename(self.writing(step), self[step])

    def set_aside(self, step: int) -> None:
        """Leaves out a damaged checkpoint, until `forget_damaged`."""
        self._damaged.add(step)

    def forget_damaged(self) -> None:
        self._damaged.clear()

    def rename_damaged(self) -> None:
        for step in self._damaged:
            aside = self.folder / f"{step}{_DAMAGED}"
            shutil.rmtree(aside, ignore_errors=True)
            os.rename(self[step], aside)
            self._times.pop(step, None)
        self._damaged.clear()

    def clean(self) -> None:
        """Removes what killed processes left in the folder, which is ours and locked."""
        self.folder.mkdir(exist_ok=True)
        for entry in self.folder.iterdir():
            empty = entry.name.isdigit() and not holds_files(entry)
            if empty or entry.name.endswith((_WRITING, _DELETING)):
                shutil.rmtree(entry, ignore_errors=True)
        self.rename_damaged()
        self.remove_old()

    def remove_old(self) -> None:
        """Removes the checkpoints that no rule keeps."""
        steps = self.saved()
        self._times = {step: self._times[step] if step in self._times else saved_at(self[step]) for step in steps}
        for old in self._preservation.to_remove(self._times):
            # Renamed first: a process that is killed here does not leave half a checkpoint.
            leaving = self.folder / f"{old}{_DELETING}"
            os.rename(self[old], leaving)
            shutil.rmtree(leaving, ignore_errors=True)
