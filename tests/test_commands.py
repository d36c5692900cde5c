"""Commands from end to end on the digits: what they leave, how they go on, and the quality that they reach."""

import dataclasses
import json

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from command_line import TINY, files_of, rows_of, run, run_example

import elt_zoo.commands._train
from elt_zoo import ILSDLoss, load
from elt_zoo.data import ArraySource, digits_to_pixels, load_digits, training_batches
from elt_zoo.diagnostics import exit_losses
from elt_zoo.families import preset
from elt_zoo.metrics import DigitsEvaluator
from elt_zoo.objectives import VanillaLoss
from elt_zoo.recipes import Recipe, Run, TrainingOptions, digits_task, init_from
from elt_zoo.recipes._prepared import Start, extend
from elt_zoo.storage import FolderLock, named_arrays
from elt_zoo.tokenizers import PatchCodebook, load_tokenizer
from elt_zoo.training import (
    OptimizerConfig,
    OptimizerKind,
    TrainState,
    fit,
    jit_step,
    make_optimizer,
    make_train_step,
)


@pytest.fixture(scope="module", params=["dit", pytest.param("maskgit", marks=pytest.mark.slow)])
def trained(request, tmp_path_factory):
    """A short run, of masked generation beside its baseline, and the command."""
    folder = tmp_path_factory.mktemp(request.param) / "run"
    command = ["train", "--family", request.param, *TINY, "--evaluate-every", 4, "--out", folder]
    command += ["--no-compare"] * (request.param == "dit")
    finished = run(*command, "--steps", 8)
    assert finished.output.startswith("Computing in float32 on ")
    assert "; attention: XLA (there is no fused kernel for CPUs)\n" in finished.output
    assert finished.output.count(f"tensorboard --logdir {folder / 'tensorboard'}") == 2
    assert "compiling" in finished.errors and f"Pictures, table, metrics and model are in {folder}" in finished.output
    return folder, command


def test_training_leaves_everything_it_promises(trained):
    folder, command = trained
    objectives = ("ilsd",) if "dit" in command else ("ilsd", "vanilla")
    for name in (
        "samples.png",
        *(f"samples-{name}.png" for name in objectives),
        "losses.png",
        "quality.png",
        "quality.md",
    ):
        assert (folder / name).stat().st_size > 100
    rows = rows_of(folder / "quality.csv")
    assert [(row["objective"], int(row["loops"])) for row in rows] == [
        (name, loops) for name in objectives for loops in (1, 2, 3, 4)
    ]
    for name in objectives:
        assert [int(row["step"]) for row in rows_of(folder / f"metrics-{name}.csv")] == [1, 4, 8]
        assert [int(row["step"]) for row in rows_of(folder / f"heldout-{name}.csv")] == [4, 8]
        assert (folder / "progress" / f"{name}-4.png").stat().st_size > 100
        assert list((folder / "tensorboard" / name).iterdir())
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["config"]["steps"] == 8 and len(summary["results"]) == 4 * len(objectives)
    loaded = load(folder / "model")
    assert loaded.metadata["objective"] == "ilsd" and loaded.metadata["data"] == "digits"
    assert (loaded.tokenizer is None) == ("dit" in command) and loaded.settings.steps == 2
    for name in objectives[1:]:
        assert load(folder / f"model-{name}").metadata["objective"] == name


def test_a_run_is_no_other_run_and_has_one_holder(trained):
    folder, command = trained
    before = files_of(folder)
    refused = run(*command, "--steps", 8, "--learning-rate", 0.1, check=False)
    assert refused.code == 2 and "learning_rate: saved 0.008, given 0.1" in refused.errors
    fewer = run(*command, "--steps", 4, check=False)
    assert fewer.code == 2 and "steps: saved 8, given 4" in fewer.errors
    assert files_of(folder) == before
    with FolderLock(folder):
        held = run(*command, "--steps", 8, check=False)
    assert held.code == 1 and "is being written to by this very process" in held.errors
    assert files_of(folder) == before


@pytest.mark.slow
@pytest.mark.parametrize("trained", ["dit"], indirect=True)
def test_a_finished_run_removes_what_a_kill_left(trained):
    folder, command = trained
    left = folder / "checkpoints" / "ilsd" / "steps" / "4.deleting"
    left.mkdir()
    (left / "file").touch()
    run(*command, "--steps", 8)
    assert not left.exists()


