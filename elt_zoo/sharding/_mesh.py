from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh


def data_mesh(devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh of one axis, "data", over all devices or those given."""
    return Mesh(np.asarray(devices or jax.devices()), ("data",))


def make_mesh(data: int | None = None, fsdp: int = 1, *, devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh of two axes. Both split the batch; "fsdp" splits parameters, their average and the optimiser's state too.

    Neighbouring devices, those of one host first, lie along "fsdp", which moves the most data.

    **Arguments:** `data`: devices along "data", default all that "fsdp" leaves; `fsdp`: devices along "fsdp", 1 for
    states that every device holds whole; `devices`: default all.

    **Raises:** `ValueError` unless data × fsdp is the number of devices.
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
    return jax.make_mesh((data, fsdp), ("data", "fsdp"), devices=devices, axis_types=(AxisType.Auto,) * 2)
