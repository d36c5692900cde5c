from pathlib import Path

from ..storage import foreign_entries, require_writable_folder


def require_own(folder: Path) -> None:
    """**Raises:** `ValueError` if a folder holds something, and no run; `OSError` if it cannot be written to."""
    require_writable_folder(folder)
    if foreign_entries(folder) and not (folder / "checkpoints").is_dir():
        raise ValueError(f"{folder} is not empty and holds no run. Choose another `--out`; nothing was changed.")
