"""The examples as their users run them, and the quality that they reach on digits."""

import csv
import dataclasses
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

from elt_zoo import ILSDLoss, load
from elt_zoo.corruption import CosineMaskSchedule, DiffusionCorruption, MaskedCorruption, ShiftedCosineSchedule
from elt_zoo.data import ArraySource, digits_to_pixels, load_digits, training_batches
from elt_zoo.diagnostics import exit_losses
from elt_zoo.families import preset
from elt_zoo.generator import bundled_names
from elt_zoo.metrics import DigitsEvaluator
from elt_zoo.models import BatchedPredict
from elt_zoo.objectives import MaskedCrossEntropy, SigmoidWeightedMSE, VanillaLoss
from elt_zoo.tokenizers import PatchCodebook, load_tokenizer
from elt_zoo.training import OptimizerConfig, TrainState, fit, jit_step, make_optimizer, make_train_step

EXAMPLES = Path(__file__).parents[1] / "examples"
pytestmark = pytest.mark.slow


def run(script, *arguments, cwd, check=True):
    command = [sys.executable, str(EXAMPLES / script), *map(str, arguments)]
    result = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=600)
    if check:
        assert result.returncode == 0, result.stderr[-3000:]
    return result


def words(text):
    """What a framed and wrapped error message says, on one line."""
    return " ".join(text.translate(dict.fromkeys(map(ord, "╭╮╰╯│─"))).split())


def rows_of(path):
    return list(csv.DictReader(path.read_text().splitlines()))


@pytest.fixture(scope="module", params=["dit", "maskgit"])
def trained(request, tmp_path_factory):
    """A short run of the main job."""
    folder = tmp_path_factory.mktemp(request.param) / "run"
    arguments = ["--family", request.param, "--steps", 30, "--samples", 100, "--log-every", 10, "--out", folder]
    run("train_imagenet.py", *arguments, cwd=folder.parent)
    return folder, arguments


def test_the_main_job_leaves_everything_it_promises(trained):
    folder, arguments = trained
    for name in ("samples.png", "samples-ilsd.png", "samples-vanilla.png", "quality.png", "quality.md"):
        assert (folder / name).stat().st_size > 100
    rows = rows_of(folder / "quality.csv")
    assert [(row["objective"], int(row["loops"])) for row in rows] == [
        (name, loops) for name in ("ilsd", "vanilla") for loops in (1, 2, 3, 4, 6, 8)
    ]
    steps = [int(row["step"]) for row in rows_of(folder / "metrics-ilsd.csv")]
    assert steps == [10, 20, 30]
    assert list((folder / "tensorboard" / "ilsd").iterdir())
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["config"]["steps"] == 30 and len(summary["results"]) == 12
    loaded = load(folder / "model")
    assert loaded.metadata["objective"] == "ilsd" and (loaded.tokenizer is None) == ("dit" in arguments)
    # A finished run starts no training of its own; another config may not touch the folder.
    before = (folder / "summary.json").read_bytes()
    refused = run("train_imagenet.py", *arguments, "--learning-rate", 0.1, cwd=folder.parent, check=False)
    default = 0.008 if "dit" in arguments else 0.006
    assert refused.returncode != 0 and f"learning_rate: saved {default}, given 0.1" in words(refused.stderr)
    assert (folder / "summary.json").read_bytes() == before


def test_sampling_a_saved_model_at_any_budget(trained, tmp_path):
    folder, _ = trained
    result = run("sample.py", "--model", folder / "model", "--loops", 1, 3, "--labels", 3, 5, cwd=tmp_path)
    assert "L = 3: 2 samples, 3 loops a step" in result.stdout and (tmp_path / "samples.png").exists()
    result = run("sample.py", "--model", folder / "model", "--ramp", 1, 4, "--guidance", 2.0, cwd=tmp_path)
    assert "2.5 loops a step" in result.stdout
    for arguments, text in [
        (("--model", "nowhere"), "No model at 'nowhere'"),
        (("--model", folder / "model", "--labels", 11), "this model knows 0 to 9"),
        (("--model", folder / "model", "--loops", 0), "at least one"),
    ]:
        refused = run("sample.py", *arguments, cwd=tmp_path, check=False)
        assert refused.returncode == 1 and text in words(refused.stderr)


def test_a_terminated_run_resumes(tmp_path):
    arguments = ["--steps", "400", "--samples", "100", "--no-compare", "--log-every", "5", "--out", "run"]
    command = [sys.executable, str(EXAMPLES / "train_imagenet.py"), "--family", "maskgit", *arguments]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        metrics = tmp_path / "run" / "metrics-ilsd.csv"
        deadline = time.monotonic() + 300
        while not (metrics.exists() and len(metrics.read_text().splitlines()) > 2):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=120)
    assert process.returncode == 0 and "Run the same command again to resume" in output
    assert not (tmp_path / "run" / "summary.json").exists()
    run("train_imagenet.py", "--family", "maskgit", *arguments, cwd=tmp_path)
    steps = [int(row["step"]) for row in rows_of(tmp_path / "run" / "metrics-ilsd.csv")]
    assert steps == list(range(5, 401, 5))


