"""Evaluating saved models: the front, the file of samples, the grid and its folder, and the command from end to end."""

import csv
import dataclasses
import itertools
import json
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from command_line import files_of, run
from hypothesis import given
from hypothesis import strategies as st
from made_up import evaluate_made_up

import elt_zoo.evaluation._grid
from elt_zoo import load, save
from elt_zoo.data import DigitImages
from elt_zoo.evaluation import (
    Cell,
    CellSampler,
    CellStore,
    EvaluatorOptions,
    SamplePlan,
    grid,
    heldout_task,
    make_evaluator,
)
from elt_zoo.families import MaskGITConfig
from elt_zoo.generator import Generator
from elt_zoo.metrics import SampleWriter, pareto_front, read_images
from elt_zoo.sampling import LoopBudget
from elt_zoo.tokenizers import VQ3DConfig

FEW = ("--samples", 70, "--batch-size", 35, "--devices", 1, "--loops", 1, "--steps", 4, 6, "--no-diagnostics")


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


def test_cells_are_spelled_as_schedules_of_loops():
    assert jnp.asarray(Cell("3", 4, 1.0).budget).tolist() == [3, 3, 3, 3]
    assert jnp.asarray(Cell("1-4", 4, 1.0).budget).tolist() == [1, 2, 3, 4]
    budget = Cell("4-2/1", 3, 1.5).budget
    assert isinstance(budget, LoopBudget)
    assert np.stack([np.asarray(budget.conditional), np.asarray(budget.unconditional)]).tolist() == [
        [4, 3, 2],
        [1, 1, 1],
    ]
    assert Cell("4/1", 12, 1.5).key == "loops4_1-steps12-guidance1.5"
    for loops in ("", "1-", "-1", "1.5", "1/2/3", "four"):
        with pytest.raises(ValueError, match="is no loop schedule"):
            Cell(loops, 4, 1.0)
    for loops in ("0", "0-4", "4/0"):
        with pytest.raises(ValueError, match="asks for no loop at all"):
            Cell(loops, 4, 1.5)
    with pytest.raises(ValueError, match="never run without guidance"):
        Cell("4/1", 4, 1.0)
    with pytest.raises(ValueError, match="must be a finite number"):
        Cell("4", 4, float("nan"))


def test_a_grid_holds_every_combination_once():
    cells = grid(["1", "2", "1"], [4, 8], [1.0, 1.5])
    assert len(cells) == len(set(cells)) == 8
    assert [cell.loops for cell in cells[:2]] == ["1", "2"] and cells[0].steps == cells[1].steps


def test_a_folder_remembers_its_cells_and_refuses_another_protocol(tmp_path):
    folder, first, second = tmp_path / "out", Cell("1", 4, 1.0), Cell("10", 4, 1.0)
    store = CellStore(folder, {"samples": 100, "sampler": {"noise": 1.0}})
    store.write(second, {"figures": {"a": 2.0}})
    store.write(first, {"figures": {"a": 1.0}})
    again = CellStore(folder, {"samples": 100, "sampler": {"noise": 1.0}})
    assert first in again and Cell("3", 4, 1.0) not in again
    results = list(again.read())
    assert [result["figures"]["a"] for result in results] == [1.0, 2.0]
    assert results[0]["cell"] == {"loops": "1", "steps": 4, "guidance": 1.0}
    assert results[0]["protocol"]["samples"] == 100
    before = files_of(folder)
    with pytest.raises(ValueError, match=r"(?s)another protocol.*sampler\.noise: saved 1\.0, given 2\.0"):
        CellStore(folder, {"samples": 100, "sampler": {"noise": 2.0}})
    assert files_of(folder) == before
    odd = {"loops": 2.5, "steps": None, "guidance": "1", "more": 1}
    cells = [results[0]["cell"] | {name: value} for name, value in odd.items()]
    contents = [json.dumps({"cell": cell, "figures": {}}) for cell in [*cells, results[1]["cell"], None]]
    for content in ['{"figures": ', "[]", "{}", json.dumps({"cell": results[0]["cell"], "figures": 1}), *contents]:
        (folder / "cells" / f"{first.key}.json").write_text(content)
        with pytest.raises(ValueError, match=r"loops1-steps4-guidance1\.json is damaged"):
            list(again.read())


