"""Trackers: what TensorBoard and Weights & Biases get, what they get after a resumption, and that they only read."""

import os
import signal
import struct
import sys
import time

import equinox as eqx
import numpy as np
import pytest
from command_line import TINY, rows_of, run
from PIL import Image
from wandb_stand_in import Wandb

import elt_zoo.commands._train
from elt_zoo import load
from elt_zoo.figures import plot_losses
from elt_zoo.recipes import Throughput
from elt_zoo.trackers import TensorBoardTracker, Trackers, WandbTracker
from elt_zoo.training import Report

PIXELS = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)


@pytest.fixture
def wandb(monkeypatch):
    module = Wandb()
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


@pytest.fixture
def picture(tmp_path):
    Image.fromarray(PIXELS).save(tmp_path / "picture.png")
    return tmp_path / "picture.png"


def pixels_of(file):
    with Image.open(file) as opened:
        return np.asarray(opened)


def events_of(folder):
    """The events in TensorBoard's files, in order."""
    from tensorboardX.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]

    for file in sorted(folder.glob("events.*")):
        content, start = file.read_bytes(), 0
        while start < len(content):  # length, its checksum, the event, its checksum
            (length,) = struct.unpack_from("<Q", content, start)
            yield Event.FromString(content[start + 12 : start + 12 + length])
            start += length + 16


def logged(folder):
    """`(step, name, number or picture)` of everything that TensorBoard shows."""
    shown = []
    for event in events_of(folder):
        if event.session_log.status == event.session_log.START:
            shown = [each for each in shown if each[0] < event.step]
        for value in event.summary.value:
            kind = value.WhichOneof("value")
            shown.append((event.step, value.tag, value.simple_value if kind == "simple_value" else value.image))
    return shown


def test_tensorboard_gets_numbers_and_pictures(tmp_path, picture):
    with TensorBoardTracker(tmp_path / "board") as tracker:
        tracker.log(1, {"loss": 0.5, "student": 0.25})
        tracker.log_picture(4, "samples", picture)
    (first, second, shown) = logged(tmp_path / "board")
    assert first == (1, "loss", 0.5) and second == (1, "student", 0.25)
    assert shown[:2] == (4, "samples") and (shown[2].height, shown[2].width) == (4, 4)


def test_tensorboard_forgets_the_steps_that_are_taken_again(tmp_path):
    attempts = ((0, (1, 4)), (0, (1, 4, 8)), (4, (8, 12)))  # the first was killed before it saved anything
    for number, (taken, steps) in enumerate(attempts):
        with TensorBoardTracker(tmp_path, taken=taken) as tracker:
            for step in steps:
                tracker.log(step, {"loss": float(number)})
        time.sleep(1.1)  # its files are named by the second
    assert logged(tmp_path) == [(1, "loss", 1.0), (4, "loss", 1.0), (8, "loss", 2.0), (12, "loss", 2.0)]


def test_weights_and_biases_gets_the_same_and_resumes_its_run(tmp_path, wandb, picture):
    for _ in range(2):
        with WandbTracker(tmp_path, project="digits", name="ilsd", config={"steps": 8}) as tracker:
            tracker.log(1, {"loss": 0.5})
            tracker.log_picture(4, "samples", picture)
    with WandbTracker(tmp_path, project="digits", name="vanilla", config={}):
        pass
    first, again, other = (each.given for each in wandb.runs)
    assert first == again and first["id"] != other["id"] and first["resume"] == "allow"
    assert first["project"] == "digits" and first["config"] == {"steps": 8} and first["group"] == tmp_path.name
    step, values = wandb.runs[0].rows[1]
    assert wandb.runs[0].rows[0] == (1, {"loss": 0.5})
    assert step == 4 and values["samples"].content == picture.read_bytes()
    assert all(each.finished for each in wandb.runs)


def test_weights_and_biases_says_what_is_missing(tmp_path, wandb, monkeypatch):
    wandb.refuses = "No API key configured."
    with pytest.raises(ConnectionError, match=r"No API key configured\. Log in with `wandb login`, or set WANDB_MODE"):
        WandbTracker(tmp_path, project="digits", name="ilsd", config={})
    monkeypatch.setitem(sys.modules, "wandb", None)
    refused = run("train", *TINY, "--steps", 8, "--wandb", "digits", "--out", tmp_path / "run", check=False)
    assert refused.code == 1 and "pip install 'elt_zoo[wandb]'" in refused.errors
    assert not (tmp_path / "run").exists()


