from typing import ClassVar

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, UInt8

from .._checks import checked
from ..data import from_pixels
from ._extractor import AbstractExtractor, BatchedNetwork, Features, fingerprint
from ._inception import InceptionResize, InceptionV3

Images = UInt8[np.ndarray | Array, "examples height width 3"] | Float[np.ndarray | Array, "examples height width 3"]


class InceptionExtractor(AbstractExtractor):
    """The features of FID, sFID, the Inception score, and precision and recall, by the Inception-v3 of 2015.

    Images in [−1, 1] are first rounded to bytes, as when they are written to files, because published distances measure
    bytes. The logits leave out the classifier's bias, as ADM's evaluator and torch-fidelity do for the Inception score.
    """

    distance: ClassVar[str] = "FID"
    score: ClassVar[str | None] = "Inception score"

    def __init__(
        self,
        network: InceptionV3,
        *,
        resize: InceptionResize = InceptionResize.TENSORFLOW,
        batch_size: int = 64,
        mesh: Mesh | None = None,
    ):
        """**Arguments:**

        - `network`: with its published weights, see [`load_inception`][elt_zoo.pretrained.load_inception]. A hash of
          the weights is part of the extractor's name.
        - `resize`: `TENSORFLOW` to compare with ADM's reference files and with most published values, `PYTORCH_FID` to
          compare with pytorch-fid.
        - `batch_size`: images at a time. Smaller batches are padded, so one compilation serves all images of a size.
        - `mesh`: of the devices that share a batch, by default all of this process.

        **Raises:** `ValueError` if the devices do not divide a batch.
        """
        self.name = f"inception-v3-2015, {resize} resize, weights {fingerprint(network)}"
        self.num_features = network.fc.weight.shape[1]

        def features(network: InceptionV3, image: UInt8[Array, "height width 3"]) -> tuple[Array, Array, Array]:
            output = network(image, resize=resize)
            return output.pool, output.spatial, network.fc.weight @ output.pool

        self._run = BatchedNetwork(network, features, batch_size=batch_size, mesh=mesh)

    @checked
    def __call__(self, examples: Images) -> Features:
        """**Arguments:** `examples`: images of one size, uint8 or in [−1, 1].

        **Returns:** 2,048 pooled, 2,023 spatial features and 1,008 logits of each.

        **Raises:** `ValueError` for pixels that are not finite, or no images.
        """
        return Features(*self._run(as_bytes(examples)))


def as_bytes(examples: np.ndarray | Array) -> np.ndarray:
    """Rounds pixels in [−1, 1] to bytes; bytes stay as they are.

    **Raises:** `ValueError` for pixels that are not finite.
    """
    examples = np.asarray(examples)
    if examples.dtype == np.uint8:
        return examples
    check_finite(examples)
    return from_pixels(examples)


def check_finite(pixels: np.ndarray) -> None:
    """**Raises:** `ValueError` for pixels that are not finite."""
    if not np.isfinite(pixels).all():
        raise ValueError("Some pixels are not finite: the model or the sampler diverged.")