def test_a_folder_of_other_files_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(ValueError, match="holds no evaluation"):
        CellStore(tmp_path, {})
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.tex"]


def test_what_is_interrupted_at_its_end_is_neither_half_there_nor_lost(tmp_path, monkeypatch):
    # A cell counts as measured, and is not sampled again: its samples come first.
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(SampleWriter, "__exit__", interrupt)
        evaluate_made_up(tmp_path, ("1",))
    assert list((tmp_path / "cells").iterdir()) == []
    evaluate_made_up(tmp_path, ("1",))
    assert (tmp_path / "samples" / "loops1-steps2-guidance1.npz").exists()
    # The table of before stays until the new one is whole.
    table, write_text = (tmp_path / "results.md").read_text(), Path.write_text

    def cut_off(path, text, **options):
        if path.suffix != ".md":
            return write_text(path, text, **options)
        write_text(path, text[:9])
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "write_text", cut_off)
        evaluate_made_up(tmp_path, ("1", "2"))
    assert (tmp_path / "results.md").read_text() == table
    assert len(evaluate_made_up(tmp_path, ("1", "2")).splitlines()) == len(table.splitlines()) + 1


def interrupt(*_):
    raise KeyboardInterrupt


def figures_of(folder):
    results = json.loads((folder / "results.json").read_text())
    return {json.dumps(result["cell"]): result["figures"] for result in results}


