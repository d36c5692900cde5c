"""The kind of device that a program is traced for, on which some operations choose their form."""

import contextlib
import contextvars
from collections.abc import Iterator

import jax

_TARGET: contextvars.ContextVar[str | None] = contextvars.ContextVar("platform", default=None)


def platform() -> str:
    """The platform that is traced for: "cpu", "gpu" or "tpu"; default that of JAX's default device."""
    return _TARGET.get() or jax.default_backend()


@contextlib.contextmanager
def traced_for(name: str) -> Iterator[None]:
    """Within it, programs are traced for a platform that need not be here."""
    token = _TARGET.set(name)
    try:
        yield
    finally:
        _TARGET.reset(token)
