import contextlib
import datetime
import json
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from etils import epath

from ..storage import read_json, write_json
from ._checkpoint_files import DATA, MANIFEST, RUN_FILE, CheckpointError, first_line
from ._config_differences import config_differences
from ._preservation import Preservation

_MARK = "copies.json"
_URL = re.compile(r"(gs|s3)://[^/\s]+(/[^\s]*)?")


class RemoteCopy:
    """Copies of a run's checkpoints in an object store, for a machine whose disk is lost.

    Object stores neither rename nor lock. A checkpoint there is whole once its manifest is, which is written last and
    removed first; and the folder on a disk that the copies belong to has the lock.
    """

    def __init__(self, url: str, preservation: Preservation):
        """**Raises:** `ValueError` unless it is a `gs://` or `s3://` URL."""
        if _URL.fullmatch(url) is None:
            raise ValueError(
                f"Checkpoints can be copied to `gs://bucket/folder` and `s3://bucket/folder`, and not to {url!r}."
            )
        self.url = url.rstrip("/")
        self._root = epath.Path(self.url)
        self._preservation = preservation
        self._times: dict[int, datetime.datetime] = {}

    def saved(self) -> list[int]:
        """The steps of all whole checkpoints, newest first. **Raises:** `CheckpointError`, as all methods here."""
        with self._one_line("cannot be read"):
            return sorted((step for step in self._steps() if (self._step(step) / MANIFEST).exists()), reverse=True)

    def adopt(self, folder: Path, config: Mapping[str, Any]) -> None:
        """Makes sure that the copies are those of a run's folder, which remembers them; others must have its config.

        **Arguments:** `folder`: locked; `config`: of the run.

        **Raises:** `ValueError` if the copies are of another run, with all differences.
        """
        mark, run = folder / _MARK, self._root / RUN_FILE
        mine = read_json(mark) if mark.exists() else {}
        with self._one_line("cannot be read"):
            theirs = json.loads(run.read_text()) if run.exists() else {"id": secrets.token_hex(8), "config": None}
            name, saved = theirs["id"], theirs["config"]
        # The run of this folder may have been given more steps since.
        if mine.get(self.url) != name:
            if saved is not None and (differences := config_differences(saved, config)) and self.saved():
                raise ValueError(
                    f"{self.url} holds the checkpoints of a different run. Its config differs in:\n  "
                    + "\n  ".join(differences)
                    + "\nUse the same config to resume it, or another URL. Nothing was changed."
                )
            write_json(mark, mine | {self.url: name})
        if saved != config:
            with self._one_line("cannot be written to"):
                self._root.mkdir(parents=True, exist_ok=True)
                run.write_text(json.dumps({"id": name, "config": config}, indent=2))

    def put(self, folder: Path, step: int) -> None:
        """Copies a checkpoint from a disk, unless it is there already."""
        target = self._step(step)
        with self._one_line("cannot be written to"):
            if (target / MANIFEST).exists():
                return
            if target.exists():
                target.rmtree()  # what a killed process left
            names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
            for name in [*(name for name in names if name != MANIFEST), MANIFEST]:
                (target / name).parent.mkdir(parents=True, exist_ok=True)
                with (folder / name).open("rb") as read, (target / name).open("wb") as write:
                    shutil.copyfileobj(read, write, 1 << 24)

    def fetch(self, step: int, folder: Path) -> None:
        """Copies a checkpoint into an empty folder. What it holds is compared with the manifest when it is read."""
        source = self._step(step)
        with self._one_line("cannot be read"):
            manifest = (source / MANIFEST).read_bytes()
            for name in json.loads(manifest)["files"]:
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                with (source / name).open("rb") as read, (folder / name).open("wb") as write:
                    shutil.copyfileobj(read, write, 1 << 24)
            (folder / MANIFEST).write_bytes(manifest)

    def remove_old(self) -> None:
        """Removes the checkpoints that no rule keeps, and what killed processes left."""
        saved = self.saved()
        with self._one_line("cannot be written to"):
            self._times = {step: self._times.get(step) or self._saved_at(step) for step in saved}
            removed = self._preservation.to_remove(self._times)
            for step in removed:
                (self._step(step) / MANIFEST).unlink()
            for step in {*removed, *(set(self._steps()) - set(saved))}:
                if self._step(step).exists():
                    self._step(step).rmtree()

    def _steps(self) -> list[int]:
        folder = self._root / "steps"
        names = [path.name for path in folder.iterdir()] if folder.exists() else []
        return [int(name) for name in names if name.isascii() and name.isdigit()]

    def _step(self, step: int) -> epath.Path:
        return self._root / "steps" / str(step)

    def _saved_at(self, step: int) -> datetime.datetime:
        return datetime.datetime.fromisoformat(json.loads((self._step(step) / DATA).read_text())["time"])

    @contextlib.contextmanager
    def _one_line(self, what: str) -> Iterator[None]:
        """Stores and their libraries have errors of many kinds, a missing library among them."""
        try:
            yield
        except Exception as error:
            raise CheckpointError(
                f"{self.url} {what}: {type(error).__name__}: {first_line(error)} Checkpoints on the disk are kept."
            ) from error
