"""The reproduction in the small: its cases, the judgement of its claims, its files, and one short run of each kind."""

import dataclasses
import gzip
import json
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from published_files import made_up_cifar10, write_cifar10

import elt_zoo
from elt_zoo.data.published import _cifar10


def record(case, seed, losses, *, quality=None):
    """What a run leaves, made up: a curve of three milestones that ends with `losses`."""
    curve = {str(step): [scale * loss for loss in losses] for step, scale in ((10, 3.0), (20, 2.0), (30, 1.0))}
    figures = {"curve": curve, "quality": quality or {}, "parameters": 2000, "trunk_parameters": 1000}
    figures |= {"train_losses": losses, "sample_flops": 10**6, "skipped": 0}
    return {"case": dataclasses.asdict(case), "seed": seed, "figures": figures}


def made_up(data="digits", **losses_of):
    """Results of all cases on two seeds; `losses_of` gives an objective other losses of its exits."""
    from reproduction._cases import all_cases
    from reproduction._results import Results

    runs = []
    for case in all_cases(data):
        exits = 2 * case.max_loops if case.max_loops > 1 else 1
        for seed in (0, 1):
            losses = losses_of.get(case.objective, [1.0] * exits)[:exits]
            losses = [*losses, *[losses[-1]] * (exits - len(losses))]
            quality = {str(case.max_loops): {"distance": 2.0 + seed, "accuracy": 0.9}}
            runs.append(record(case, seed, losses, quality=quality))
    return Results(runs)


def verdicts(results, text):
    from reproduction._claims import CLAIMS

    (claim,) = (claim for claim in CLAIMS if text in claim.text)
    return [claim.verdict(results, "digits", family) for family in ("dit", "maskgit")]


def test_every_claim_finds_its_runs_among_those_of_the_digits():
    from reproduction._claims import CLAIMS

    results = made_up()
    for claim in CLAIMS:
        for family in ("dit", "maskgit"):
            assert claim.verdict(results, "digits", family) != "–", claim.text


def test_cases_differ_and_have_names_of_their_own():
    from reproduction._cases import all_cases

    for data in ("digits", "MNIST"):
        cases = all_cases(data)
        assert len({case.name for case in cases}) == len(set(cases)) == len(cases)


def test_models_of_equal_compute_have_one_effective_depth():
    from reproduction._cases import LOOPED, depth_cases

    for family, (layers, loops) in LOOPED.items():
        cases = depth_cases("digits", family)
        assert {case.num_layers * case.max_loops for case in cases} == {layers * loops}
        assert cases[0].max_loops == 1 and cases[-1].num_layers == 1


def test_cifar10_becomes_small_colour_images_with_the_official_test_images_held_out(tmp_path, monkeypatch):
    from reproduction._data import cifar10

    monkeypatch.setattr(_cifar10, "IMAGES_OF_A_FILE", 20)
    data = cifar10(str(write_cifar10(tmp_path, made_up_cifar10(20))))
    assert (data.train.examples.shape, data.heldout.examples.shape) == ((100, 16, 16, 3), (20, 16, 16, 3))
    assert data.shape == (16, 16, 3) and data.train.labels.max() == 9
    assert -1.0 <= data.train.examples.min() < data.train.examples.max() <= 1.0


def test_the_exponent_of_loops_is_read_off_the_losses_of_unique_layers():
    from reproduction._cases import Case
    from reproduction.loops import exponent

    unique = {1: 0.4, 2: 0.3, 4: 0.25, 8: 0.2}
    plain, around = Case("digits", "dit", 2, 4), Case("digits", "dit", 2, 3, prelude=1, coda=1)
    for case, loss, expected in [
        (plain, 0.3, 0.0),  # as good as its own two layers
        (plain, 0.25, 0.5),  # as four
        (plain, 0.2, 1.0),  # as eight
        (around, 0.25, 0.0),
        (around, 0.2, 1.0),
        (plain, 0.1, 1.0),  # better than the curve says anything about
    ]:
        np.testing.assert_allclose(exponent(case, loss, unique), expected, atol=1e-9)
    with pytest.raises(ValueError, match="More unique layers are not better"):
        exponent(plain, 0.3, {1: 0.3, 2: 0.4})
    with pytest.raises(ValueError, match=r"two or more numbers of unique layers, and not of \[2\]"):
        exponent(plain, 0.3, {2: 0.3})


