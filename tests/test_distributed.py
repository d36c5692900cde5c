"""Several processes on one machine, as a shell loop starts them."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time

import jax.numpy as jnp
import numpy as np
import pytest
from command_line import SMALL, files_of, rows_of

from elt_zoo.distributed import (
    agree,
    first_says,
    gather,
    gather_arrays,
    is_first,
    launch,
    lost_process,
    start,
    together,
)
from elt_zoo.tokenizers import PatchCodebook, load_tokenizer, save_tokenizer

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
    (arrays,) = gather_arrays({"a": np.arange(3)})
    assert arrays["a"].tolist() == [0, 1, 2]
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


GATHERED = """
import jax.numpy as jnp
import numpy as np
import jax
from elt_zoo.distributed import _gather_arrays, gather_arrays, is_first, start
start()
_gather_arrays._ROUND = 2 * 64  # many rounds
def arrays(process):
    some = np.random.default_rng(process).normal(size=(100 * process + 3, 2))
    return {"double": some, "half": some.astype(np.float16).T, "text": np.asarray("né"), "none": some[:0]} | (
        {"more": np.asarray(2**60)} if process else {}
    )
everything = gather_arrays(arrays(jax.process_index()))
assert len(everything) == (2 if is_first() else 0)
for process, found in enumerate(everything):
    expected = arrays(process)
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)
assert gather_arrays({}) == ([{}, {}] if is_first() else [])
print("right")
"""


@pytest.mark.slow
def test_arrays_come_together_bit_for_bit(alone, capfd):
    assert launch([sys.executable, "-c", GATHERED], processes=2, devices=2) == 0, capfd.readouterr().out[-2000:]
    assert {"[0] right", "[1] right"} <= set(capfd.readouterr().out.splitlines())


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
    """By step: a resumed run repeats the steps that were taken while its checkpoint was being written."""
    return list({int(row["step"]): float(row["loss"]) for row in rows_of(run / "metrics-ilsd.csv")}.values())


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


EVALUATE = ("evaluate", "--samples", 70, "--batch-size", 16, "--devices", 1, "--steps", 2, "--repeats", 2)
CELLS = (*EVALUATE, "--loops", 1, 2, "--export", "--no-diagnostics", "--out", "out")


def pair(folder, *arguments):
    """Runs a command as two processes, each with one device, until both succeed."""
    port = free_port()
    for process in [begin(folder, *arguments, port=port, process=i, devices=1) for i in range(2)]:
        code, errors = end(process)
        assert code == 0, errors[-2000:]


@pytest.mark.slow
def test_two_processes_evaluate_as_one(tmp_path):
    """5 batches for two: the same samples, and scores of what both measured."""
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    code, errors = end(begin(tmp_path / "one", *CELLS, port=0, process=0, processes=1, devices=1))
    assert code == 0, errors[-2000:]
    pair(tmp_path / "two", *CELLS)
    names = sorted(files_of(tmp_path / "one" / "out"))
    assert sorted(files_of(tmp_path / "two" / "out")) == names
    for name in names:
        one, two = (tmp_path / folder / "out" / name for folder in ("one", "two"))
        if name.endswith(".npz"):
            assert one.read_bytes() == two.read_bytes()
        if name.startswith("cells/"):
            one, two = (json.loads(file.read_text()) for file in (one, two))
            assert one["protocol"] == two["protocol"] and len(one["sets"]) == len(two["sets"]) == 2
            assert one["figures"].keys() == two["figures"].keys()
            for metric, value in one["figures"].items():
                # Sums over examples are in another order, in float64.
                assert two["figures"][metric] == pytest.approx(value, rel=1e-9)


@pytest.mark.slow
def test_two_processes_precompute_as_one(tmp_path):
    codes = jnp.asarray(np.random.default_rng(0).normal(size=(16, 4)), jnp.float32)
    save_tokenizer(tmp_path / "patches", PatchCodebook(codes, (8, 8, 1), 2))
    command = ("precompute", "--data", "digits", "--tokenizer", tmp_path / "patches", "--shard-size", 300, "--out")
    code, errors = end(begin(tmp_path, *command, "one", port=0, process=0, processes=1, devices=1))
    assert code == 0, errors[-2000:]
    pair(tmp_path, *command, "two")
    assert files_of(tmp_path / "one") == files_of(tmp_path / "two")
    port = free_port()
    for process in [
        begin(tmp_path, *command, "three", "--process-count", 3, port=port, process=i, devices=1) for i in range(2)
    ]:
        code, errors = end(process)
        assert code == 2 and "These 2 processes share the work by themselves: leave it out" in errors
    assert not (tmp_path / "three").exists()


@pytest.mark.slow
def test_two_processes_train_a_tokenizer_as_one(tmp_path):
    command = ("train-tokenizer", "--batch-size", 16, "--log-every", 1, "--heldout", 32, "--checkpoint-every", 5)
    code, errors = end(
        begin(tmp_path, *command, "--steps", 10, "--out", "one", port=0, process=0, processes=1, devices=1)
    )
    assert code == 0, errors[-2000:]
    pair(tmp_path, *command, "--steps", 10, "--out", "two")
    one, two = (rows_of(tmp_path / name / "metrics-tokenizer.csv") for name in ("one", "two"))
    assert [row["step"] for row in one] == [row["step"] for row in two] == [str(step) for step in range(1, 11)]
    # Sums over devices are in another order.
    for name in ("loss", "psnr", "perplexity"):
        found, expected = ([float(row[name]) for row in rows] for rows in (two, one))
        np.testing.assert_allclose(found, expected, rtol=1e-4)
    load_tokenizer(tmp_path / "two" / "tokenizer")


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
