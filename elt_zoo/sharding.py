"""Sharding: meshes of devices, and how batches and states are laid out on them."""

from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree


def data_mesh(devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh of one axis, "data", over all devices or those given."""
    return Mesh(np.asarray(devices or jax.devices()), ("data",))


def shard_batch(batch: PyTree, mesh: Mesh) -> PyTree:
    """Splits the leading axis of every array over the devices.

    **Raises:** `ValueError` if the devices do not divide a batch.
    """
    for leaf in jax.tree.leaves(batch):
        if leaf.shape[0] % mesh.size:
            raise ValueError(
                f"A batch of {leaf.shape[0]} cannot be split over {mesh.size} devices; use a multiple of {mesh.size}."
            )
    return jax.device_put(batch, NamedSharding(mesh, PartitionSpec("data")))


def replicate(tree: Any, mesh: Mesh) -> Any:
    """Copies every array of a tree to all devices. A jitted step on a replicated state and a sharded batch is
    data-parallel.
    """
    arrays, static = eqx.partition(tree, eqx.is_array)
    return eqx.combine(jax.device_put(arrays, NamedSharding(mesh, PartitionSpec())), static)
