import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from typing import IO

_GRACE_SECONDS = 60.0
"""How long the others may take to save and end when one process has failed."""


def launch(command: Sequence[str], *, processes: int, devices: int | None = None, grace: float = _GRACE_SECONDS) -> int:
    """Runs one command as several processes of this machine that belong together, as
    [`start`][elt_zoo.distributed.start] understands them, and waits for all.

    Every line that a process prints follows its number. A process that fails ends the others, by SIGTERM, which lets a
    training save, and after `grace` seconds by SIGKILL. Ctrl-C and SIGTERM are passed on.

    **Arguments:**

    - `command`: the program and its arguments.
    - `processes`: how many, at least 1.
    - `devices`: CPU devices of each, for trying things out; default what each finds. With GPUs, process i gets the i-th
      of equal parts of those in `CUDA_VISIBLE_DEVICES`, if that is set.
    - `grace`: seconds.

    **Returns:** 0, or the exit code of the process that failed first.

    Call it from the main thread, as it takes over the signals.

    **Raises:** `ValueError` for no command, numbers below 1, GPUs that the processes cannot share evenly, or in another
    thread; `OSError` if the command cannot be run.
    """
    if not command or processes < 1 or (devices is not None and devices < 1):
        raise ValueError(
            f"`launch({list(command)}, processes={processes}, devices={devices})` needs a command, at least one "
            "process and, if they are given, at least one device."
        )
    shared = {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{_free_port()}", "JAX_NUM_PROCESSES": str(processes)}
    if devices is not None:
        flags = os.environ.get("XLA_FLAGS", "")
        shared["XLA_FLAGS"] = f"{flags} --xla_force_host_platform_device_count={devices}".strip()
    started: list[subprocess.Popen] = []
    printing = threading.Lock()
    readers = []

    def pass_on(number: int, frame: object) -> None:
        _signal(started, signal.Signals(number))

    before = {number: signal.signal(number, pass_on) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        for index in range(processes):
            own = os.environ | shared | {"JAX_PROCESS_ID": str(index)} | _own_gpus(index, processes)
            process = _run(command, own)
            started.append(process)
            assert process.stdout is not None
            reader = threading.Thread(target=_print_lines, args=(process.stdout, index, printing), daemon=True)
            reader.start()
            readers.append(reader)
        return _wait(started, grace)
    finally:
        _signal(started, signal.SIGKILL)
        for reader in readers:
            reader.join()
        for number, handler in before.items():
            signal.signal(number, handler)


def _run(command: Sequence[str], environment: Mapping[str, str]) -> subprocess.Popen:
    # A session of its own, so that Ctrl-C in a terminal comes once, from here.
    return subprocess.Popen(
        command,
        env=dict(environment),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )


def _wait(started: Sequence[subprocess.Popen], grace: float) -> int:
    """Waits for all, and ends them once one has failed. Returns the first failure, or 0."""
    first, deadline = 0, None
    while any(process.poll() is None for process in started):
        failed = [process.returncode for process in started if process.returncode]
        if failed and deadline is None:
            first, deadline = failed[0], time.monotonic() + grace
            _signal(started, signal.SIGTERM)
        if deadline is not None and time.monotonic() > deadline:
            _signal(started, signal.SIGKILL)
        time.sleep(0.1)
    first = first or next((process.returncode for process in started if process.returncode), 0)
    return 128 - first if first < 0 else first  # as a shell tells of a signal


def _signal(started: Sequence[subprocess.Popen], number: signal.Signals) -> None:
    for process in started:
        if process.poll() is None:
            process.send_signal(number)


def _print_lines(stream: IO[str], index: int, printing: threading.Lock) -> None:
    with stream:
        for line in stream:
            with printing:
                sys.stdout.write(f"[{index}] {line}")
                sys.stdout.flush()


def _own_gpus(index: int, processes: int) -> dict[str, str]:
    """An equal part of the GPUs that the environment names."""
    named = [each for each in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if each]
    if not named:
        return {}
    if len(named) % processes:
        raise ValueError(
            f"`CUDA_VISIBLE_DEVICES={','.join(named)}` names {len(named)} GPU(s), which {processes} processes cannot "
            "share evenly."
        )
    share = len(named) // processes
    return {"CUDA_VISIBLE_DEVICES": ",".join(named[index * share : (index + 1) * share])}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
