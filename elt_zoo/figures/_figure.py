import io
import os
from typing import Any

import numpy as np
from jaxtyping import UInt8

from ..storage import atomic_write

_DPI = 120


def new_figure(width: float, height: float) -> Any:
    """A figure of matplotlib, in inches, without pyplot's global state."""
    from matplotlib.figure import Figure  # late, as it is slow to import

    return Figure(figsize=(width, height))


def save_figure(figure: Any, path: str | os.PathLike, **options: Any) -> None:
    """Writes a figure as a PNG, whole or not at all."""
    with atomic_write(path) as file:
        figure.savefig(file, format="png", dpi=_DPI, **options)


def pixels_of(figure: Any) -> UInt8[np.ndarray, "height width 3"]:
    """A figure as a picture in memory, cut to what it shows."""
    from matplotlib.image import imread

    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=_DPI, bbox_inches="tight")
    file.seek(0)
    return np.rint(255.0 * imread(file)[..., :3]).astype(np.uint8)