@pytest.mark.slow
@pytest.mark.parametrize("trained", ["dit"], indirect=True)
def test_a_finished_run_is_extended(trained):
    folder, command = trained
    run(*command, "--steps", 12)
    assert [int(row["step"]) for row in rows_of(folder / "metrics-ilsd.csv")] == [1, 4, 8, 12]
    assert load(folder / "model").metadata["training"]["steps"] == 12
    if "maskgit" in command:
        return  # Checkpoints know no family, and runs take time.
    # A damaged checkpoint is not passed over without a word.
    for file in (folder / "checkpoints" / "ilsd" / "steps" / "12" / "state").rglob("*"):
        if file.is_file():
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    refused = run(*command, "--steps", 16, check=False)
    assert refused.code == 1 and "To continue from step 8, use `--fall-back`" in refused.errors
    run(*command, "--steps", 16, "--fall-back")
    assert load(folder / "model").metadata["training"]["steps"] == 16


def test_sampling_a_saved_model_at_any_budget(trained, tmp_path):
    folder, _ = trained
    out = ("--out", tmp_path / "samples.png")
    finished = run("sample", "--model", folder / "model", "--loops", 1, 3, "--labels", 3, 5, *out)
    assert "L = 3: 2 samples, 3 loops a step" in finished.output and (tmp_path / "samples.png").exists()
    finished = run("sample", "--model", folder / "model", "--ramp", 1, 4, "--guidance", 0.0, "--labels", 0, *out)
    assert "L = 1…4: 1 samples, 2.5 loops a step" in finished.output


@pytest.mark.slow
@pytest.mark.parametrize("trained", ["dit"], indirect=True)
def test_a_new_run_starts_from_a_saved_model(trained, tmp_path):
    folder, command = trained
    start = ("--init-from", folder / "model", "--learning-rate", 1e-9, "--ema-decay", 0.0)
    run(*command, *start, "--steps", 4, "--out", tmp_path / "again")
    old, new = (load(where / "model").model for where in (folder, tmp_path / "again"))
    for before, after in zip(jax.tree.leaves(old), jax.tree.leaves(new), strict=True):
        np.testing.assert_allclose(before, after, atol=1e-5)


def test_the_first_state_is_one_program_with_the_values_of_many(tmp_path):
    config = dataclasses.replace(preset("digits-dit"), dim=16, num_layers=1, max_loops=2)
    options = TrainingOptions(out=tmp_path / "run", seed=3)
    start = Start(Run.of(options, digits_task(config)))
    many, one = start.compute(None, jax.random.key_data(jax.random.key(3))), start()
    build_key, train_key = jax.random.split(jax.random.key(3))
    assert many.key == one.key == train_key
    expected = jax.tree.leaves(config.build(key=build_key))
    for values in zip(expected, *(jax.tree.leaves(state.model) for state in (many, one)), strict=True):
        np.testing.assert_allclose(values[1], values[0], rtol=0, atol=0)
        np.testing.assert_allclose(values[2], values[0], rtol=1e-6, atol=1e-7)


def test_sizes_and_flags_that_are_given_replace_those_of_the_preset():
    config = preset("mnist-dit")
    assert TrainingOptions().applied(config) == config
    every = {"rms_norm": True, "qk_norm": True, "swiglu": True, "rotary": True}
    other = dataclasses.replace(config, **every)
    flags = dataclasses.replace(TrainingOptions(), **every)
    assert flags.applied(config) == other and TrainingOptions().applied(other) == other
    # Zero is a size.
    given = TrainingOptions(reinjection=0.0, prelude=0).applied(dataclasses.replace(config, prelude=1))
    assert given == dataclasses.replace(config, reinjection=0.0)
    with pytest.raises(ValueError, match="`--patch-size` is no size of the family 'maskgit'"):
        TrainingOptions(patch_size=2).applied(preset("digits-maskgit"))


def test_other_classes_need_a_word():
    config = preset("digits-dit")
    ten = config.build(key=jax.random.key(0))
    three = dataclasses.replace(config, num_classes=3).build(key=jax.random.key(1))
    with pytest.raises(ValueError, match=r"Pass `--new-classes`(?s:.)*label_embedding\.weight is \(11, 64\)"):
        init_from(three, ten)
    filled = init_from(three, ten, new_classes=True)
    table, fresh, source = (named_arrays(model)["head.label_embedding.weight"] for model in (filled, three, ten))
    np.testing.assert_array_equal(table[:3], fresh[:3])
    np.testing.assert_array_equal(table[3], source[10])  # the null class
    assert eqx.tree_equal(filled.trunk, ten.trunk)
    with pytest.raises(ValueError, match="missing: "):
        init_from(dataclasses.replace(config, coda=1).build(key=jax.random.key(0)), ten)


