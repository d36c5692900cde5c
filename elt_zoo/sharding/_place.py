from typing import Any

import equinox as eqx
import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree


def shard_batch(batch: PyTree, mesh: Mesh) -> PyTree:
    """Splits the leading axis of every array over the devices.

    On a mesh over several processes, each gives its part, and the parts in the order of the processes are the batch.

    **Raises:** `ValueError` if the devices do not divide a batch.
    """
    sharding, processes = NamedSharding(mesh, PartitionSpec(mesh.axis_names)), _processes(mesh)
    for leaf in jax.tree.leaves(batch):
        if leaf.shape[0] * processes % mesh.size:
            raise ValueError(
                f"A batch of {leaf.shape[0] * processes} cannot be split over {mesh.size} devices; use a multiple of "
                f"{mesh.size}."
            )
    if processes == 1:
        return jax.device_put(batch, sharding)

    def place(leaf):
        shape = (leaf.shape[0] * processes, *leaf.shape[1:])
        return jax.make_array_from_process_local_data(sharding, np.asarray(leaf), shape)

    return jax.tree.map(place, batch)


def replicate(tree: Any, mesh: Mesh) -> Any:
    """Copies every array of a tree to all devices. A jitted step on a replicated state and a sharded batch is
    data-parallel.
    """
    arrays, static = eqx.partition(tree, eqx.is_array)
    return eqx.combine(jax.device_put(arrays, NamedSharding(mesh, PartitionSpec())), static)


def _processes(mesh: Mesh) -> int:
    return len({device.process_index for device in mesh.devices.flat})
