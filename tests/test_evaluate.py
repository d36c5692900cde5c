"""Evaluating saved models: the front, the file of samples, the grid and its folder, and the command from end to end."""

import csv
import dataclasses
import itertools
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from elt_zoo import load, save
from elt_zoo.families import MaskGITConfig
from elt_zoo.metrics import SampleWriter, pareto_front, read_images
from elt_zoo.sampling import LoopBudget
from elt_zoo.tokenizers import VQ3DConfig

EXAMPLES = Path(__file__).parents[1] / "examples"
FEW = ("--samples", 70, "--batch-size", 35, "--devices", 1, "--loops", "1", "--steps", 4, 6, "--no-diagnostics")


@pytest.fixture
def cells(monkeypatch):
    """The example's module of that name."""
    monkeypatch.syspath_prepend(EXAMPLES)
    import cells

    return cells


# Few values, so that there are ties.
points = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=12)


@given(points)
def test_the_front_is_what_no_point_dominates(points):
    def dominated(point):
        return any(other != point and other[0] <= point[0] and other[1] <= point[1] for other in points)

    costs, figures = [float(cost) for cost, _ in points], [float(figure) for _, figure in points]
    assert pareto_front(costs, figures).tolist() == [not dominated(point) for point in points]


def test_a_front_of_broken_points_is_refused():
    with pytest.raises(ValueError, match="got 2 costs and 1 figures"):
        pareto_front([1.0, 2.0], [1.0])
    with pytest.raises(ValueError, match="not numbers"):
        pareto_front([1.0, 2.0], [1.0, float("nan")])


def test_samples_are_written_as_numpy_and_we_read_them(tmp_path):
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (7, 4, 6, 3), np.uint8), np.arange(7)
    path = tmp_path / "samples.npz"
    with SampleWriter(path, count=7, shape=(4, 6, 3)) as writer:
        writer.add(images[:4], labels[:4])
        writer.add(images[4:], labels[4:])
    with np.load(path) as file:
        assert file.files == ["arr_0", "arr_1"]
        np.testing.assert_array_equal(file["arr_0"], images)
        np.testing.assert_array_equal(file["arr_1"], labels)
    np.testing.assert_array_equal(np.concatenate(list(read_images(path, batch_size=3))), images)
    with pytest.raises(FileExistsError, match="exists already"):
        SampleWriter(path, count=7, shape=(4, 6, 3))


def test_a_file_of_samples_is_whole_or_not_there(tmp_path):
    images, labels = np.zeros((2, 4, 4, 3), np.uint8), np.arange(2)
    path = tmp_path / "samples.npz"
    with pytest.raises(ValueError, match="announced to hold 3 samples; got 2"):
        with SampleWriter(path, count=3, shape=(4, 4, 3)) as writer:
            writer.add(images, labels)
    with pytest.raises(ValueError, match="announced to hold 1 samples; got 2"):
        with SampleWriter(path, count=1, shape=(4, 4, 3)) as writer:
            writer.add(images, labels)
    with pytest.raises(ValueError, match=r"of shape \(8, 8, 3\); got \(4, 4, 3\)"):
        with SampleWriter(path, count=2, shape=(8, 8, 3)) as writer:
            writer.add(images, labels)
    with pytest.raises(RuntimeError, match="from within"):
        with SampleWriter(path, count=2, shape=(4, 4, 3)) as writer:
            raise RuntimeError("from within")
    assert list(tmp_path.iterdir()) == []


def test_cells_are_spelled_as_schedules_of_loops(cells):
    assert cells.Cell("3", 4, 1.0).budget.tolist() == [3, 3, 3, 3]
    assert cells.Cell("1-4", 4, 1.0).budget.tolist() == [1, 2, 3, 4]
    budget = cells.Cell("4-2/1", 3, 1.5).budget
    assert isinstance(budget, LoopBudget)
    assert jnp.stack([budget.conditional, budget.unconditional]).tolist() == [[4, 3, 2], [1, 1, 1]]
    assert cells.Cell("4/1", 12, 1.5).key == "loops4_1-steps12-guidance1.5"
    for loops in ("", "1-", "-1", "1.5", "1/2/3", "four"):
        with pytest.raises(ValueError, match="is no loop schedule"):
            cells.Cell(loops, 4, 1.0)
    with pytest.raises(ValueError, match="needs at least one"):
        _ = cells.Cell("0", 4, 1.0).budget
    with pytest.raises(ValueError, match="never run without guidance"):
        cells.Cell("4/1", 4, 1.0)


