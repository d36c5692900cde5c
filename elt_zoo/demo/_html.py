"""Pictures and figures as pieces of HTML that hold all they show: nothing else is loaded."""

import base64
import html
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from ..data import from_pixels
from ..figures import png_bytes

STYLE = """
.elt-row { display: grid; grid-auto-flow: column; gap: 0.5rem; overflow-x: auto; }
.elt-row { grid-auto-columns: minmax(3.4rem, 8rem); }
.elt-row figure { margin: 0; }
.elt-pictures { display: grid; gap: 0.3rem; }
.elt-pictures img { display: block; width: 100%; image-rendering: pixelated; }
.elt-row figcaption { text-align: center; padding: 0.2rem 0; margin-top: 0.3rem; }
.elt-row figcaption { border-top: 0.25rem solid transparent; }
.elt-row small { display: block; font-weight: 400; white-space: nowrap; }
.elt-row .elt-now figcaption { border-color: var(--color-accent); font-weight: 700; }
.elt-large { max-width: 22rem; margin: auto; }
.elt-plot { width: 100%; max-width: 44rem; display: block; background: white; }
.elt-table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
.elt-table td, .elt-table th { padding: 0.2rem 0.8rem; text-align: right; }
.elt-scroll { overflow-x: auto; }
.elt-error { color: var(--error-text-color); }
"""


def pictures(pixels: np.ndarray, alt: str, *, columns: int = 1) -> str:
    """Pictures of shape (count, height, width, channels) in so many columns; the frames of a clip side by side. Each
    has a pixel for each of theirs, and the browser enlarges it.
    """
    if pixels.ndim == 5:
        count, frames, height, width, channels = pixels.shape
        pixels = pixels.transpose(0, 2, 1, 3, 4).reshape(count, height, frames * width, channels)
    images = "".join(_image(png_bytes(from_pixels(each)), alt) for each in pixels)
    return f'<div class="elt-pictures" style="grid-template-columns: repeat({columns}, 1fr)">{images}</div>'


def figure(pictures: str, caption: str, below: str = "", *, now: bool = False) -> str:
    """Pictures with a caption, and smaller words below it, marked if they are the chosen ones."""
    kind = ' class="elt-now"' if now else ""
    words = f"{html.escape(caption)}<small>{html.escape(below)}</small>"
    return f"<figure{kind}>{pictures}<figcaption>{words}</figcaption></figure>"


def row(figures: Sequence[str]) -> str:
    """Figures side by side."""
    return f'<div class="elt-row">{"".join(figures)}</div>'


def plot(draw: Callable[[Path], object], alt: str) -> str:
    """What a function of `elt_zoo.figures` draws."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "plot.png"
        draw(path)
        return _image(path.read_bytes(), alt, kind="elt-plot")


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Rows of text under a header."""
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in header)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in line) + "</tr>" for line in rows)
    return f'<div class="elt-scroll"><table class="elt-table"><tr>{head}</tr>{body}</table></div>'


def text(words: str) -> str:
    """A paragraph."""
    return f"<p>{html.escape(words)}</p>"


def error(problem: Exception) -> str:
    """What went wrong, in place of a picture."""
    return f'<p class="elt-error" role="alert">{html.escape(str(problem))}</p>'


def _image(png: bytes, alt: str, kind: str = "") -> str:
    data = base64.b64encode(png).decode()
    return f'<img class="{kind}" alt="{html.escape(alt)}" src="data:image/png;base64,{data}">'