def test_several_trackers_are_told_the_same(tmp_path, wandb, picture):
    def opened(name):
        return WandbTracker(tmp_path, project="digits", name=name, config={})

    with Trackers([opened("one"), opened("two")]) as tracker:
        tracker.log(1, {"loss": 0.5})
        tracker.log_picture(2, "samples", picture)
    one, two = wandb.runs
    assert one.rows == two.rows and len(one.rows) == 2 and one.finished and two.finished


@pytest.mark.optional
def test_the_real_weights_and_biases_writes_a_run_offline(tmp_path, monkeypatch, picture):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    for step in (1, 2):
        with WandbTracker(tmp_path, project="digits", name="ilsd", config={"steps": 8}) as tracker:
            tracker.log(step, {"heldout/exit_1": 0.5})
            tracker.log_picture(step, "samples", picture)
    written = list((tmp_path / "wandb").glob("offline-run-*/*.wandb"))
    assert len({file.name for file in written}) == 1  # one id
    assert all(b"heldout/exit_1" in file.read_bytes() for file in written)
    kept = list((tmp_path / "wandb").glob("offline-run-*/files/media/images/samples_*.png"))
    assert kept and all(np.array_equal(pixels_of(file), PIXELS) for file in kept)


def test_losses_are_drawn_with_and_without_held_out_data(tmp_path):
    curve = {1: 1.0, 50: 0.5, 100: 0.25}
    plot_losses(tmp_path / "training.png", training={"ilsd: teacher": curve}, heldout={})
    plot_losses(tmp_path / "both.png", training={"ilsd: teacher": curve}, heldout={"ilsd: exit 1": {100: 0.3}})
    alone, both = (pixels_of(tmp_path / f"{name}.png").shape for name in ("training", "both"))
    assert both[1] == 2 * alone[1]


def test_speed_is_that_of_the_examples():
    report = Report(8, {"loss": 0.5}, examples_per_second=100.0, data_wait=0.0)
    assert Throughput(2e10).of(report) == {"teraflops": pytest.approx(2.0)}
    assert Throughput(2e10, until=report.step, flops_until=1e10).of(report) == {"teraflops": pytest.approx(1.0)}
    assert Throughput(2e10, until=report.step - 1, flops_until=1e10).of(report) == {"teraflops": pytest.approx(2.0)}
    assert Throughput(2e10, peak=8e12).of(report) == {"teraflops": pytest.approx(2.0), "mfu": pytest.approx(0.25)}


@pytest.mark.slow
def test_a_watched_and_resumed_run_is_the_run_that_nobody_watched(tmp_path, monkeypatch, wandb):
    monkeypatch.chdir(tmp_path)
    command = ("train", *TINY, "--no-compare", "--steps", 8)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "tensorboardX", None)
        unwatched = run(*command, "--out", "unwatched")
    assert "No curves for TensorBoard: This needs tensorboardX" in unwatched.output
    assert not (tmp_path / "unwatched" / "tensorboard").exists() and not wandb.runs

    watch = elt_zoo.commands._train.watch

    def watch_and_stop(watched):
        def look(name, step, model):
            seen = watch(watched)(name, step, model)
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.5)
            return seen

        return look

    command += ("--evaluate-every", 4, "--trace-steps", 6, 7, "--wandb", "digits", "--out", "watched")
    with monkeypatch.context() as patch:
        patch.setattr(elt_zoo.commands._train, "watch", watch_and_stop)
        stopped = run(*command)
    assert "Run the same command again to resume watched" in stopped.output
    resumed = run(*command)
    assert resumed.output.count("tensorboard --logdir watched/tensorboard") == 2
    assert eqx.tree_equal(load("unwatched/model").model, load("watched/model").model)

    assert [int(row["step"]) for row in rows_of(tmp_path / "watched" / "heldout-ilsd.csv")] == [4, 8]
    (trace,) = (tmp_path / "watched" / "trace").rglob("*.xplane.pb")
    assert trace.stat().st_size > 1000
    metrics = rows_of(tmp_path / "watched" / "metrics-ilsd.csv")
    assert "teraflops" in metrics[-1] and "mfu" not in metrics[-1]  # of a processor no peak is known
    assert (tmp_path / "watched" / "losses.png").stat().st_size > 100
    assert len({each.given["id"] for each in wandb.runs}) == 1 and all(each.finished for each in wandb.runs)
    sent = [(step, name) for each in wandb.runs for step, values in each.rows for name in values]
    shown = [(step, name) for step, name, _ in logged(tmp_path / "watched" / "tensorboard" / "ilsd")]
    for step in (4, 8):
        for name in ("loss", "student", "heldout/exit_1", "heldout/exit_2", "samples"):
            assert sent.count((step, name)) == shown.count((step, name)) == 1