def test_loops_are_compared_at_the_rate_that_is_best_for_each():
    from reproduction._results import Results
    from reproduction.loops import at_rates, best, edges, looped_cases, table, unique_cases

    models = unique_cases("digits", "dit") | looped_cases("digits", "dit")
    rates, runs = (0.1, 0.2), []
    for case in models.values():
        exits = 2 * case.max_loops if case.max_loops > 1 else 1
        for rate, rated in zip(rates, at_rates(case, rates), strict=True):
            for seed in (0, 1):
                # The higher rate is better, and so are more layers.
                loss = 1.0 / (case.prelude + case.num_layers + case.coda) / rate + 0.1 * seed
                runs.append(record(rated, seed, [loss] * exits))
    results = Results(runs)
    chosen = {name: best(results, model, rates) for name, model in models.items()}
    assert {case.learning_rate for case in chosen.values()} == {0.2}
    # One lucky run says less than two.
    (lucky,) = at_rates(models["the paper's"], (0.4,))
    assert best(Results([*runs, record(lucky, 0, [0.0] * 8)]), lucky, (*rates, 0.4)).learning_rate == 0.2
    assert "tried: 1 unique layers; " in edges(results, chosen, rates) and edges(results, chosen, (0.2,)) == ""
    middle = Results(
        [*runs, *(record(rated, 0, [9.0] * 8) for model in models.values() for rated in at_rates(model, (0.4,)))]
    )
    assert edges(middle, chosen, (*rates, 0.4)) == ""
    lines = table(results, chosen).splitlines()
    assert len(lines) == 2 + len(models)
    (around,) = [line for line in lines if line.startswith("| prelude and coda |")]
    assert "1 + 2N×3L + 1" in around and "| 0.0% (0.0 standard errors) |" in around
    names = {case.name for model in models.values() for case in at_rates(model, rates)}
    assert len(names) == len(rates) * len(models)


def test_layers_of_other_parts_are_compared_with_their_own_kind():
    from reproduction._cases import Case
    from reproduction._results import Results
    from reproduction.loops import all_models, at_rates, table

    models = all_models("digits", "muon")
    masked = {name: case.layers for name, case in all_models("digits", "muon", "maskgit").items() if case.layers}
    assert set(masked.values()) == {("ada_ln",)} and all(name.startswith("adaLN") for name in masked)
    together = "RMS, QK, rotary, SwiGLU"
    looped, unlooped = models[together], models[f"2 unique layers, {together}"]
    assert looped.name == "digits-dit-2Nx4L-ilsd-reinjection_0.5-rms_norm-qk_norm-rotary-swiglu-student_0.25-muon"
    on = {"rms_norm": True, "qk_norm": True, "rotary": True, "swiglu": True}
    assert looped.sizes == models["re-injected × 1/2"].sizes | on
    assert unlooped.sizes == models["2 unique layers"].sizes | on
    assert [models[name].layers for name in ("RMS norm", "QK norm", "rotary", "SwiGLU")] == [(each,) for each in on]
    assert Case(**json.loads(json.dumps(dataclasses.asdict(looped)))) == looped

    losses = {"2 unique layers": 1.0, "4 unique layers": 0.5, "re-injected × 1/2": 0.75}
    losses |= {f"2 unique layers, {together}": 0.4, together: 0.3, "RMS norm": 0.7}
    chosen = {name: at_rates(models[name], (0.1,))[0] for name in losses}
    results = Results(
        record(case, 0, [losses[name]] * (2 * case.max_loops if case.max_loops > 1 else 1))
        for name, case in chosen.items()
    )
    rows = [line.removeprefix("| ").split(" | ") for line in table(results, chosen).splitlines()[2:]]
    gains = {row[0]: row[9:11] for row in rows}
    assert gains["re-injected × 1/2"] == ["25.0%", "0.25"]
    # Two layers with all the parts are the only ones to compare with, and nothing is like the norms alone.
    assert gains[together] == ["25.0%", "–"] and gains["RMS norm"] == ["", "–"]


