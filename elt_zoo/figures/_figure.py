import os
from typing import Any

from ..storage import atomic_write


def new_figure(width: float, height: float) -> Any:
    """A figure of matplotlib, in inches, without pyplot's global state."""
    from matplotlib.figure import Figure  # late, as it is slow to import

    return Figure(figsize=(width, height))


def save_figure(figure: Any, path: str | os.PathLike, **options: Any) -> None:
    """Writes a figure as a PNG, whole or not at all."""
    with atomic_write(path) as file:
        figure.savefig(file, format="png", dpi=120, **options)
