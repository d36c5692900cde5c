"""Several processes of one machine, started by one command."""

import os
import signal
import subprocess
import sys
import time

import pytest

from elt_zoo.distributed import launch

SAY = "import os; e = os.environ; print(e['JAX_PROCESS_ID'], e['JAX_NUM_PROCESSES'], e.get('XLA_FLAGS'))"


def python(code):
    return [sys.executable, "-c", code]


def test_every_process_is_told_who_it_is(capfd, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--kept")
    assert launch(python(SAY), processes=2, devices=3) == 0
    flags = "--kept --xla_force_host_platform_device_count=3"
    assert sorted(capfd.readouterr().out.splitlines()) == [f"[0] 0 2 {flags}", f"[1] 1 2 {flags}"]


def test_gpus_are_shared_evenly(capfd, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
    assert launch(python("import os; print(os.environ['CUDA_VISIBLE_DEVICES'])"), processes=2) == 0
    assert sorted(capfd.readouterr().out.splitlines()) == ["[0] 4,5", "[1] 6,7"]
    with pytest.raises(ValueError, match=r"names 4 GPU\(s\), which 3 processes cannot share evenly"):
        launch(python("pass"), processes=3)


WAIT = """
import os, signal, sys, time
first = os.environ["JAX_PROCESS_ID"] == "0"
def save(number, frame):
    os.write(1, b"saved\\n")  # the signal may come while `print` is still at work, which cannot be called again then
    sys.exit(0)
signal.signal(signal.SIGTERM, signal.SIG_IGN if STUBBORN else save)
print("ready", flush=True)
if first and FAILS:
    time.sleep(0.5)
    sys.exit(7)
time.sleep(60)
"""


@pytest.mark.parametrize("stubborn", [False, True])
def test_a_process_that_fails_ends_the_others(capfd, stubborn):
    started = time.monotonic()
    code = WAIT.replace("STUBBORN", str(stubborn)).replace("FAILS", "True")
    assert launch(python(code), processes=2, grace=1.0) == 7
    assert time.monotonic() - started < 50
    assert ("[1] saved" in capfd.readouterr().out) == (not stubborn)


def test_a_signal_reaches_all(tmp_path):
    code = WAIT.replace("STUBBORN", "False").replace("FAILS", "False")
    command = [sys.executable, "-m", "elt_zoo.distributed", "--processes", "2", "--", *python(code)]
    started = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    lines = [started.stdout.readline() for _ in range(2)]
    assert sorted(lines) == ["[0] ready\n", "[1] ready\n"]
    os.kill(started.pid, signal.SIGTERM)
    rest, _ = started.communicate(timeout=60)
    assert sorted(rest.splitlines()) == ["[0] saved", "[1] saved"] and started.returncode == 0


def test_wrong_calls_are_refused():
    with pytest.raises(ValueError, match="needs a command, at least one process"):
        launch([], processes=2)
    with pytest.raises(ValueError, match="at least one device"):
        launch(python("pass"), processes=1, devices=0)
    with pytest.raises(FileNotFoundError):
        launch(["no-such-command"], processes=1)
