from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh


def data_mesh(devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh of one axis, "data", over all devices or those given."""
    return Mesh(np.asarray(devices or jax.devices()), ("data",))


def make_mesh(data: int | None = None, fsdp: int = 1, *, devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh of two axes. Both split the batch; "fsdp" splits parameters, their average and the optimiser's state too.

    Where devices form groups with a fast network inside and a slow one between them (the GPUs of one machine, a slice
    of TPUs), "fsdp", which moves the most data, stays inside a group as far as it fits.

    **Arguments:** `data`: devices along "data", default all that "fsdp" leaves; `fsdp`: devices along "fsdp", 1 for
    states that every device holds whole; `devices`: default all.

    **Raises:** `ValueError` unless data × fsdp is the number of devices, or if "fsdp" does not fit the groups.
    """
    devices = list(devices or jax.devices())
    asked = f"data={'chosen' if data is None else data}, fsdp={fsdp}"
    if fsdp < 1 or (data is not None and data < 1):
        raise ValueError(f"A mesh of {asked}: sizes must be at least 1.")
    if data is None:
        data = max(len(devices) // fsdp, 1)
    if data * fsdp != len(devices):
        raise ValueError(
            f"A mesh of {asked} does not fit the {len(devices)} device(s) here: data × fsdp must be {len(devices)}. "
            "Leave `data` out to have it chosen."
        )
    return Mesh(arrange(devices, data, fsdp), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)


def arrange(devices: Sequence[Any], data: int, fsdp: int) -> np.ndarray:
    """The devices in a table of (data, fsdp), placed by what JAX knows of their networks."""
    groups = len({getattr(device, "slice_index", 0) for device in devices})
    if groups == 1:
        return mesh_utils.create_device_mesh((data, fsdp), devices, allow_split_physical_axes=True)
    size = len(devices) // groups
    if fsdp % size and size % fsdp:
        raise ValueError(
            f"A mesh of data={data}, fsdp={fsdp} does not fit {groups} groups of {size} devices on a fast network: "
            f"`fsdp` must be a divisor or a multiple of {size}."
        )
    across = max(fsdp // size, 1)
    inside, between = (data * across // groups, fsdp // across), (groups // across, across)
    return mesh_utils.create_hybrid_device_mesh(inside, between, devices, allow_split_physical_axes=True)
