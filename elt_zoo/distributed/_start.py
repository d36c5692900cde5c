import contextlib
import os
import re
import socket
import threading
from collections.abc import Callable
from pathlib import Path

import jax

HEARTBEAT_SECONDS = 30
"""A process that gave no sign of life for this long is dead, and JAX ends all others."""
# The end of a run is not its last step: the others wait while process 0 measures and writes.
_LONGEST_REPORT = 24 * 3600
# JAX aborts a process that waited too long; our own error has to come first.
_JAX_WAITS_LONGER = 60
_NAMES = {"coordinator": "JAX_COORDINATOR_ADDRESS", "processes": "JAX_NUM_PROCESSES", "process": "JAX_PROCESS_ID"}


def start(
    coordinator: str | None = None,
    processes: int | None = None,
    process: int | None = None,
    *,
    timeout: float = 300.0,
) -> None:
    """Joins the processes that train together. Call it once in every process, before the first JAX array.

    One process by itself needs nothing, and nothing happens. Under Slurm (`srun`), Open MPI, an indexed Job of
    Kubernetes and on Cloud TPU, JAX finds out who belongs together. Anywhere else say so, with the arguments or with
    the variables `JAX_COORDINATOR_ADDRESS`, `JAX_NUM_PROCESSES` and `JAX_PROCESS_ID`.

    From then on JAX watches all processes: if one dies, the others end within about 30 seconds.

    **Arguments:**

    - `coordinator`: `host:port` of process 0, as all others reach it; any free port.
    - `processes`: how many there are; 1 starts nothing, under a launcher too.
    - `process`: which one this is, from 0.
    - `timeout`: seconds to wait for the others, above 0.

    **Raises:** `ValueError` for values that do not go together, or a launcher that JAX cannot ask; `TimeoutError` if
    not all processes came, naming the one that is missing where that can be known; `RuntimeError` if JAX was used
    before.
    """
    if jax.distributed.is_initialized():
        return
    coordinator = os.environ.get(_NAMES["coordinator"]) if coordinator is None else coordinator
    processes = _number("processes") if processes is None else processes
    process = _number("process") if process is None else process
    if not timeout > 0:
        raise ValueError(f"`start(timeout={timeout})` must be a positive number of seconds.")
    if processes == 1 and process in (None, 0):
        return
    launcher = _launcher()
    if launcher is None and coordinator is None and processes is None and process is None:
        return
    if launcher is None or None not in (coordinator, processes, process):
        launcher = None
        _check(coordinator, processes, process)
    if not _within(timeout, lambda: _initialize(launcher, coordinator, processes, process, timeout)):
        raise TimeoutError(_who_is_missing(launcher, coordinator, processes, process, timeout))


def _number(name: str) -> int | None:
    value = os.environ.get(_NAMES[name])
    if value is not None and not value.isdecimal():
        raise ValueError(f"`{_NAMES[name]}={value}` must be a whole number.")
    return None if value is None else int(value)


def _check(coordinator: str | None, processes: int | None, process: int | None) -> None:
    values = {"coordinator": coordinator, "processes": processes, "process": process}
    missing = [f"`--{name}` ({_NAMES[name]})" for name, value in values.items() if value is None]
    if coordinator is None or processes is None or process is None:
        raise ValueError(
            "Several processes need `--coordinator HOST:PORT`, `--processes N` and `--process I`. Missing: "
            f"{', '.join(missing)}."
        )
    found = re.fullmatch(r"(\[[^\]]+\]|[^:\s/]+):(\d{1,5})", coordinator)
    if found is None or not 0 < int(found[2]) < 65536:
        raise ValueError(f"`--coordinator {coordinator}` must be `host:port`, such as `10.0.0.1:12345`.")
    if processes < 1 or not 0 <= process < processes:
        raise ValueError(f"`--processes {processes} --process {process}`: need 0 <= process < processes.")


def _launcher() -> str | None:
    """What started several processes and can tell JAX which one this is. What it tells is JAX's business."""
    environment = os.environ
    if "SLURM_STEP_NODELIST" in environment and environment.get("SLURM_NTASKS", "1") != "1":
        return "Slurm"
    if environment.get("OMPI_COMM_WORLD_SIZE", "1") != "1":
        return "Open MPI"
    # Any other pod, such as a notebook's, is by itself.
    if "KUBERNETES_SERVICE_HOST" in environment and "JOB_COMPLETION_INDEX" in environment:
        return "Kubernetes"
    hosts = environment.get("TPU_PROCESS_ADDRESSES", environment.get("TPU_WORKER_HOSTNAMES"))
    # A TPU virtual machine asks its metadata server; without chips there is none to ask.
    if (hosts is not None and "," in hosts) or (hosts is None and Path("/dev/accel0").exists()):
        return "Cloud TPU"
    return None


def _initialize(
    launcher: str | None, coordinator: str | None, processes: int | None, process: int | None, timeout: float
) -> None:
    try:
        jax.distributed.initialize(
            coordinator,
            processes,
            process,
            cluster_detection_method="deactivate" if launcher is None else None,
            initialization_timeout=int(timeout) + _JAX_WAITS_LONGER,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=_LONGEST_REPORT,
        )
    except ValueError as error:
        raise ValueError(
            f"This process was started by {launcher} with others, but JAX cannot find them ({error}) Say so with "
            "`--coordinator`, `--processes` and `--process`, or run one process alone with `--processes 1`."
        ) from error
    except jax.errors.JaxRuntimeError as error:
        raise OSError(f"Process {process} cannot use {coordinator} ({error}). Choose another port.") from error


def _within(seconds: float, action: Callable[[], None]) -> bool:
    """Whether an action, which nothing can interrupt, ended in time."""
    failures: list[BaseException] = []

    def run() -> None:
        try:
            action()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=run, name="elt_zoo start", daemon=True)
    thread.start()
    thread.join(seconds)
    if failures:
        raise failures[0]
    return not thread.is_alive()


def _who_is_missing(
    launcher: str | None, coordinator: str | None, processes: int | None, process: int | None, timeout: float
) -> str:
    waited = f"within {timeout:g} seconds"
    if launcher is not None or coordinator is None or processes is None:
        return f"Not all processes that {launcher} started came together {waited}. See what the others said."
    if process == 0:
        others = "process 1 did not" if processes == 2 else f"not all of the processes 1 to {processes - 1} did"
        return (
            f"Process 0 waited at {coordinator}, where {others} come {waited}. Start all {processes} with "
            "one `--coordinator` and one `--processes`, or wait longer with `--start-timeout`."
        )
    host, port = coordinator.rsplit(":", 1)
    try:
        with contextlib.closing(socket.create_connection((host.strip("[]"), int(port)), timeout=5.0)):
            return f"Process {process} reached process 0 at {coordinator}, but not all {processes} came {waited}."
    except OSError as error:
        return (
            f"Process {process} could not reach process 0 at {coordinator} {waited} ({error}). Check that process 0 "
            "runs, its address, and the firewall between them."
        )