def test_the_front_has_the_budgets_that_no_other_beats_in_both(tmp_path):
    from reproduction._cases import Case
    from reproduction.budgets import Point, front, fronts_of_models, plot, table, trained

    plain = [Point("plain", steps, 1, 10 * steps, (9.0 / steps, 11.0 / steps)) for steps in (2, 4)]
    looped = [
        Point("looped", steps, loops, 10 * loops * steps, (distance, distance))
        for steps, loops, distance in ((2, 1, 6.0), (4, 1, 4.0), (2, 2, 2.0), (4, 2, 2.5))
    ]
    points = [*plain, *looped]
    kept = front(points)
    assert kept == [plain[0], looped[2]]
    own = fronts_of_models(points)
    assert own == [*plain, looped[0], looped[2]]
    lines = table(points, kept, own).splitlines()
    assert lines[2] == "| plain | 1 | **5.00 ± 0.71** | *2.50 ± 0.35* |"
    assert lines[3] == "| looped | 1 | *6.00 ± 0.00* | 4.00 ± 0.00 |"
    assert lines[4] == "| looped | 2 | **2.00 ± 0.00** | 2.50 ± 0.00 |"
    plot(tmp_path / "front.png", points, kept)
    assert (tmp_path / "front.png").stat().st_size > 1000
    with pytest.raises(FileNotFoundError, match="holds no model of digits-dit-2Nx4L-ilsd"):
        trained(tmp_path, Case("digits", "dit", 2, 4))


def test_budgets_are_of_the_rate_that_is_best_though_others_left_models_too(tmp_path):
    from reproduction._cases import Case
    from reproduction.budgets import trained

    case = Case("digits", "dit", 2, 1, "vanilla", optimizer="muon")
    for rate, loss, seeds in ((0.004, 0.2, (0,)), (0.008, 0.1, (0, 1)), (0.016, 0.3, (0,))):
        for seed in seeds:
            at = dataclasses.replace(case, learning_rate=rate)
            (tmp_path / f"{at.name}-seed{seed}" / "model").mkdir(parents=True)
            (tmp_path / f"{at.name}-seed{seed}" / "result.json").write_text(json.dumps(record(at, seed, [loss])))
    found = trained(tmp_path, case)
    assert {seed: path.parent.name for seed, path in found.items()} == {
        seed: f"digits-dit-2Nx1L-vanilla-muon-rate_0.008-seed{seed}" for seed in (0, 1)
    }


def test_an_advantage_is_told_in_standard_errors():
    from reproduction.loops import advantage

    assert advantage(np.asarray([0.9, 1.1]), np.asarray([1.9, 2.1])) == "50.0% (7.1 standard errors)"
    assert advantage(np.asarray([0.9]), np.asarray([1.0, 1.0])) == "10.0%"


