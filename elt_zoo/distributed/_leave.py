import os
import re
import sys
import time

import jax

from ._start import HEARTBEAT_SECONDS

_LAST_WORDS = 2.0
_BROKEN = re.compile(r"Gloo|NCCL|coordination service|Connection (reset|closed) by peer")


def lost_process(error: BaseException) -> str | None:
    """One line for an error that says that another process is gone; `None` for any other error.

    The libraries that move data between processes know addresses and not numbers. Only of two processes is it plain
    which one is gone.
    """
    if not jax.distributed.is_initialized() or _BROKEN.search(str(error)) is None:
        return None
    count, index = jax.process_count(), jax.process_index()
    lost = f"process {1 - index} of 2" if count == 2 else f"one of the {count} processes"
    reason = (str(error).strip().splitlines() or [""])[0][:200].rstrip(".")
    return (
        f"{lost} has ended or cannot be reached, so process {index} stops ({reason}). Look at what the other said, and "
        "start all of them again: they go on from what was saved."
    )


def leave(code: int, *, lost: bool = False) -> None:
    """Ends one of several processes at once; returns if this one is alone.

    Python's own end would have JAX wait for the others, which may be waiting for this one.

    **Arguments:** `code`: the exit status; `lost`: because another process is gone. With more than two, JAX's watch
    then gets the time to say which; it ends the process by itself.
    """
    if not jax.distributed.is_initialized():
        return
    sys.stdout.flush()
    sys.stderr.flush()
    # JAX aborts the others as soon as process 0 is gone: before that, they may say what they have to say.
    time.sleep(HEARTBEAT_SECONDS + 15 if lost and jax.process_count() > 2 else _LAST_WORDS)
    os._exit(code)
