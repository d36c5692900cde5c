import base64
import json
from typing import NamedTuple

import numpy as np

from ..data import from_pixels
from ..figures import png_bytes, tile
from ._request import SampleRequest, Way


class Answer(NamedTuple):
    """Samples, and how they came to be."""

    pixels: np.ndarray
    """In [−1, 1], of shape (labels, \\*pixels)."""
    request: SampleRequest
    way: Way
    batch: int
    """The size of the batch, padding included."""
    waited: float
    """Seconds from the arrival until its batch began."""
    sampled: float
    """Seconds that its batch took."""
    late: bool
    """Whether its deadline had passed by then."""

    def json(self) -> bytes:
        """Each sample as a PNG in base64, and what was done for them."""
        content = {
            "images": [base64.b64encode(png_bytes(from_pixels(image))).decode() for image in _images(self.pixels)],
            "labels": self.request.labels,
            "seed": self.request.seed,
            **self.facts(),
        }
        return json.dumps(content).encode()

    def png(self) -> bytes:
        """The samples side by side in one picture."""
        images = _images(self.pixels)
        return png_bytes(from_pixels(images[0]) if len(images) == 1 else tile(images[None]))

    def facts(self) -> dict[str, object]:
        """What was done."""
        return {
            "steps": self.way.steps,
            "loops": self.way.loops,
            "batch": self.batch,
            "waited_ms": round(1e3 * self.waited, 2),
            "sampled_ms": round(1e3 * self.sampled, 2),
            "late": self.late,
        }


def _images(pixels: np.ndarray) -> np.ndarray:
    """Images as they are, and clips as their frames side by side."""
    if pixels.ndim == 4:
        return pixels
    count, frames, height, width, channels = pixels.shape
    return pixels.transpose(0, 2, 1, 3, 4).reshape(count, height, frames * width, channels)