def test_the_overview_takes_each_model_at_its_best_rate_and_is_that_of_the_page(tmp_path):
    from reproduction.overview import BEDS, Bed, read_losses, row, table

    folder = Path(__file__).parents[1] / "docs" / "reproduction"
    assert (folder / "loops-overview.md").read_text() == table(folder)
    assert {bed.file for bed in BEDS} >= {"loops-mnist-muon-5500.csv", "loops-mnist-masked-muon-5500.csv"}

    header = "model,case,learning_rate,seed,exit,heldout_loss,train_loss"
    # 0.016 is better, but on one seed alone.
    runs: dict[tuple[str, str, str], tuple[float, ...]] = {("2 unique layers", "0.008", "0"): (1.0, 9.0)}
    runs |= {("2 unique layers", "0.008", "1"): (1.2, 9.0)}
    runs |= {("2 unique layers", "0.016", "0"): (0.5, 9.0), ("2 unique layers", "0.004", "0"): (2.0, 9.0)}
    runs |= {("8 unique layers", "0.008", "0"): (0.7, 9.0)}
    looped = ("re-injected × 1/2", "0.008", "0")
    runs[looped] = (1.8, 1.0, 0.95, 0.9, 0.91, 0.92, 0.93, 0.99)
    lines = [
        f"{model},case,{rate},{seed},{exit},{loss},0"
        for (model, rate, seed), losses in runs.items()
        for exit, loss in reversed(list(enumerate(losses, 1)))
    ]
    (tmp_path / "runs.csv").write_text("\n".join([header, *lines]))
    losses = read_losses(tmp_path / "runs.csv")
    assert losses["2 unique layers"].tolist() == [[1.0, 9.0], [1.2, 9.0]]
    bed = Bed("MNIST", "dit", 10, looped[0])
    cells = row(bed, losses)
    # 1.1 falls to 0.9, half of the way to 0.7, so four loops are worth four unique layers in place of two.
    assert cells[:5] == ["MNIST", "diffusion", "10", "1", "re-injected"]
    assert cells[5:] == ["18.2%", "36.4%", "50%", "0.50", "+100.0%", "+10.0%"]
    del losses["8 unique layers"]
    assert row(bed, losses)[6:9] == ["–", "–", "–"]


def test_tables_of_loops_say_what_their_runs_say():
    from reproduction._results import Results
    from reproduction.loops import all_models, best, edges, read_rows, read_table, table
    from reproduction.overview import BEDS, OPTIMIZER

    folder = Path(__file__).parents[1] / "docs" / "reproduction"
    for bed in BEDS:
        rows, cells = folder / bed.file, (folder / bed.file).with_suffix(".md")
        known = all_models(bed.data, OPTIMIZER, bed.family)
        saved = read_rows(rows, known)
        runs = [run for each in saved.values() for run in each]
        results, rates = Results(runs), sorted({run["case"]["learning_rate"] for run in runs})
        chosen = {name: best(results, known[name], rates) for name in saved}
        assert table(results, chosen, read_table(cells)) + edges(results, chosen, rates) == cells.read_text(), bed


def test_runs_are_added_to_the_tables_of_earlier_ones(tmp_path, monkeypatch):
    from reproduction import loops
    from reproduction._train import Settings

    models = loops.all_models("digits", "muon")

    def leave(name, seed, losses, *, rate=0.004, distance=None):
        (case,) = loops.at_rates(models[name], [rate])
        quality = {} if distance is None else {str(case.max_loops): {"distance": distance, "accuracy": 0.9}}
        settings = {"settings": dataclasses.asdict(Settings(steps=2, samples=100))}
        path = tmp_path / "runs" / f"{case.name}-seed{seed}" / "result.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(record(case, seed, losses, quality=quality) | settings))

    def report(*options, names, seeds=("0",), rates=("0.004",)):
        command = ["loops", "--steps", "2", "--samples", "100", "--report", "--runs", str(tmp_path / "runs")]
        command += ["--out", str(tmp_path), "--seeds", *seeds, "--rates", *rates, "--models", *names, *options]
        monkeypatch.setattr("sys.argv", command)
        loops.main()
        shutil.rmtree(tmp_path / "runs")  # what the next report does not have
        return loops.read_table(tmp_path / "loops-digits-muon-2.md")

    looped = "the paper's"
    leave("2 unique layers", 0, [0.8], distance=3.0)
    leave(looped, 0, [0.9, 0.8, 0.7, 0.6, *[0.6] * 4], distance=2.0)
    first = report(names=["2 unique layers", looped])
    assert first[looped]["φ"] == "–" and first[looped]["distance, L_max"] == "2.00"
    # A table from before distances were in the CSV.
    rows = tmp_path / "loops-digits-muon-2.csv"
    lines = [line.rsplit(",", 1)[0] for line in rows.read_text().splitlines()]
    rows.write_text("\n".join(lines))

    leave("8 unique layers", 0, [0.4], distance=1.0)
    leave("2 unique layers", 1, [0.6], distance=5.0)
    leave(looped, 0, [9.0] * 8, rate=0.016)
    second = report(
        "--add", names=["8 unique layers", "2 unique layers", looped], seeds=["0", "1"], rates=["0.004", "0.016"]
    )
    assert list(second) == ["2 unique layers", "8 unique layers", looped]
    assert second["2 unique layers"]["L = 1"] == "0.7000 ± 0.1414"
    kept = ("Layers", "Parameters", "Rate", "L = 4", "distance, L = 1", "distance, L_max")
    assert [second[looped][each] for each in kept] == [first[looped][each] for each in kept]
    # 0.7 falls to 0.6, a third of the way to 0.4.
    assert second[looped]["φ"] == "0.33"
    # One distance of two seeds is not shown as theirs; what stood there is.
    assert second["2 unique layers"]["distance, L_max"] == "3.00"
    assert "rate_0.016" in rows.read_text() and "rate_0.004,0.004,0,4,0.6,0.6," in rows.read_text()

    leave("2 unique layers", 0, [0.7])
    third = report(names=["2 unique layers"])
    assert list(third) == ["2 unique layers"]  # anew, without `--add`
    leave("2 unique layers", 0, [0.7])
    rows.write_text(rows.read_text().replace("digits-dit-2Nx1L", "digits-dit-3Nx1L"))
    with pytest.raises(ValueError, match=r"has runs of .2 unique layers. as digits-dit-3Nx1L.*Take `--add` away"):
        report("--add", names=["2 unique layers"])


