import os
import re
from typing import Any

import jax
from jax.experimental import topologies

from .._checks import checked
from .._optional import optional_import

LOCAL = "local"
"""The name of the devices of this process, where a topology is asked for."""

# What libtpu would look up on a TPU machine; which chips it compiles for, the topology says. It also lets one process
# alone have the chips of a machine, which compiling does not need.
_WITHOUT_A_TPU = {
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v6e-4",
}

# What the TPU compiler (libtpu 0.0.42) says that programs may use of a chip's memory, by the kind of device.
_TPU_MEMORY = {"TPU v5 lite": 15.75 * 2**30, "TPU v5": 95.74 * 2**30, "TPU v6 lite": 31.25 * 2**30}


@checked
def topology_devices(topology: str) -> list[Any]:
    """The chips of a machine that need not be here, to compile for: the devices of a [mesh][elt_zoo.sharding.make_mesh]
    for [`compile_step`][elt_zoo.profile.compile_step]. They cannot hold arrays.

    **Arguments:** `topology`: a kind of TPU and its chips along each axis, such as "v6e:2x4" (8 chips) or "v5e:16x16"
    (256), or [`LOCAL`][elt_zoo.profile.LOCAL] for the devices of this process.

    **Raises:** `ValueError` for a topology that there is not; `ImportError` if libtpu is not installed.
    """
    if topology == LOCAL:
        return list(jax.devices())
    if not re.fullmatch(r"v\d+\w*:\d+(x\d+)*", topology):
        raise ValueError(
            f"{topology!r} is no topology: name a kind of TPU and its chips along each axis, such as v6e:2x4 or "
            f"v5e:16x16, or {LOCAL!r} for the devices at hand."
        )
    optional_import("libtpu", extra="tpu-compile")
    for name, value in _WITHOUT_A_TPU.items():
        os.environ.setdefault(name, value)
    try:
        devices = list(topologies.get_topology_desc(topology, platform="tpu").devices)
    except jax.errors.JaxRuntimeError as error:
        said = str(error).splitlines()[0].removeprefix("INVALID_ARGUMENT: ").rstrip(".")
        raise ValueError(f"There is no topology {topology!r}: {said}.") from None
    if len({tuple(device.coords) for device in devices}) < len(devices):
        raise ValueError(f"The topology {topology!r} has several devices on a chip, which meshes here cannot order.")
    return devices


def device_memory(device: Any) -> int | None:
    """Bytes that programs may use of a device's memory; `None` where neither the device nor our table says."""
    if device.device_kind in _TPU_MEMORY:
        return int(_TPU_MEMORY[device.device_kind])
    # A CPU has no limit of its own.
    return None if device.platform == "cpu" else (device.memory_stats() or {}).get("bytes_limit")