def test_a_grid_holds_every_combination_once(cells):
    grid = cells.grid(["1", "2", "1"], [4, 8], [1.0, 1.5])
    assert len(grid) == len(set(grid)) == 8
    assert [cell.loops for cell in grid[:2]] == ["1", "2"] and grid[0].steps == grid[1].steps


def test_a_folder_remembers_its_cells_and_refuses_another_protocol(cells, tmp_path):
    folder, first, second = tmp_path / "out", cells.Cell("1", 4, 1.0), cells.Cell("10", 4, 1.0)
    store = cells.CellStore(folder, {"samples": 100, "sampler": {"noise": 1.0}})
    store.write(second, {"figures": {"a": 2.0}})
    store.write(first, {"figures": {"a": 1.0}})
    again = cells.CellStore(folder, {"samples": 100, "sampler": {"noise": 1.0}})
    assert first in again and cells.Cell("3", 4, 1.0) not in again
    results = list(again.read())
    assert [result["figures"]["a"] for result in results] == [1.0, 2.0]
    assert results[0]["cell"] == {"loops": "1", "steps": 4, "guidance": 1.0}
    assert results[0]["protocol"]["samples"] == 100
    before = {file: file.read_bytes() for file in folder.rglob("*.json")}
    with pytest.raises(ValueError, match=r"(?s)another protocol.*sampler\.noise: saved 1\.0, given 2\.0"):
        cells.CellStore(folder, {"samples": 100, "sampler": {"noise": 2.0}})
    assert {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()} == before
    (folder / "cells" / f"{first.key}.json").write_text('{"figures": ')
    with pytest.raises(ValueError, match=r"is damaged.*Delete it"):
        list(again.read())


def test_a_folder_of_other_files_is_left_alone(cells, tmp_path):
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(ValueError, match="holds no evaluation"):
        cells.CellStore(tmp_path, {})
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.tex"]


def run(*arguments, cwd, check=True):
    command = [sys.executable, str(EXAMPLES / "evaluate.py"), *map(str, arguments)]
    result = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=600)
    assert not check or result.returncode == 0, result.stderr[-3000:]
    return result


def figures_of(folder):
    results = json.loads((folder / "results.json").read_text())
    return {json.dumps(result["cell"]): result["figures"] for result in results}


@pytest.mark.slow
@pytest.mark.parametrize("model", ["digits-dit", "digits-maskgit"])
def test_an_interrupted_grid_goes_on_to_the_same_figures(model, tmp_path):
    run("--model", model, *FEW, "--out", "whole", "--export", cwd=tmp_path)
    whole = tmp_path / "whole"
    command = [sys.executable, EXAMPLES / "evaluate.py", "--model", model, *FEW, "--out", "parts"]
    with subprocess.Popen(list(map(str, command)), cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
        first = tmp_path / "parts" / "cells" / "loops1-steps4-guidance1.json"
        deadline = time.monotonic() + 300
        while not first.exists():
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)  # while the second program compiles
        _, errors = process.communicate(timeout=120)
    # On a busy machine the run may be over before the signal comes.
    if process.returncode != 0:
        assert process.returncode == 1 and "Run the same command again" in errors and "Traceback" not in errors
        assert not (tmp_path / "parts" / "results.json").exists()
    before = first.read_bytes()
    run("--model", model, *FEW, "--out", "parts", cwd=tmp_path)
    assert first.read_bytes() == before
    assert figures_of(tmp_path / "parts") == figures_of(whole) and len(figures_of(whole)) == 2
    for name in ("results.md", "pareto.png"):
        assert (whole / name).stat().st_size > 100
    rows = list(csv.DictReader((whole / "results.csv").read_text().splitlines()))
    assert [row["steps"] for row in rows] == ["4", "6"] and "True" in {row["pareto"] for row in rows}
    assert float(rows[0]["milliseconds_per_sample"]) > 0
    assert int(rows[0]["flops_per_sample"]) < int(rows[1]["flops_per_sample"])
    # What was exported is what was measured, and as many of each class.
    with np.load(whole / "samples" / "loops1-steps6-guidance1.npz") as file:
        assert file["arr_0"].shape == (70, 8, 8, 3) and file["arr_0"].dtype == np.uint8
        assert np.bincount(file["arr_1"]).tolist() == [7] * 10
    card = json.loads(first.read_text())
    assert card["protocol"]["samples"] == 70 and card["run"]["versions"]["jax"]
    assert card["compute"]["time"]["samples"] == 35

    refused = run("--model", model, *FEW, "--seed", 1, "--out", "parts", cwd=tmp_path, check=False)
    assert refused.returncode == 1 and "error: " in refused.stderr and "seed: saved 0, given 1" in refused.stderr
    assert first.read_bytes() == before