def test_dry_runs_build_nothing_and_unknown_presets_are_explained(tmp_path):
    result = run("train_imagenet.py", "--preset", "elt-XL-7Nx4L", "--family", "maskgit", "--dry-run", cwd=tmp_path)
    assert "7N x 4L" in result.stdout and not list(tmp_path.iterdir())
    refused = run("train_imagenet.py", "--preset", "elt-XXL", "--dry-run", cwd=tmp_path, check=False)
    assert refused.returncode == 1 and "Unknown preset 'elt-XXL'" in refused.stderr
    refused = run("train_imagenet.py", "--data", "/data/imagenet", cwd=tmp_path, check=False)
    assert refused.returncode != 0 and "There is no /data/imagenet" in words(refused.stderr)


def parts(family):
    """Small model, corruption, loss and data of a family."""
    train, heldout = load_digits("train"), load_digits("heldout")
    config = dataclasses.replace(preset(f"digits-{family}"), dim=48, num_layers=1)
    examples, unseen = digits_to_pixels(train.images), digits_to_pixels(heldout.images)
    if family == "dit":
        corruption = DiffusionCorruption(ShiftedCosineSchedule(), prediction=config.prediction, null_label=10)
        loss = SigmoidWeightedMSE(config.prediction)
    else:
        tokenizer = PatchCodebook.fit(examples, codebook_size=config.codebook_size)
        encode = jax.jit(jax.vmap(tokenizer.encode))
        examples, unseen = np.asarray(encode(examples)), np.asarray(encode(unseen))
        corruption = MaskedCorruption(CosineMaskSchedule(), mask_id=config.codebook_size, null_label=10)
        loss = MaskedCrossEntropy()
    return (
        config,
        corruption,
        loss,
        ArraySource(examples, train.labels),
        (jnp.asarray(unseen), jnp.asarray(heldout.labels)),
    )


@pytest.mark.parametrize("family", ["dit", "maskgit"])
def test_ilsd_makes_every_exit_useful_and_plain_looping_does_not(family):
    config, corruption, loss, source, (unseen, labels) = parts(family)

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


@pytest.mark.parametrize("name", ["digits-dit", "digits-maskgit"])
def test_bundled_models_draw_digits_at_every_loop_count(name):
    assert name in bundled_names()
    sys.path.insert(0, str(EXAMPLES))
    try:
        from samplers import SamplerSettings, make_sampler
    finally:
        sys.path.remove(str(EXAMPLES))
    loaded, evaluator = load(name), DigitsEvaluator()
    sampler = make_sampler(loaded.config, SamplerSettings(**loaded.metadata["sampler"]))
    labels = jnp.tile(jnp.arange(10), 60)

    @eqx.filter_jit
    def draw(model, loops):
        samples = sampler(BatchedPredict(model), labels, loops=loops, key=jax.random.key(5))
        return samples if loaded.tokenizer is None else jax.vmap(loaded.tokenizer.decode)(samples)

    limits = {"digits-dit": (1.5, 1.1), "digits-maskgit": (1.8, 1.5)}[name]
    for loops in (1, 2, 3, 4):
        quality = evaluator(np.asarray(draw(loaded.model, jnp.asarray(loops))), np.asarray(labels))
        # Another seed than the one that was reported, so a little slack.
        assert quality.frechet_distance < limits[loops > 1] + 0.25
        assert quality.accuracy > 0.93


def test_published_weights_are_converted_and_drawn_from(tmp_path):
    sys.path.insert(0, str(Path(__file__).parent))
    from test_load_dit import CONFIG, facebook_tensors, randomize, write_facebook

    model = randomize(CONFIG.build(key=jax.random.key(0)))
    path = write_facebook(tmp_path / "dit.pt", facebook_tensors(model))
    arguments = ["--kind", "dit", "--weights", path, "--num-heads", 2]
    run("convert.py", *arguments, "--out", "deep", cwd=tmp_path)
    assert eqx.tree_equal(load(tmp_path / "deep").model, model)
    result = run("convert.py", *arguments, "--loop-layers", 1, "--keep-vectors", "--out", "looped", cwd=tmp_path)
    assert "Saved 1N × 3L, width 24" in result.stdout
    looped = load(tmp_path / "looped")
    assert looped.config.max_loops == 3 and looped.model.trunk.num_loop_deltas == 3
    from test_image_tokenizers import KL, autoencoder_kl_names, filled, official, write_diffusers

    autoencoder = filled(KL)
    write_diffusers(tmp_path / "vae", official(autoencoder, autoencoder_kl_names(KL)))
    run("convert.py", "--kind", "autoencoder-kl", "--weights", "vae", "--out", "tokenizer", cwd=tmp_path)
    assert eqx.tree_equal(load_tokenizer(tmp_path / "tokenizer"), autoencoder)
    refused = run("convert.py", *arguments, "--out", "deep", cwd=tmp_path, check=False)
    assert refused.returncode == 1 and "already holds a model" in words(refused.stderr)
    refused = run("convert.py", "--kind", "dit", "--weights", "magvit", "--out", "x", cwd=tmp_path, check=False)
    assert refused.returncode == 1 and "were never released" in words(refused.stderr)
