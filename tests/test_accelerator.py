"""The benchmark of accelerators: it goes on where it stopped, and survives what does not fit."""

import importlib
import json
import sys
from pathlib import Path

import jax
import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def accelerator(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    yield importlib.import_module("accelerator")
    del sys.modules["accelerator"]


def test_a_batch_is_halved_until_it_fits(accelerator):
    tried = []

    def measure(batch):
        tried.append(batch)
        if batch > 4:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")
        return {"batch": batch}

    assert accelerator.fitting(measure, 16) == {"batch": 4} and tried == [16, 8, 4]
    with pytest.raises(ValueError, match="another"):
        accelerator.fitting(lambda batch: (_ for _ in ()).throw(ValueError("another")), 16)


def test_what_was_measured_is_kept_and_a_failure_stops_nothing(accelerator, monkeypatch, tmp_path, capsys):
    measured = []

    def fine(name):
        measured.append(name)
        return {"ms": 1.5}

    def fails():
        raise RuntimeError("no | such\nkernel")

    cases = [
        accelerator.Case("Values", "one", lambda: fine("one")),
        accelerator.Case("Values", "two", fails),
        accelerator.Case("Speed", "three", lambda: fine("three")),
    ]
    monkeypatch.setattr(accelerator, "cases", lambda small, train_seconds: iter(cases))

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["accelerator.py", "--out", str(tmp_path), *arguments])
        accelerator.main()
        return capsys.readouterr().out

    assert "3 left: run it again" in run("--minutes", "1e-12") and not measured
    assert "All of it is in" in run() and measured == ["one", "three"]
    assert "All of it is in" in run() and measured == ["one", "three"]
    run("--again")
    assert measured == ["one", "three"] * 2
    (file,) = tmp_path.glob("accelerator-*.json")
    parts = json.loads(file.read_text())["parts"]
    assert parts["Speed"] == {"three": {"ms": 1.5}}
    text = file.with_suffix(".md").read_text()
    assert "| two |  | RuntimeError: no such kernel |" in text


def test_the_small_parts_are_the_large_ones(accelerator):
    small, large = ({case.part for case in accelerator.cases(small, 1.0)} for small in (True, False))
    assert small == large == {"Values", "Training", "Sampling", "Latency", "ILSD", "A real training"}


@pytest.mark.slow
def test_values_and_a_training_step_are_measured(accelerator):
    from elt_zoo.families import DiTConfig

    assert accelerator.values("digits-dit", "exits", "bfloat16")["within"]
    tiny = DiTConfig(shape=(4, 4, 1), patch_size=2, num_classes=10, dim=16, num_layers=1, max_loops=2, num_heads=2)
    row = accelerator.training(tiny, 4)
    assert row["batch"] == 4 and row["ms a step"] > 0.0 and row["MiB of temporaries"] > 0.0
    trained = accelerator.real_training(0.1)
    assert trained["steps"] >= 1 and trained["updates skipped"] == 0