@pytest.mark.slow
@pytest.mark.parametrize("model", ["digits-dit", "digits-maskgit"])
def test_loops_are_reported_up_to_twice_those_of_training(model, tmp_path):
    grid = ("--samples", 70, "--devices", 2, "--loops", "1-4", "4/1", "--guidance", 1.5, "--steps", 3)
    heldout = ("--heldout", 50, "--heldout-copies", 1, "--heldout-batch", 25)
    result = run("--model", model, *grid, *heldout, "--out", "out", cwd=tmp_path)
    loops = tmp_path / "out" / "loops"
    rows = list(csv.DictReader((loops / "exits.csv").read_text().splitlines()))
    assert [int(row["exit"]) for row in rows] == list(range(1, 9))
    losses = [float(row["heldout_loss"]) for row in rows]
    assert losses[0] > losses[3] and losses[7] > losses[3]
    if model == "digits-maskgit":
        for before, row in itertools.pairwise(rows):
            gained = float(row["self_correction"]) - float(row["overthinking"])
            assert float(row["accuracy"]) - float(before["accuracy"]) == pytest.approx(gained, abs=1e-6)
            assert float(row["agreement_with_previous"]) == pytest.approx(1.0 - float(row["flips"]), abs=1e-6)
    norms = list(csv.DictReader((loops / "update_norms.csv").read_text().splitlines()))
    steps = {"digits-dit": 16, "digits-maskgit": 12}[model]
    assert len(norms) == steps * 8 and all(float(row["relative"]) > 0 for row in norms)
    for name in ("exits.png", "update_norms.png", "samples.png"):
        assert (loops / name).stat().st_size > 1000
    assert "Past L_max the loss changes by" in result.stdout
    # Both budgets of the grid spend fewer loops than four in every evaluation.
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert {result["cell"]["loops"]: result["compute"]["loops"] for result in results} == {"1-4": 16, "4/1": 15}


@pytest.mark.slow
def test_samples_do_not_depend_on_the_devices(cells):
    """In this process, which has four."""
    from generation import Generator
    from samplers import SamplerSettings

    loaded = load("digits-dit")
    settings = SamplerSettings(**loaded.metadata["sampler"])
    drawn = []
    for devices in (1, 4):
        generator = Generator(loaded, settings, samples=20, batch_size=12, devices=devices, seed=3)
        batches = list(generator.batches(cells.Cell("2", 3, 1.0)))
        assert [len(batch.labels) for batch in batches] == [12, 8]
        drawn.append(np.concatenate([batch.pixels for batch in batches]))
    np.testing.assert_allclose(*drawn, atol=1e-4)
    another = next(generator.batches(cells.Cell("2", 3, 1.0), repeat=1)).pixels
    assert np.abs(another - drawn[0][:12]).max() > 0.1
    for arguments, text in [
        ({"samples": 0}, "draw at least one"),
        ({"devices": 5}, "there are 4"),
        ({"batch_size": 10}, r"multiple of the 4 device\(s\)"),
    ]:
        with pytest.raises(ValueError, match=text):
            Generator(loaded, settings, **({"samples": 20, "batch_size": 12, "devices": 4, "seed": 0} | arguments))


