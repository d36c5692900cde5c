"""An extractor that costs nothing, for tests of what is built on extractors."""

from typing import ClassVar

import jax.numpy as jnp
import numpy as np

from elt_zoo.metrics import AbstractExtractor, Features
from elt_zoo.metrics._extractor import BatchedNetwork


class MeansExtractor(AbstractExtractor):
    """Mean colours as pooled features, the top row as spatial ones."""

    distance: ClassVar[str] = "means distance"
    score: ClassVar[str | None] = "means score"

    def __init__(self, name="means", batch_size=8, mesh=None):
        self.name, self.num_features, self.traces = name, 3, 0

        def features(scale, image):
            self.traces += 1
            x = image.astype(jnp.float32) * scale
            return x.mean((0, 1)), x[0].mean(-1), 3.0 * x.mean((0, 1))

        self._run = BatchedNetwork(jnp.float32(1 / 255), features, batch_size=batch_size, mesh=mesh)

    def __call__(self, examples):
        return Features(*self._run(examples))


def images(count, seed=0, size=4, shift=0):
    values = np.random.default_rng(seed).integers(0, 200, (count, size, size, 3)) + shift
    return values.astype(np.uint8)
