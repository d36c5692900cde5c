"""What some operations choose their form by: the devices that a program is traced for, and the cores at hand."""

import contextlib
import contextvars
import os
from collections.abc import Iterator, Sequence
from typing import Any

import jax

_TARGET: contextvars.ContextVar[tuple[Any, ...]] = contextvars.ContextVar("devices", default=())


def target_devices() -> tuple[Any, ...]:
    """The JAX devices that are traced for, which need not be here; none outside `traced_for`."""
    return _TARGET.get()


def platform() -> str:
    """The platform that is traced for: "cpu", "gpu" or "tpu"; default that of JAX's default device."""
    devices = target_devices()
    return devices[0].platform if devices else jax.default_backend()


def usable_cores() -> int:
    """The cores that this process may use."""
    # As JAX counts the threads of its CPU device.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextlib.contextmanager
def traced_for(devices: Sequence[Any]) -> Iterator[None]:
    """Within it, programs are traced for these devices."""
    token = _TARGET.set(tuple(devices))
    try:
        yield
    finally:
        _TARGET.reset(token)