@pytest.mark.slow
def test_bad_input_is_one_line_and_leaves_nothing(tmp_path):
    for arguments, text in [
        (("--samples", 30), "error: `--samples 30` are too few for a covariance of 32 features"),
        (("--repeats", 0), "`--repeats 0` must be at least 1"),
    ]:
        refused = run(*arguments, cwd=tmp_path, check=False)
        # Argument parsing frames and wraps what a config refuses.
        words = " ".join(refused.stderr.translate(dict.fromkeys(map(ord, "╭╮╰╯│─"))).split())
        assert refused.returncode != 0 and text in words, refused.stderr
        assert "Traceback" not in refused.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_what_cannot_be_drawn_or_measured_is_refused_first(cells, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    from evaluate import Config, main

    for options, text in [
        ({"loops": ("0",)}, "0 loops draws nothing"),
        ({"model": "digits-maskgit", "steps": (17,)}, "cannot reveal 16 tokens"),
        ({"steps": (0,)}, "at least one step"),
    ]:
        with pytest.raises(ValueError, match=text):
            main(Config(**options))
    with pytest.raises(ValueError, match="names no loop counts"):
        Config(loops=())
    with pytest.raises(FileNotFoundError, match="No model at 'nowhere'"):
        main(Config(model="nowhere"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_model_that_diverges_leaves_the_measured_cells_alone(cells, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    from evaluate import Config, main

    loaded = load("digits-dit")
    broken = eqx.tree_at(lambda model: model.head, loaded.model, replace_fn=lambda head: jax.tree.map(nan_like, head))
    save(tmp_path / "broken", broken, loaded.config, metadata=loaded.metadata)
    with pytest.raises(ValueError, match="not finite"):
        main(Config(model="broken", out=Path("out"), samples=40, steps=(2,), loops=("1",), export=True))
    assert [file.name for file in (tmp_path / "out").rglob("*") if file.is_file()] == ["protocol.json"]


def nan_like(leaf):
    return jnp.full_like(leaf, jnp.nan) if eqx.is_inexact_array(leaf) else leaf


@pytest.mark.slow
def test_images_need_weights_and_a_reference(cells, tmp_path):
    from evaluators import EvaluatorOptions, make_evaluator

    with pytest.raises(ValueError, match=r"`--inception` is missing: the file pt_inception-\S+ .* published at https"):
        make_evaluator(EvaluatorOptions(), (256, 256, 3), tmp_path)
    with pytest.raises(ValueError, match=r"`--i3d` is missing: the file model_rgb\.pth"):
        make_evaluator(EvaluatorOptions(), (16, 128, 128, 3), tmp_path)
    weights = tmp_path / "nowhere.pth"
    with pytest.raises(ValueError, match="Give one of `--reference`"):
        make_evaluator(EvaluatorOptions(inception=weights), (256, 256, 3), tmp_path)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        make_evaluator(EvaluatorOptions(inception=weights, reference=tmp_path / "x.npz"), (256, 256, 3), tmp_path)


@pytest.mark.slow
def test_missing_tokenizers_and_other_data_are_explained(cells):
    from evaluate import sample_shape
    from loops import heldout_task
    from samplers import SamplerSettings

    from elt_zoo.data import DigitImages

    dit, maskgit = load("digits-dit"), load("digits-maskgit")
    assert sample_shape(dit) == sample_shape(maskgit) == (8, 8, 1)
    with pytest.raises(ValueError, match="makes tokens, and was saved without"):
        sample_shape(maskgit._replace(tokenizer=None))
    with pytest.raises(ValueError, match="makes latents, and was saved without"):
        sample_shape(dit._replace(config=dataclasses.replace(dit.config, shape=(8, 8, 4))))
    other = dit._replace(config=dataclasses.replace(dit.config, shape=(16, 16, 1), num_classes=11))
    with pytest.raises(ValueError, match=r"num_classes is 11, theirs 10; its shape is \(16, 16, 1\), theirs"):
        heldout_task(other, DigitImages("heldout"), SamplerSettings(), 10)


@pytest.mark.slow
def test_clips_are_measured_in_several_sets(cells, monkeypatch, tmp_path):
    """The whole command: a tiny generator of clips, I3D with random weights, and videos as the reference."""
    monkeypatch.chdir(tmp_path)
    from evaluate import Config, main
    from evaluators import EvaluatorOptions
    from fixtures.rule import weights
    from test_evaluators import shapes_of
    from video_files import frames_of, write_frames
    from weight_files import write_safetensors

    sizes = {"channel_multipliers": (1, 1, 1, 1), "num_enc_res_blocks": 1, "num_dec_res_blocks": 1, "groups": 1}
    tokenizer = VQ3DConfig(filters=2, embedding_dim=2, codebook_size=4, **sizes).build(key=jax.random.key(0))
    config = MaskGITConfig(
        dim=8, num_layers=1, max_loops=2, num_heads=1, num_classes=2, grid=tokenizer.grid, codebook_size=4
    )
    save("model", config.build(key=jax.random.key(1)), config, tokenizer=tokenizer)
    write_safetensors(tmp_path / "i3d", weights(shapes_of("i3d"), 3, 1.2))
    for index in range(4):
        write_frames(tmp_path / "real" / f"class{index % 2}" / f"{index}.avi", frames_of(index, 20, 128, 128))
    options = EvaluatorOptions(i3d=Path("i3d"), reference_data="real", extractor_batch=4, allow_few=True)
    cell = {"loops": ("1",), "steps": (2,), "samples": 4, "repeats": 2}
    main(Config(model="model", out=Path("out"), evaluator=options, diagnostics=False, **cell))
    (result,) = json.loads((tmp_path / "out" / "results.json").read_text())
    first, second = result["sets"]
    name = "FVD"
    assert first[name] != second[name] and min(first[name], second[name]) > 0
    assert result["figures"][name] == pytest.approx((first[name] + second[name]) / 2)
    assert result["protocol"]["repeats"] == 2 and result["protocol"]["evaluator"]["protocol"]["name"] == "magvit"
    assert result["protocol"]["evaluator"]["reference"] == {"data": "real", "examples": 4}
    assert len(list(tmp_path.glob("reference-*.npz"))) == 1