def test_claims_say_yes_no_and_in_between():
    failing = made_up(vanilla=[2.0, 1.5, 1.2, 1.0], ilsd=[1.05, 1.02, 1.0, 1.0])
    assert verdicts(failing, "fails at one loop") == ["**yes**: 2.000 ± 0.000"] * 2
    assert verdicts(failing, "every exit is good") == ["**yes**: 1.050 ± 0.000"] * 2
    fine = made_up(vanilla=[1.05, 1.0, 1.0, 1.0], ilsd=[1.3, 1.0, 1.0, 1.0])
    assert [each[:6] for each in verdicts(fine, "fails at one loop")] == ["**no**"] * 2
    assert [each[:6] for each in verdicts(fine, "every exit is good")] == ["**no**"] * 2

    from reproduction._cases import exit_cases
    from reproduction._results import Results

    vanilla = exit_cases("digits", "dit")[1]
    mixed = Results([record(vanilla, 0, [2.0, 1, 1, 1] + [1] * 4), record(vanilla, 1, [1.0, 1, 1, 1] + [1] * 4)])
    assert verdicts(mixed, "fails at one loop") == ["**1 of 2 seeds**: 1.500 ± 0.707", "–"]


def test_a_single_seed_has_no_spread():
    from reproduction._results import Spread

    assert [Spread.of(values).text(2) for values in ([1.0], [1.0, 3.0], [1.0, np.inf])] == ["1.00", "2.00 ± 1.41", "∞"]


def test_steps_to_reach_a_loss_lie_between_milestones():
    from reproduction._cases import depth_cases
    from reproduction._claims import steps_to_reach
    from reproduction._results import Results

    case = depth_cases("digits", "dit")[0]
    results = Results([record(case, seed, [1.0]) for seed in range(4)])
    reached = steps_to_reach(results, case, np.array([1.5, 3.5, 0.9, 1.0]))
    np.testing.assert_allclose(reached, [25.0, 10.0, np.inf, 30.0])


