# Of one JAX device, for dense products in bfloat16, from the makers' data sheets.
_PEAKS = {
    "NVIDIA A10": 125e12,
    "NVIDIA A100": 312e12,
    "NVIDIA B200": 2250e12,
    "NVIDIA GH200": 989e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H100 NVL": 835e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H200": 989e12,
    "NVIDIA L4": 121e12,
    "NVIDIA L40S": 362e12,
    "TPU v4": 275e12,
    "TPU v5": 459e12,  # v5p
    "TPU v5 lite": 197e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
}


def peak_flops(device_kind: str) -> float | None:
    """The most floating-point operations a second of a device, for dense matrix products in bfloat16, as its maker
    states them. Model FLOP utilisation is the share of it that a training reaches.

    **Arguments:** `device_kind`: the field of that name of a JAX device.

    **Returns:** operations a second; `None` for devices that are not in the table, CPUs among them.
    """
    names = [name for name in _PEAKS if device_kind == name or device_kind.startswith((f"{name} ", f"{name}-"))]
    return _PEAKS[max(names, key=len)] if names else None
