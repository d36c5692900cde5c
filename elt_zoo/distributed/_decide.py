import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

Result = TypeVar("Result")


class ProcessFailed(RuntimeError):
    """Another process of this run failed. The message says which, and what it said."""


def is_first() -> bool:
    """Whether this is process 0, which alone writes reports, pictures and configs."""
    return jax.process_index() == 0


def gather(text: str) -> list[str]:
    """What every process says, in the order of the processes. All must call it, as with all functions here."""
    if jax.process_count() == 1:
        return [text]
    data = np.frombuffer(text.encode(), np.uint8)
    sizes = np.asarray(multihost_utils.process_allgather(np.asarray(data.size, np.int32)))
    padded = np.zeros(max(int(sizes.max()), 1), np.uint8)
    padded[: data.size] = data
    rows = np.asarray(multihost_utils.process_allgather(padded))
    return [row[:size].tobytes().decode() for row, size in zip(rows, sizes, strict=True)]


def first_says(value: Any) -> Any:
    """Process 0's value, of JSON's types, in every process: what each sees on a disk may differ for a moment."""
    return value if jax.process_count() == 1 else json.loads(gather(json.dumps(value) if is_first() else "")[0])


def together(action: Callable[[], Result]) -> Result:
    """Does what may fail in some of the processes. If it does, all of them fail, so that nobody waits for the others.

    **Arguments:** `action`: does not wait for other processes.

    **Returns:** what this process's action returned.

    **Raises:** what the action raised; `ProcessFailed` where that of another process did.
    """
    if jax.process_count() == 1:
        return action()
    try:
        result, failure = action(), None
    except Exception as error:
        result, failure = None, error
    said = gather("" if failure is None else str(failure).strip() or type(failure).__name__)
    if failure is not None:
        raise failure
    for process, message in enumerate(said):
        if message:
            raise ProcessFailed(f"Process {process} of {len(said)} failed: {message}")
    return result  # pyright: ignore[reportReturnType]  (it is the action's where nothing failed)


def agree(options: Mapping[str, Any]) -> None:
    """Makes sure that all processes were started with the same options. Hashes are compared.

    **Arguments:** `options`: by name, of types that have a text.

    **Raises:** `ValueError` in every process, naming the processes and the options that differ.
    """
    text = json.dumps(options, default=str, sort_keys=True)
    hashes = gather(hashlib.sha256(text.encode()).hexdigest())
    if len(set(hashes)) == 1:
        return
    first, *others = (json.loads(one) for one in gather(text))
    differing = [
        f"process {process} has {name}={other.get(name)!r} and process 0 has {first.get(name)!r}"
        for process, other in enumerate(others, 1)
        for name in sorted(first.keys() | other.keys())
        if first.get(name) != other.get(name)
    ]
    more = "" if len(differing) <= 4 else f", and {len(differing) - 4} more"
    raise ValueError(
        f"The processes were started with different options: {', '.join(differing[:4])}{more}. Start all with the same."
    )