def test_a_report_has_every_table_and_plot(tmp_path):
    from reproduction._cases import exit_cases
    from reproduction._report import plot_samples, save_report

    results = made_up(vanilla=[2.0, 1.5, 1.2, 1.0])
    results.save(tmp_path)
    save_report(tmp_path, results, {"digits": {"distance": 0.5, "accuracy": 0.99}}, "somewhere")
    for name in ("claims", "exits", "quality", "depth", "curriculum", "convergence"):
        text = (tmp_path / f"{name}.md").read_text()
        assert text.endswith("somewhere\n") and "digits, masked" in text
    assert "| vanilla | 2.000 ± 0.000 |" in (tmp_path / "exits.md").read_text()
    assert "2.50 ± 0.71 (0.900)" in (tmp_path / "quality.md").read_text()
    exits = (tmp_path / "exits.csv").read_text().splitlines()
    assert exits[0].startswith("data,family,num_layers,max_loops,objective,curriculum,seed,exit,heldout_loss")
    assert len((tmp_path / "curves.csv").read_text().splitlines()) == 1 + 3 * 2 * 23

    case = exit_cases("digits", "dit")[0]
    images = np.zeros((2, 20, 8, 8, 1), np.float32)
    np.savez(tmp_path / "pictures.npz", loops=[1, 8], images=images)
    plot_samples(tmp_path / "samples.png", {case: tmp_path / "pictures.npz"})
    for name in ("exits", "depth", "convergence", "samples"):
        assert (tmp_path / f"{name}.png").stat().st_size > 1000


def write_idx(path, array):
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    path.write_bytes(gzip.compress(header + array.tobytes()))


def test_mnist_is_read_and_averaged(tmp_path):
    from reproduction._data import mnist

    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (600, 28, 28), np.uint8)
    write_idx(tmp_path / "t10k-images-idx3-ubyte.gz", images)
    write_idx(tmp_path / "t10k-labels-idx1-ubyte.gz", np.arange(600, dtype=np.uint8) % 10)
    data = mnist(tmp_path)
    assert data.train.examples.shape == (100, 14, 14, 1) and data.heldout.examples.shape == (500, 14, 14, 1)
    everything = np.concatenate([data.train.examples, data.heldout.examples])
    blocks = images.reshape(600, 14, 2, 14, 2).mean((2, 4)) / 127.5 - 1.0
    np.testing.assert_allclose(np.sort(everything.ravel()), np.sort(blocks.ravel()), atol=1e-6)


@pytest.mark.parametrize("arguments", [("--samples", "105"), ("--samples", "50"), ("--steps", "0")])
def test_sizes_that_cannot_be_are_refused(arguments, monkeypatch, capsys):
    from reproduction._main import main

    monkeypatch.setattr(sys, "argv", ["reproduction", *arguments])
    with pytest.raises(SystemExit):
        main()
    assert f"{arguments[0]} {arguments[1]}" in capsys.readouterr().err


def test_a_folder_without_mnist_is_named(tmp_path):
    from reproduction._data import mnist

    with pytest.raises(FileNotFoundError, match=r"t10k-images-idx3-ubyte\.gz is missing"):
        mnist(tmp_path)


def test_runs_of_other_settings_are_refused(tmp_path):
    from reproduction._pool import check_settings
    from reproduction._train import Settings

    path = tmp_path / "result.json"
    path.write_text(json.dumps({"settings": dataclasses.asdict(Settings(steps=5, mnist="elsewhere"))}))
    check_settings([path], Settings(steps=5))
    with pytest.raises(SystemExit, match="steps 5 → 1000"):
        check_settings([path], Settings())


@pytest.mark.slow
def test_a_run_measures_every_exit_and_repeats():
    from reproduction._cases import exit_cases
    from reproduction._train import Settings, run

    settings = Settings(steps=6, milestones=2, samples=200, dim=16, diffusion_steps=2, masked_steps=2)
    case = exit_cases("digits", "maskgit")[0]
    figures, pictures, _ = run(case, 0, settings)
    assert list(figures["curve"]) == [3, 6]
    assert all(len(losses) == 2 * case.max_loops for losses in figures["curve"].values())
    assert sorted(figures["quality"]) == sorted(pictures) == [1, 2, 4, 8]
    assert pictures[1].shape == (20, 8, 8, 1)
    assert figures["curve"][6][-1] < figures["curve"][3][-1]
    again, *_ = run(case, 0, settings)
    assert again == figures
    other, *_ = run(case, 1, settings)
    assert other["curve"] != figures["curve"]


