"""Several processes on one machine, as a shell loop starts them."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from command_line import SMALL, rows_of

from elt_zoo.distributed import agree, first_says, gather, is_first, lost_process, start, together

TRAIN = ("train", *SMALL, "--batch-size", 16, "--samples", 100, "--sampler.steps", 2, "--log-every", 1, "--no-compare")
STEPS = ("--steps", 50, "--checkpoint-every", 20)
STATED = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")


@pytest.fixture
def alone(monkeypatch):
    for name in (*STATED, "SLURM_STEP_NODELIST", "OMPI_COMM_WORLD_SIZE", "JOB_COMPLETION_INDEX"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def test_one_process_needs_nothing(alone):
    start()
    start(processes=1)
    assert is_first() and gather("a") == ["a"] and first_says([1]) == [1] and together(lambda: 3) == 3
    agree({"a": 1})
    assert lost_process(ValueError("Gloo failed")) is None


def test_what_is_missing_or_wrong_is_named(alone):
    with pytest.raises(ValueError, match=r"Missing: `--processes` \(JAX_NUM_PROCESSES\), `--process`"):
        start("host:1")
    with pytest.raises(ValueError, match=r"`--coordinator host` must be `host:port`"):
        start("host", 2, 0)
    with pytest.raises(ValueError, match="need 0 <= process < processes"):
        start("host:1", 2, 2)
    with pytest.raises(ValueError, match="must be a positive number of seconds"):
        start(timeout=0)
    alone.setenv("JAX_NUM_PROCESSES", "two")
    with pytest.raises(ValueError, match="`JAX_NUM_PROCESSES=two` must be a whole number"):
        start()


def free_port():
    with contextlib.closing(socket.socket()) as opened:
        opened.bind(("127.0.0.1", 0))
        return opened.getsockname()[1]


def begin(folder, *arguments, port, process, processes=2, devices=2):
    """Starts one process of a run, with variables instead of options."""
    where = dict(zip(STATED, (f"127.0.0.1:{port}", str(processes), str(process)), strict=True))
    environment = {name: value for name, value in os.environ.items() if not name.startswith("JAX_NUMPY")}
    environment["XLA_FLAGS"] += f" --xla_force_host_platform_device_count={devices}"
    environment |= where if processes > 1 else {}
    command = [sys.executable, "-m", "elt_zoo", *map(str, arguments)]
    return subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )


def end(process, seconds=300):
    _, errors = process.communicate(timeout=seconds)
    return process.returncode, errors


def losses_of(run):
    return [float(row["loss"]) for row in rows_of(run / "metrics-ilsd.csv")]


@pytest.fixture(scope="module")
def alone_losses(tmp_path_factory):
    """The losses of one process with one device."""
    folder = tmp_path_factory.mktemp("alone")
    code, errors = end(begin(folder, *TRAIN, *STEPS, "--out", "run", port=0, process=0, processes=1, devices=1))
    assert code == 0, errors[-2000:]
    return losses_of(folder / "run")


def kill_one(tmp_path, command, victim):
    """Starts a pair, kills one of it after its first checkpoint, and sees the other end with the name of the first."""
    port, saved = free_port(), tmp_path / "run" / "checkpoints" / "ilsd" / "steps" / "20"
    pair = [begin(tmp_path, *command, port=port, process=i) for i in range(2)]
    deadline = time.monotonic() + 300
    while not saved.exists():
        assert time.monotonic() < deadline and all(process.poll() is None for process in pair)
        time.sleep(0.01)
    pair[victim].send_signal(signal.SIGKILL)
    code, errors = end(pair[1 - victim], seconds=60)
    # Where the other was not waiting for data, such as in a barrier, JAX's watch ends it: the leader is process 0.
    ours = f"process {victim} of 2 has ended or cannot be reached"
    watch = ("leader task was preempted/died", "stopped sending heartbeats):\n1\n")[victim]
    assert code not in (0, None) and (ours in errors or watch in errors), errors[-2000:]
    end(pair[victim])


@pytest.mark.slow
def test_two_processes_train_as_one_though_one_is_killed(tmp_path, alone_losses):
    command = (*TRAIN, *STEPS, "--mesh.fsdp", 2, "--out", "run")
    kill_one(tmp_path, command, 1)
    port = free_port()
    for process in [begin(tmp_path, *command, port=port, process=i) for i in range(2)]:
        code, errors = end(process)
        assert code == 0, errors[-2000:]
    # Sums over devices are in another order.
    np.testing.assert_allclose(losses_of(tmp_path / "run"), alone_losses, rtol=1e-4)
    assert (tmp_path / "run" / "summary.json").exists()


@pytest.mark.slow
def test_the_death_of_process_0_ends_the_others(tmp_path):
    kill_one(tmp_path, (*TRAIN, *STEPS, "--out", "run"), 0)


@pytest.mark.slow
def test_different_options_and_missing_processes_are_one_line(tmp_path):
    port = free_port()
    pair = [begin(tmp_path, *TRAIN, "--seed", seed, "--out", "run", port=port, process=seed) for seed in range(2)]
    for process in pair:
        code, errors = end(process)
        assert code == 2 and "process 1 has seed=1 and process 0 has 0" in errors and "Traceback" not in errors
    assert not (tmp_path / "run").exists()
    waiting = ("--start-timeout", 3)
    code, errors = end(begin(tmp_path, *TRAIN, *waiting, port=free_port(), process=0))
    assert code == 1 and "where process 1 did not come within 3 seconds" in errors
    code, errors = end(begin(tmp_path, *TRAIN, *waiting, port=free_port(), process=1))
    assert code == 1 and "Process 1 could not reach process 0" in errors and "Traceback" not in errors