@pytest.mark.slow
def test_a_dry_run_describes_the_real_one_and_builds_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sizes = ("--preset", "elt-XL-7Nx4L", "--family", "maskgit", "--precision", "bfloat16", "--remat", "layer")
    described = run("train", *sizes, "--sampler.steps", 7, "--sampler.guidance", 2.0, "--dry-run").output
    assert "7N" in described and "steps=7, guidance=2.0" in described
    assert "data: 1,437 examples of 10 classes in digits" in described
    assert "precision: bfloat16, remat: layer" in described
    assert run("train", *sizes, "--sampler.steps", 14, "--dry-run").output != described
    parts = ("--rms-norm", "--qk-norm", "--swiglu", "--rotary")
    assert run("train", *sizes, *parts, "--dry-run").output != run("train", *sizes, "--dry-run").output
    moving = run("train", "--data", "moving-digits", "--clips", 64, "--dry-run").output
    assert "data: 64 examples of 10 classes in moving-digits" in moving
    script = run_example("train_imagenet.py", "--preset", "elt-XL-7Nx4L", "--family", "maskgit", "--dry-run")
    assert "7N" in script.output
    assert "6N" in run_example("train_ucf101.py", "--preset", "elt-ucf101-6Nx4L", "--dry-run").output
    assert not list(tmp_path.iterdir())


def test_costs_are_counted_for_a_preset_and_for_a_saved_model(trained):
    assert "remat layer" in run("profile", "--preset", "elt-XL-7Nx4L", "--remat", "layer").output
    output = run("profile", "--preset", trained[0] / "model", "--loops", 3).output
    assert "1N" in output and "training activations with remat auto" in output
    assert "compiled in" not in output


@pytest.mark.slow
def test_programs_are_compiled_for_a_mesh_of_this_machine():
    shared = ("profile", "--preset", "digits-maskgit", "--steps", 2, "--batch", 8, "--loops", 2)
    output = run(*shared, "--mesh.data", 4).output
    step, sampler = output.split("\n\n")[-2:]
    assert "training step" in step and "batch 8 on 4 x cpu" in step and "all-reduce" in step
    assert "sampler" in sampler and "collectives" in sampler and "none" in sampler
    split = run(*shared, "--topology", "local", "--mesh.fsdp", 4, "--accumulation", 2).output
    assert "all-gather" in split


def test_the_help_lists_commands_and_options():
    listed = run("--help").output
    assert all(f"  {word} " in listed for word in ("train", "sample", "evaluate", "train-tokenizer", "convert"))
    assert run().output == listed and run("--version").output == f"{elt_zoo.__version__}\n"
    assert "--max-loops" in run("train", "--help").output


def parts(family):
    """A small model's config, its data, and the held-out examples."""
    train, heldout = load_digits("train"), load_digits("heldout")
    config = dataclasses.replace(preset(f"digits-{family}"), dim=48, num_layers=1, reinjection=0.0)  # as in the paper
    examples, unseen = digits_to_pixels(train.images), digits_to_pixels(heldout.images)
    if family == "maskgit":
        encode = jax.jit(jax.vmap(PatchCodebook.fit(examples, codebook_size=128).encode))
        examples, unseen = np.asarray(encode(examples)), np.asarray(encode(unseen))
    return config, ArraySource(examples, train.labels), (jnp.asarray(unseen), jnp.asarray(heldout.labels))


@pytest.mark.slow
@pytest.mark.optimized
@pytest.mark.parametrize("family", ["dit", "maskgit"])
def test_ilsd_makes_every_exit_useful_and_plain_looping_does_not(family):
    config, source, (unseen, labels) = parts(family)
    loss, corruption = config.loss(), config.corruption(label_drop=0.1)

    def losses_of(objective):
        optimizer = make_optimizer(OptimizerConfig.digits(total_steps=300, learning_rate=6e-3))
        state = TrainState.create(config.build(key=jax.random.key(0)), optimizer, key=jax.random.key(1))
        step = jit_step(make_train_step(optimizer, objective, corruption, total_steps=300, ema_decay=0.99))
        model = fit(state, step, training_batches(source, batch_size=64, seed=0), total_steps=300).state.ema
        return np.asarray(exit_losses(model, loss, corruption, unseen, labels, loops=8, key=jax.random.key(2)))

    ilsd = losses_of(ILSDLoss(loss, loss.distillation, max_loops=4))
    vanilla = losses_of(VanillaLoss(loss, max_loops=4))
    if family == "dit":
        assert ilsd[0] < 1.12 * ilsd[3] and vanilla[0] > 2.0 * vanilla[3]
        # So short a run pays more for its early exits than the default one does.
        assert ilsd[3] < 1.15 * vanilla[3] and ilsd[7] < 1.15 * ilsd[3]
    else:
        assert ilsd[0] < ilsd[3] + 0.10 and vanilla[0] > vanilla[3] + 0.15
        assert ilsd[3] < vanilla[3] + 0.05 and ilsd[7] < ilsd[3] + 0.10