@pytest.mark.slow
def test_models_that_train_together_are_those_that_train_alone_and_can_be_sampled_at_any_budget(tmp_path):
    from reproduction._cases import Case
    from reproduction._pool import save
    from reproduction._train import Settings, load, run, run_together
    from reproduction.budgets import measure, trained

    settings = Settings(steps=6, milestones=2, samples=200, dim=16, diffusion_steps=2)
    plain = Case("digits", "dit", 1, 2, student_weight=0.25, optimizer="muon")
    cases = [dataclasses.replace(plain, learning_rate=rate) for rate in (0.01, 0.02)]
    together = run_together(cases, (3, 4), settings)
    alone = run(cases[1], 4, settings)
    assert list(together) == [(case, seed) for case in cases for seed in (3, 4)]
    for step, losses in alone.figures["curve"].items():
        np.testing.assert_allclose(together[cases[1], 4].figures["curve"][step], losses, rtol=1e-3)
    np.testing.assert_allclose(together[cases[1], 4].figures["train_losses"], alone.figures["train_losses"], rtol=1e-3)
    ends = {pair: done.figures["curve"][6] for pair, done in together.items()}
    assert len({tuple(end) for end in ends.values()}) == 4
    best = min(cases, key=lambda case: ends[case, 3][1])
    assert [bool(done.pictures) for done in together.values()] == [case == best for case, _ in together]
    for (case, seed), done in together.items():
        save(tmp_path, case, seed, settings, done)
    paths = trained(tmp_path, plain)
    assert {seed: path.parent.name for seed, path in paths.items()} == {
        seed: f"{best.name}-seed{seed}" for seed in (3, 4)
    }
    generator = elt_zoo.load(paths[3])
    assert generator.metadata["training"]["learning_rate"] == best.learning_rate
    assert [row["loops"] for row in generator.metadata["results"]] == [1, 2, 3, 4]
    _, judge = load("digits", None)
    two = measure("elastic", [generator, generator], judge, steps=2, loops=2, count=200)
    assert two.distances[0] == two.distances[1] == pytest.approx(together[best, 3].figures["quality"][2]["distance"])
    assert measure("elastic", [generator], judge, steps=2, loops=1, count=100).flops < two.flops
    with pytest.raises(ValueError, match="differ in their rate alone"):
        run_together([plain, dataclasses.replace(plain, objective="vanilla")], (0,), settings)


def test_a_case_that_grows_is_named_for_it_and_others_keep_their_names():
    from reproduction._cases import Case
    from reproduction.loops import looped_cases

    assert Case("digits", "dit", 2, 4, learning_rate=0.004).name == "digits-dit-2Nx4L-ilsd-rate_0.004"
    cases = looped_cases("digits", "dit")
    grown, around = cases["grown from 2 loops"], cases["re-injected × 1/2, grown from 2 loops"]
    assert dataclasses.replace(grown, grow_from=0) == cases["the paper's, student × 1/4"]
    assert dataclasses.replace(around, grow_from=0) == cases["re-injected × 1/2"]
    assert grown.name == "digits-dit-2Nx4L-ilsd-student_0.25-grown_from_2"


@pytest.mark.slow
def test_models_that_grow_train_alone_and_together():
    from reproduction._cases import Case
    from reproduction._train import Settings, run, run_together

    # The change, after step 3 of 6, is between two milestones.
    settings = Settings(steps=6, milestones=3, samples=100, dim=16, diffusion_steps=2)
    fixed = Case("digits", "dit", 1, 3, learning_rate=0.01)
    grown = dataclasses.replace(fixed, grow_from=2)
    alone = run(grown, 3, settings).figures["curve"]
    together = run_together([grown], (3,), settings)[grown, 3].figures["curve"]
    assert list(alone) == list(together) == [2, 4, 6]
    for step, losses in alone.items():
        np.testing.assert_allclose(together[step], losses, rtol=1e-3)
    two, three = (run(dataclasses.replace(fixed, max_loops=loops), 3, settings).figures["curve"] for loops in (2, 3))
    np.testing.assert_allclose(alone[2][:4], two[2], rtol=1e-6)  # exits 1 to 2·L_max of the smaller one
    for other in (two, three):
        assert np.abs(np.subtract(alone[6][:4], other[6][:4])).max() > 1e-3


