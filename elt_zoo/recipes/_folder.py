from pathlib import Path

from ..storage import foreign_entries


def require_own(folder: Path) -> None:
    """**Raises:** `ValueError` if a folder holds something, and no run."""
    if foreign_entries(folder) and not (folder / "checkpoints").is_dir():
        raise ValueError(f"{folder} is not empty and holds no run. Choose another `--out`; nothing was changed.")
