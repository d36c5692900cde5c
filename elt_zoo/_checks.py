"""Checks of shapes, types and values that users get by default, before a program runs."""

import os
from collections.abc import Callable
from typing import TypeVar, cast

import jax
import numpy as np
from beartype import beartype
from jax.core import Tracer
from jaxtyping import jaxtyped

_Function = TypeVar("_Function", bound=Callable)

CHECKS_ENABLED = os.environ.get("ELT_ZOO_CHECKS", "1") != "0"


def checked(function: _Function) -> _Function:
    """Checks the jaxtyping annotations of `function` on every call.

    Under `jax.jit` the check runs while tracing, so a compiled step pays nothing for it. Set the environment variable
    `ELT_ZOO_CHECKS=0` before the import to turn it off.
    """
    if not CHECKS_ENABLED:
        return function
    return cast(_Function, jaxtyped(function, typechecker=beartype))


def check_range(values: jax.Array | np.ndarray, first: int, last: int | None, message: str) -> None:
    """Raises `ValueError(message)` if a value lies outside [`first`, `last`]; no `last` is no upper bound.

    Values that are not known here (traced, or on other hosts) pass: what follows must turn a wrong one into NaN. A
    check inside the program would call the host, which keeps the program out of JAX's persistent cache and stops an
    accelerator at every call.
    """
    if isinstance(values, Tracer) or not getattr(values, "is_fully_addressable", True):
        return
    known = np.asarray(values)
    if known.size and (known.min() < first or (last is not None and known.max() > last)):
        raise ValueError(message)