@pytest.mark.slow
def test_the_command_goes_on_with_what_is_missing(tmp_path):
    from reproduction._cases import all_cases
    from reproduction._train import Settings

    settings = Settings(steps=2, samples=200)
    cases = all_cases("digits")
    missing = next(case for case in cases if case.family == "maskgit" and case.max_loops == 1)
    for case in cases:
        if case != missing:
            exits = 2 * case.max_loops if case.max_loops > 1 else 1
            folder = tmp_path / "runs" / f"{case.name}-seed0"
            folder.mkdir(parents=True)
            made = record(case, 0, [1.0] * exits) | {"settings": dataclasses.asdict(settings), "environment": "here"}
            made["figures"]["curve"] = {"1": [2.0] * exits, "2": [1.0] * exits}
            (folder / "result.json").write_text(json.dumps(made))
            np.savez(folder / "pictures.npz", loops=[1], images=np.zeros((1, 20, 8, 8, 1), np.float32))
    command = [sys.executable, "-m", "reproduction", "--steps", "2", "--samples", "200", "--seeds", "0"]
    command += ["--jobs", "1", "--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert done.returncode == 0, done.stderr
    written = json.loads((tmp_path / "runs" / f"{missing.name}-seed0" / "result.json").read_text())
    assert written["figures"]["skipped"] == 0 and len(written["figures"]["curve"]) >= 1
    assert (tmp_path / "out" / "claims.md").exists() and (tmp_path / "out" / "samples.png").exists()


@pytest.mark.slow
def test_the_command_for_loops_trains_what_is_missing(tmp_path):
    from reproduction._train import Settings
    from reproduction.loops import all_models, at_rates

    settings = Settings(steps=2, samples=100)
    models = all_models("digits", "muon")
    (missing,) = at_rates(models["1 unique layers"], (0.004,))  # compiles fastest
    for model in models.values():
        (case,) = at_rates(model, (0.004,))
        if case != missing:
            exits = 2 * case.max_loops if case.max_loops > 1 else 1
            folder = tmp_path / "runs" / f"{case.name}-seed0"
            folder.mkdir(parents=True)
            made = record(case, 0, [1.0 / (case.prelude + case.num_layers + case.coda)] * exits)
            made |= {"settings": dataclasses.asdict(settings), "environment": "here"}
            (folder / "result.json").write_text(json.dumps(made))
    command = [sys.executable, "-m", "reproduction.loops", "--steps", "2", "--samples", "100", "--seeds", "0"]
    command += ["--rates", "0.004", "--jobs", "1", "--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert done.returncode == 0, done.stderr
    written = json.loads((tmp_path / "runs" / f"{missing.name}-seed0" / "result.json").read_text())
    assert len(written["figures"]["train_losses"]) == 1
    assert "| prelude and coda | 1 + 2N×3L + 1 |" in (tmp_path / "out" / "loops-digits-muon-2.md").read_text()
    lines = (tmp_path / "out" / "loops-digits-muon-2.csv").read_text().splitlines()
    again = [*command, "--report", "--models", "prelude and coda", "--out", str(tmp_path / "again")]
    assert subprocess.run(again, capture_output=True, cwd=Path(__file__).parents[1]).returncode == 0
    assert (tmp_path / "again" / "loops-digits-muon-2.md").read_text().count("| prelude and coda |") == 1
    lacking = subprocess.run([*again, "--seeds", "1"], capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert lacking.returncode == 1 and "There is no run of" in lacking.stderr and "at the rates 0.004" in lacking.stderr
    assert sum(line.startswith("prelude and coda,") for line in lines) == 2 * models["prelude and coda"].max_loops
