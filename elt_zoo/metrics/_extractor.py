import abc
import zlib
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float

from ..sharding import data_mesh, replicate, shard_batch

Examples = np.ndarray | Array


class Features(NamedTuple):
    """What an extractor says of a batch, float32 or float64."""

    pool: Float[np.ndarray, "examples features"]
    """What Fréchet distances, precision and recall compare."""
    spatial: Float[np.ndarray, "examples positions"] | None = None
    """Features that keep their place in the image, for sFID; `None` if there are none."""
    logits: Float[np.ndarray, "examples classes"] | None = None
    """Before the softmax, for the Inception score; `None` if there are none."""


class AbstractExtractor(abc.ABC):
    """Turns images or clips into features in which sets of them can be compared.

    Distances in the features of two extractors have nothing to do with each other, so every extractor has a name, which
    stands in all statistics and results that come from it.
    """

    name: str
    """Says which network with which weights and which preprocessing."""
    num_features: int
    """Length of `Features.pool`."""
    distance: ClassVar[str]
    """What the Fréchet distance in its features is called."""
    score: ClassVar[str | None] = None
    """What the Inception score of its logits is called; `None` if it has none."""

    @abc.abstractmethod
    def __call__(self, examples: Examples) -> Features:
        """**Arguments:** `examples`: any number of them along the first axis, uint8 or pixels in [−1, 1].

        **Raises:** `ValueError` for another shape or type.
        """

    @property
    def description(self) -> dict[str, Any] | None:
        """The protocol, for results; `None` if the name says it all."""
        return None


class BatchedNetwork:
    """Runs a network over batches of any size, compiled once: batches are cut, or padded, to one size, and shared by
    the devices.
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
    """Eight hexadecimal digits that differ for different weights, and do not depend on the order of the leaves."""
    total = sum(zlib.crc32(np.asarray(leaf).tobytes()) for leaf in jax.tree.leaves(eqx.filter(network, eqx.is_array)))
    return f"{total % 2**32:08x}"