@pytest.mark.slow
def test_an_interrupted_grid_goes_on_to_the_same_figures(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command = ("evaluate", "--model", "digits-maskgit", *FEW)
    run(*command, "--out", "whole", "--export")
    whole = tmp_path / "whole"
    measure, measured = elt_zoo.evaluation._grid._measure, []

    def interrupted(*arguments):
        if measured:
            raise KeyboardInterrupt
        measured.append(arguments)
        return measure(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(elt_zoo.evaluation._grid, "_measure", interrupted)
        stopped = run(*command, "--out", "parts", check=False)
    assert stopped.code == 130 and "What was saved is kept; the same command goes on" in stopped.errors
    assert "Traceback" not in stopped.errors and not (tmp_path / "parts" / "results.json").exists()
    first = tmp_path / "parts" / "cells" / "loops1-steps4-guidance1.json"
    before = first.read_bytes()
    run(*command, "--out", "parts")
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

    refused = run(*command, "--seed", 1, "--out", "parts", check=False)
    assert refused.code == 2 and "error: " in refused.errors and "seed: saved 0, given 1" in refused.errors
    assert first.read_bytes() == before


@pytest.mark.slow
@pytest.mark.parametrize("model", ["digits-dit", "digits-maskgit"])
def test_loops_are_reported_up_to_twice_those_of_training(model, tmp_path):
    cells = ("--samples", 70, "--devices", 2, "--loops", "1-4", "4/1", "--guidance", 1.5, "--steps", 3)
    heldout = ("--heldout", 50, "--heldout-copies", 1, "--heldout-batch", 25)
    finished = run("evaluate", "--model", model, *cells, *heldout, "--out", tmp_path / "out")
    loops = tmp_path / "out" / "loops"
    rows = list(csv.DictReader((loops / "exits.csv").read_text().splitlines()))
    assert [int(row["exit"]) for row in rows] == list(range(1, 9))
    losses = [float(row["heldout_loss"]) for row in rows]
    assert losses[0] > losses[3] and losses[7] > losses[3]
    if model == "digits-maskgit":
        for before, row in itertools.pairwise(rows):
            gained = float(row["self_correction"]) - float(row["overthinking"])
            assert float(row["accuracy"]) - float(before["accuracy"]) == pytest.approx(gained, abs=1e-6)
            assert gained <= float(row["flips"]) <= 1.0
    norms = list(csv.DictReader((loops / "update_norms.csv").read_text().splitlines()))
    steps = {"digits-dit": 16, "digits-maskgit": 12}[model]
    assert len(norms) == steps * 8 and all(float(row["relative"]) > 0 for row in norms)
    for name in ("exits.png", "update_norms.png", "samples.png"):
        assert (loops / name).stat().st_size > 1000
    assert "Past L_max the loss changes by" in finished.output
    # Both budgets of the grid spend fewer loops than four in every evaluation.
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert {result["cell"]["loops"]: result["compute"]["loops"] for result in results} == {"1-4": 16, "4/1": 15}


def test_samples_do_not_depend_on_the_devices():
    """In this process, which has four."""
    generator, cell = load("digits-dit"), Cell("2", 3, 1.0)
    drawn = []
    for devices in (1, 4):
        sampler = CellSampler(generator, SamplePlan(samples=20, batch_size=12, devices=devices, seed=3))
        batches = list(sampler.batches(cell))
        assert [len(batch.labels) for batch in batches] == [12, 8]
        drawn.append(np.concatenate([batch.pixels for batch in batches]))
    np.testing.assert_allclose(*drawn, atol=1e-4)
    another = next(sampler.batches(cell, repeat=1)).pixels
    assert np.abs(another - drawn[0][:12]).max() > 0.1
    for arguments, text in [
        ({"samples": 0}, "must be at least 1"),
        ({"devices": 5}, "there are 4"),
        ({"batch_size": 10}, r"multiple of the 4 device\(s\)"),
    ]:
        with pytest.raises(ValueError, match=text):
            SamplePlan(**({"samples": 20, "batch_size": 12, "devices": 4} | arguments))


def test_a_model_that_diverges_leaves_the_measured_cells_alone(tmp_path):
    generator = load("digits-dit")
    broken = eqx.tree_at(
        lambda model: model.head, generator.model, replace_fn=lambda head: jax.tree.map(nan_like, head)
    )
    save(tmp_path / "broken", dataclasses.replace(generator, model=broken))
    cell = ("--samples", 40, "--steps", 2, "--loops", 1, "--export", "--no-diagnostics")
    refused = run("evaluate", "--model", tmp_path / "broken", *cell, "--out", tmp_path / "out", check=False)
    assert refused.code in (1, 2) and "finite" in refused.errors
    assert not list(tmp_path.glob("out/cells/*")) and not list(tmp_path.glob("out/results*"))


def nan_like(leaf):
    return jnp.full_like(leaf, jnp.nan) if eqx.is_inexact_array(leaf) else leaf


def test_images_need_weights_and_a_reference(tmp_path):
    def make(shape, data=None, **options):
        return make_evaluator(EvaluatorOptions(**options), data=data, shape=shape, folder=tmp_path)

    reference = {"reference": tmp_path / "x.npz"}
    with pytest.raises(ValueError, match=r"`--inception` is missing: the file pt_inception-\S+ .* published at https"):
        make((256, 256, 3), **reference)
    with pytest.raises(ValueError, match=r"`--i3d` is missing: the file model_rgb\.pth"):
        make((16, 128, 128, 3), **reference)
    weights = tmp_path / "nowhere.pth"
    with pytest.raises(ValueError, match="Give one of `--reference`"):
        make((256, 256, 3), inception=weights)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        make((256, 256, 3), inception=weights, **reference)
    # Digits are known by name, not by shape.
    with pytest.raises(ValueError, match="Give one of `--reference`"):
        make((8, 8, 1), data="letters")
    for given_options in ({"inception": weights}, {"reference_data": "real"}, {"extractor": "classifier"}, reference):
        with pytest.raises(ValueError, match="has no use here: digits are compared with the training digits"):
            make((8, 8, 1), data="digits", **given_options)


def test_other_held_out_data_are_explained():
    generator = load("digits-dit")
    config = dataclasses.replace(generator.config, shape=(16, 16, 1), num_classes=11)
    with pytest.raises(ValueError, match=r"num_classes is 11, theirs 10; its shape is \(16, 16, 1\), theirs"):
        heldout_task(dataclasses.replace(generator, config=config), DigitImages("heldout"), 10)


@pytest.mark.slow
def test_own_images_are_measured_by_a_classifier_of_their_own(tmp_path):
    from PIL import Image

    rng = np.random.default_rng(0)
    for index in range(60):
        folder = tmp_path / "real" / f"class{index % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        pixels = np.clip(rng.normal(60 + 120 * (index % 2), 20, (8, 8)), 0, 255)
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{index}.png")
    generator = load("digits-dit")
    sizes = {"num_classes": 2, "dim": 8, "num_heads": 1, "num_layers": 1, "max_loops": 2}
    config = dataclasses.replace(generator.config, **sizes)
    letters = Generator(config.build(key=jax.random.key(0)), config, metadata={"data": "letters"})
    save(tmp_path / "model", letters)
    real = ("--extractor", "classifier", "--reference-data", tmp_path / "real", "--allow-few")
    cell = ("--loops", 1, "--steps", 2, "--samples", 20, "--no-diagnostics")
    run("evaluate", "--model", tmp_path / "model", *real, *cell, "--out", tmp_path / "out")
    (result,) = json.loads((tmp_path / "out" / "results.json").read_text())
    assert min(value for value in result["figures"].values() if np.isfinite(value)) >= 0.0
    assert result["protocol"]["evaluator"]["reference"]["examples"] == 60


@pytest.mark.slow
def test_clips_are_measured_in_several_sets(tmp_path, monkeypatch):
    """The whole command: a tiny generator of clips, I3D with random weights, and videos as the reference."""
    from fixtures.rule import weights
    from test_evaluators import shapes_of
    from video_files import frames_of, write_frames
    from weight_files import write_safetensors

    monkeypatch.chdir(tmp_path)
    sizes = {"channel_multipliers": (1, 1, 1, 1), "num_enc_res_blocks": 1, "num_dec_res_blocks": 1, "groups": 1}
    tokenizer = VQ3DConfig(filters=2, embedding_dim=2, codebook_size=4, **sizes).build(key=jax.random.key(0))
    config = MaskGITConfig(
        dim=8, num_layers=1, max_loops=2, num_heads=1, num_classes=2, grid=tokenizer.grid, codebook_size=4
    )
    save("model", Generator(config.build(key=jax.random.key(1)), config, tokenizer))
    write_safetensors(tmp_path / "i3d", weights(shapes_of("i3d"), 3, 1.2))
    for index in range(4):
        write_frames(tmp_path / "real" / f"class{index % 2}" / f"{index}.avi", frames_of(index, 20, 128, 128))
    real = ("--i3d", "i3d", "--reference-data", "real", "--extractor-batch", 4, "--allow-few", "--no-diagnostics")
    cell = ("--loops", 1, "--steps", 2, "--samples", 4, "--repeats", 2)
    run("evaluate", "--model", "model", *real, *cell, "--out", "out")
    (result,) = json.loads((tmp_path / "out" / "results.json").read_text())
    first, second = result["sets"]
    assert first["FVD"] != second["FVD"] and min(first["FVD"], second["FVD"]) > 0
    assert result["figures"]["FVD"] == pytest.approx((first["FVD"] + second["FVD"]) / 2)
    assert result["protocol"]["repeats"] == 2 and result["protocol"]["evaluator"]["protocol"]["name"] == "magvit"
    assert result["protocol"]["evaluator"]["reference"] == {"data": "real", "examples": 4}
    assert len(list(Path().glob("reference-*.npz"))) == 1
