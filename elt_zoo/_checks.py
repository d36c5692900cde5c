"""Shape and type checks that users get by default, at trace time."""

import os
from collections.abc import Callable
from typing import TypeVar, cast

from beartype import beartype
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