@pytest.mark.slow
@pytest.mark.optimized
@pytest.mark.parametrize("name", ["digits-dit", "digits-maskgit"])
def test_bundled_models_sample_digits_at_every_loop_count(name):
    generator, evaluator = load(name), DigitsEvaluator()
    labels = np.tile(np.arange(10), 60)
    limits = {"digits-dit": (1.5, 1.1), "digits-maskgit": (1.8, 1.5)}[name]
    for loops in (1, 2, 3, 4):
        pixels = generator.sample(labels, loops=loops, batch_size=200, key=jax.random.key(5))
        quality = evaluator(pixels, labels)
        # Another seed than the one that was reported, so a little slack.
        assert quality.frechet_distance < limits[loops > 1] + 0.25
        assert quality.accuracy > 0.93


@pytest.mark.slow
def test_published_weights_are_converted(tmp_path, monkeypatch):
    from test_image_tokenizers import KL, autoencoder_kl_names, filled, official, write_diffusers
    from test_load_dit import CONFIG, facebook_tensors, randomize, write_facebook

    monkeypatch.chdir(tmp_path)
    model = randomize(CONFIG.build(key=jax.random.key(0)))
    path = write_facebook(tmp_path / "dit.pt", facebook_tensors(model))
    arguments = ("convert", "--kind", "dit", "--weights", path, "--num-heads", 2)
    run(*arguments, "--out", "deep")
    assert eqx.tree_equal(load(tmp_path / "deep").model, model)
    looped = run(*arguments, "--loop-layers", 1, "--out", "looped")
    assert "Saved 1N × 3L, width 24" in looped.output
    config = load(tmp_path / "looped").config
    assert (config.num_layers, config.max_loops) == (1, 3)
    autoencoder = filled(KL)
    write_diffusers(tmp_path / "vae", official(autoencoder, autoencoder_kl_names(KL)))
    run_example("convert.py", "--kind", "autoencoder-kl", "--weights", "vae", "--out", "tokenizer")
    assert eqx.tree_equal(load_tokenizer(tmp_path / "tokenizer"), autoencoder)


@pytest.mark.parametrize(
    ("named", "expected"),
    [
        ("elt-dit-4Nx8L", (500_000, 1e-4, 0.9999, "adamw", 1.0)),
        ("mnist-dit", (5500, 8e-3, 0.995, "muon", 0.25)),
        ("digits-maskgit", (2000, 8e-3, 0.998, "muon", 0.25)),
        ("tiny-dit", (1000, 2e-3, 0.995, "adamw", 1.0)),
        (None, (1000, 2e-3, 0.995, "adamw", 1.0)),
    ],
)
def test_presets_are_trained_as_their_paper_says_or_as_the_bundled_model_was(named, expected):
    def told(**options):
        options = TrainingOptions(preset=named, **options)
        recipe = Recipe.of(options, options.model("tiny-dit"), "some images")
        return recipe.steps, recipe.learning_rate, recipe.ema_decay, recipe.kind, recipe.student_weight

    assert told() == expected
    given = {"steps": 7, "learning_rate": 0.5, "ema_decay": 0.25, "optimizer": OptimizerKind.MUON}
    assert told(**given, student_weight=0.5) == (7, 0.5, 0.25, "muon", 0.5)


def test_a_run_of_an_earlier_version_resumes_where_newer_options_are_off(tmp_path):
    file, model = tmp_path / "run.json", preset("tiny-dit")
    today = json.loads(json.dumps({"model": model.to_dict(), "steps": 8, "seed": 0}))
    fields = {name: value for name, value in today["model"].items() if name not in ("rotary", "reinjection")}

    def left_by(saved, **changed):
        file.write_text(json.dumps(saved))
        extend(file, today | changed, type(model))
        return json.loads(file.read_text())

    before = {"model": fields | {"loop_embedding": False}, "steps": 4, "seed": 0}
    assert left_by(before) == today and left_by(before | {"steps": 8}) == today
    for other in (
        before | {"seed": 1},
        before | {"steps": 9},
        before | {"model": fields | {"loop_embedding": True}},
        before | {"model": fields | {"dim": 256}},
        before | {"model": "damaged"},
    ):
        assert left_by(other) == other  # and so it is refused when its checkpoints are opened
    on = dataclasses.replace(model, rotary=True).to_dict()
    assert left_by(before, model=on) == before
