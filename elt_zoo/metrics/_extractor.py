import abc
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float

from ..sharding import data_mesh, replicate, shard_batch
from ..storage import hash_arrays

Examples = np.ndarray | Array


class Features(NamedTuple):
    """What an extractor computes for a batch, float32 or float64."""

    pool: Float[np.ndarray, "examples features"]
    """Pooled features, for Fréchet distances, precision and recall."""
    spatial: Float[np.ndarray, "examples positions"] | None = None
    """Features of positions in the image, for sFID; `None` if there are none."""
    logits: Float[np.ndarray, "examples classes"] | None = None
    """Class logits, for the Inception score; `None` if there are none."""


class AbstractExtractor(abc.ABC):
    """Computes features of images or clips, in which sets of them are compared.

    Distances in the features of two extractors are not comparable. Every extractor therefore has a name, which is saved
    with all statistics and results.
    """

    name: str
    """Identifies the network, its weights and the preprocessing."""
    num_features: int
    """Length of `Features.pool`."""
    distance: ClassVar[str]
    """Name of the Fréchet distance in its features."""
    score: ClassVar[str | None] = None
    """Name of the Inception score of its logits; `None` if it has none."""

    @abc.abstractmethod
    def __call__(self, examples: Examples) -> Features:
        """**Arguments:** `examples`: one or more along the first axis, uint8 or pixels in [−1, 1].

        **Raises:** `ValueError` for another shape or type.
        """

    @property
    def description(self) -> dict[str, Any] | None:
        """How examples are prepared, as [`Evaluation.protocol`][elt_zoo.metrics.Evaluation] records it; `None` if the
        name says everything.
        """
        return None


class BatchedNetwork:
    """Runs a network over batches of any size, compiled once: batches are split or padded to one size, and the devices
    share each.
    """

    def __init__(
        self,
        network: Any,
        function: Callable[[Any, Array], Any],
        *,
        batch_size: int,
        mesh: Mesh | None,
    ):
        """**Arguments:** `network`: a module; `function`: of the network and one example; `batch_size`: examples at a
        time; `mesh`: of the devices that share them, by default all of this process.

        **Raises:** `ValueError` if the devices do not divide a batch.
        """
        mesh = data_mesh(jax.local_devices()) if mesh is None else mesh
        if batch_size < 1 or batch_size % mesh.size:
            raise ValueError(
                f"`batch_size={batch_size}` cannot be shared by {mesh.size} device(s); use a multiple of their number."
            )
        self._network, self._mesh = replicate(network, mesh), mesh
        self._batch_size = batch_size

        @eqx.filter_jit
        def run(network, batch):
            return jax.vmap(lambda example: function(network, example))(batch)

        self._run = run

    def __call__(self, examples: Examples) -> Any:
        """The function's outputs, stacked, as NumPy arrays."""
        if len(examples) == 0:
            raise ValueError("There are no examples in this batch; extractors need one or more.")
        outputs = []
        for start in range(0, len(examples), self._batch_size):
            part = np.asarray(examples[start : start + self._batch_size])
            # A ragged batch is filled up with its first example, whose further outputs are dropped.
            filled = np.concatenate([part, np.repeat(part[:1], self._batch_size - len(part), axis=0)])
            # Accelerators would round the inputs of products to bfloat16 or TF32, which moves distances visibly.
            with jax.default_matmul_precision("highest"):
                output = self._run(self._network, shard_batch(filled, self._mesh))
            outputs.append(jax.device_get(output))
        return jax.tree.map(lambda *leaves: np.concatenate(leaves)[: len(examples)], *outputs)


def fingerprint(network: Any) -> str:
    """Eight hexadecimal digits that identify the weights."""
    return hash_arrays(network)[:8]
