"""What commands leave that are asked to stop, and how they say so."""

import json
import os
import signal
import subprocess
import sys
import time

import equinox as eqx
import pytest
from command_line import TINY, rows_of, run

import elt_zoo.commands._train
from elt_zoo import load


@pytest.mark.slow
def test_a_terminated_run_ends_as_one_that_was_not(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command = ("train", *TINY, "--no-compare", "--steps", 8, "--checkpoint-every", 100)
    run(*command, "--out", "whole")

    def terminate(name, step, model):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.5)

    with monkeypatch.context() as patch:
        patch.setattr(elt_zoo.commands._train, "watch", lambda run: terminate)
        stopped = run(*command, "--evaluate-every", 4, "--out", "parts")
    assert "Run the same command again to resume parts" in stopped.output
    assert not (tmp_path / "parts" / "summary.json").exists()
    steps = [int(path.name) for path in (tmp_path / "parts" / "checkpoints" / "ilsd" / "steps").iterdir()]
    assert 4 <= max(steps) < 8
    run(*command, "--out", "parts")
    whole, parts = (load(tmp_path / name / "model").model for name in ("whole", "parts"))
    assert eqx.tree_equal(whole, parts)


@pytest.mark.slow
def test_two_quick_interrupts_end_training_in_one_line(tmp_path, interruptible):
    arguments = ["train", *TINY, "--no-compare", "--steps", "100000", "--out", "run"]
    metrics = tmp_path / "run" / "metrics-ilsd.csv"
    code, errors = interrupted(arguments, tmp_path, lambda: metrics.exists() and len(rows_of(metrics)) > 1)
    assert code in (0, 130) and "Traceback" not in errors
    assert code == 0 or "What was saved is kept" in errors
    assert any((tmp_path / "run" / "checkpoints" / "ilsd" / "steps").iterdir())
    assert not (tmp_path / "run" / "summary.json").exists()


@pytest.mark.slow
def test_two_quick_interrupts_end_an_evaluation_in_one_line(tmp_path, interruptible):
    grid = ["--samples", 70, "--batch-size", 35, "--devices", 1, "--loops", *range(1, 5), "--steps", *range(4, 12)]
    cell = tmp_path / "out" / "cells" / "loops1-steps4-guidance1.json"
    arguments = ["evaluate", *grid, "--no-diagnostics", "--out", "out"]
    code, errors = interrupted(arguments, tmp_path, cell.exists)
    assert code == 130 and "Traceback" not in errors and "What was saved is kept" in errors
    assert not (tmp_path / "out" / "results.json").exists() and json.loads(cell.read_text())["figures"]


def interrupted(arguments, folder, ready):
    """Runs a command until it is ready, presses Ctrl-C twice, and returns its exit code and what it said."""
    command = [sys.executable, "-m", "elt_zoo", *map(str, arguments)]
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 300
        while not ready():
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        time.sleep(0.03)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=120)
    return process.returncode, errors
