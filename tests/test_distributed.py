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

TRAIN = ("train", *SMALL, "--dim", 64, "--batch-size", 16, "--samples", 100, "--sampler.steps", 2, "--log-every", 1)
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
    environment = os.environ | {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
    environment = {name: value for name, value in environment.items() if not name.startswith("JAX_NUMPY")}
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


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path):
    command, port = (*TRAIN, "--no-compare", "--steps", 20), free_port()
    pair = [begin(tmp_path, *command, "--mesh.fsdp", 2, "--out", "two", port=port, process=i) for i in range(2)]
    for process in pair:
        code, errors = end(process)
        assert code == 0, errors[-2000:]
    code, errors = end(begin(tmp_path, *command, "--out", "one", port=0, process=0, processes=1, devices=1))
    assert code == 0, errors[-2000:]
    # Sums over devices are in another order.
    np.testing.assert_allclose(losses_of(tmp_path / "two"), losses_of(tmp_path / "one"), rtol=1e-4)
    assert (tmp_path / "two" / "summary.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_ends_the_other_which_says_so(tmp_path, victim):
    command, port = (*TRAIN, "--no-compare", "--steps", 100_000, "--checkpoint-every", 5, "--out", "run"), free_port()
    pair = [begin(tmp_path, *command, port=port, process=i) for i in range(2)]
    deadline = time.monotonic() + 300
    while not (tmp_path / "run" / "checkpoints" / "ilsd" / "steps" / "5").exists():
        assert time.monotonic() < deadline and all(process.poll() is None for process in pair)
        time.sleep(0.2)
    pair[victim].send_signal(signal.SIGKILL)
    code, errors = end(pair[1 - victim], seconds=60)
    # Where it was not waiting for data of the other, such as in a barrier of Orbax, JAX's watch ends it.
    ours, watch = f"process {victim} of 2 has ended or cannot be reached", "another task died"
    assert code not in (0, None) and (ours in errors or watch in errors)
    end(pair[victim])


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
