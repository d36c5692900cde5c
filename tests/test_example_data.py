"""The examples on files: folders of images and videos, shards, and what they refuse. As on the full sets."""

import csv
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image, ImageSequence

import elt_zoo
from elt_zoo.data import MovingDigits, write_ucf101
from elt_zoo.tokenizers import AutoencoderKLConfig, VQ3DConfig, VQGANConfig, save_tokenizer

EXAMPLES = Path(__file__).parents[1] / "examples"
REAL_IMAGES = Path(__file__).parents[2] / "shared" / "data" / "imagenet-sample"
REAL_VIDEOS = Path(__file__).parents[2] / "shared" / "data" / "ucf101-sample"
SHORT = ("--steps", 12, "--batch-size", 8, "--log-every", 4, "--sampler.steps", 2)
pytestmark = pytest.mark.slow


def start(script, *arguments, cwd):
    command = [sys.executable, str(EXAMPLES / script), *map(str, arguments)]
    return subprocess.Popen(command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def run(script, *arguments, cwd, check=True):
    with start(script, *arguments, cwd=cwd) as process:
        output, errors = process.communicate(timeout=600)
    assert not check or process.returncode == 0, errors[-3000:]
    return process.returncode, output + errors


def metrics_of(folder, name="ilsd"):
    return list(csv.DictReader((folder / f"metrics-{name}.csv").read_text().splitlines()))


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A folder of ImageNet's layout with 40 pictures of three classes, one of them broken."""
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for index in range(40):
        folder = root / "train" / ("n01440764", "n01443537", "n01484850")[index % 3]
        folder.mkdir(parents=True, exist_ok=True)
        coarse = rng.integers(0, 256, (4, 5, 3)).astype(np.uint8)
        Image.fromarray(coarse).resize((50, 40), Image.Resampling.BICUBIC).save(folder / f"{index}.JPEG")
    broken = root / "train" / "n01440764" / "0.JPEG"
    broken.write_bytes(broken.read_bytes()[:200])
    return root


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    """Untrained ones: what is tested here does not depend on their quality."""
    root = tmp_path_factory.mktemp("tokenizers")
    sizes = {"filters": 8, "channel_multipliers": (1, 1), "embedding_dim": 4, "groups": 4, "codebook_size": 16}
    key = jax.random.key(0)
    save_tokenizer(root / "vqgan", VQGANConfig(image_size=16, num_res_blocks=1, **sizes).build(key=key))
    video = VQ3DConfig(
        shape=(4, 16, 16), temporal_downsample=(True,), num_enc_res_blocks=1, num_dec_res_blocks=1, **sizes
    )
    save_tokenizer(root / "vq3d", video.build(key=key))
    kl = AutoencoderKLConfig(block_out_channels=(8, 8), layers_per_block=1, groups=4)
    save_tokenizer(root / "kl", kl.build(key=key))
    return root


def test_pixels_of_a_folder_with_a_broken_file(images, tmp_path):
    _, output = run("train_imagenet.py", "--data", images, *SHORT, "--out", "run", cwd=tmp_path)
    assert "skipped" in output and "0.JPEG" in output
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["model"]["num_classes"] == 3 and summary["model"]["shape"] == [32, 32, 3]
    assert [row["loops"] for row in summary["results"]] == [1, 2, 3, 4, 6, 8]
    assert (tmp_path / "run" / "samples.png").stat().st_size > 1000
    losses = [float(row["loss"]) for row in metrics_of(tmp_path / "run")]
    assert losses[-1] < losses[0]
    # Reading twelve small batches is nothing beside training on them; a loop that waits for each would show.
    assert all(0.0 <= float(row["data_wait"]) < 0.5 for row in metrics_of(tmp_path / "run"))


def test_an_interrupted_run_on_files_ends_as_an_uninterrupted_one(images, tmp_path):
    arguments = ["--data", images, "--family", "maskgit", *SHORT, "--workers", 2]
    run("train_imagenet.py", *arguments, "--out", "whole", cwd=tmp_path)
    with start("train_imagenet.py", *arguments, "--out", "parts", cwd=tmp_path) as process:
        metrics, deadline = tmp_path / "parts" / "metrics-ilsd.csv", time.monotonic() + 300
        while not (metrics.exists() and len(metrics.read_text().splitlines()) > 1):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    interrupted = "resume" in output
    run("train_imagenet.py", *arguments[:-1], 0, "--out", "parts", cwd=tmp_path)  # with another number of workers
    whole, parts = ((tmp_path / name / "model" / "model.safetensors").read_bytes() for name in ("whole", "parts"))
    assert whole == parts and (interrupted or len(metrics_of(tmp_path / "parts")) == 3)
    loaded: Any = elt_zoo.load(tmp_path / "parts" / "model")
    assert loaded.tokenizer is not None and loaded.tokenizer.shape == (32, 32, 3)
    run("sample.py", "--model", "parts/model", "--loops", 1, "--labels", 0, "--out", "samples.png", cwd=tmp_path)


def test_precomputed_tokens_and_latents_train_both_frameworks(images, tokenizers, tmp_path):
    common = ["--data", images, "--max-unreadable", 1]
    _, output = run("precompute.py", *common, "--tokenizer", tokenizers / "vqgan", "--out", "tokens", cwd=tmp_path)
    assert "39 examples (tokens)" in output and "0.JPEG" in output
    masked = ["--data", "tokens", "--family", "maskgit", *SHORT]
    run("train_imagenet.py", *masked, "--tokenizer", tokenizers / "vqgan", "--out", "masked", cwd=tmp_path)
    assert json.loads((tmp_path / "masked" / "summary.json").read_text())["model"]["grid"] == [8, 8]

    kl = ["--tokenizer", tokenizers / "kl"]
    run("precompute.py", *common, *kl, "--size", 32, "--out", "latents", "--views", "ten_crops", cwd=tmp_path)
    run("train_imagenet.py", "--data", "latents", *kl, *SHORT, "--out", "latent", cwd=tmp_path)
    assert json.loads((tmp_path / "latent" / "summary.json").read_text())["model"]["shape"] == [16, 16, 4]
    assert (tmp_path / "latent" / "samples.png").exists()

    refusals = [
        (["--data", "tokens", "--family", "maskgit", "--tokenizer", tokenizers / "vq3d"], "another tokenizer"),
        (["--data", "tokens", "--family", "dit"], "holds tokens, which `--family dit` does not take"),
        (["--data", "latents", "--family", "maskgit"], "holds latents, which `--family maskgit` does not take"),
        (["--data", images, "--family", "maskgit", "--tokenizer", tokenizers / "kl"], "this is an autoencoder"),
        (["--data", images, "--preset", "elt-dit-8Nx4L"], "give `--tokenizer` the folder of an autoencoder"),
        (["--data", "nowhere"], "There is no nowhere"),
        (["--data", tmp_path], "class folders hold no image"),
    ]
    for arguments, message in refusals:
        code, output = run("train_imagenet.py", *arguments, "--out", "refused", cwd=tmp_path, check=False)
        assert code == 1 and message in " ".join(output.split()), output[-2000:]
    assert not (tmp_path / "refused").exists()


def test_videos_and_their_tokens(tokenizers, tmp_path):
    sources = [MovingDigits(split, frames=6, size=32, length=24) for split in ("train", "heldout")]
    write_ucf101(tmp_path / "videos", *sources)
    tokenizer = ["--tokenizer", tokenizers / "vq3d"]
    run("train_ucf101.py", "--data", "videos", *tokenizer, *SHORT, "--out", "run", cwd=tmp_path)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["model"]["grid"] == [2, 8, 8] and summary["model"]["num_classes"] == 10
    with Image.open(tmp_path / "run" / "samples.gif") as film:
        assert len(list(ImageSequence.Iterator(film))) > 1
    run("precompute.py", "--data", "videos", *tokenizer, "--out", "tokens", "--views", "one", cwd=tmp_path)
    run("train_ucf101.py", "--data", "tokens", *SHORT, "--out", "coded", cwd=tmp_path)
    assert (tmp_path / "coded" / "quality.png").exists() and not (tmp_path / "coded" / "samples.png").exists()
    code, output = run("train_ucf101.py", "--data", "videos", cwd=tmp_path, check=False)
    assert code == 1 and "MAGVIT's was never released" in output
    code, output = run("train_ucf101.py", "--preset", "digits-maskgit", cwd=tmp_path, check=False)
    assert code == 1 and "not for video" in output


@pytest.mark.optional
@pytest.mark.skipif(not REAL_IMAGES.exists(), reason="the sample of ImageNet is not here")
@pytest.mark.parametrize("family", ["dit", "maskgit"])
def test_real_images(family, tmp_path):
    run("train_imagenet.py", "--data", REAL_IMAGES, "--family", family, *SHORT, "--out", "run", cwd=tmp_path)
    losses = [float(row["teacher"]) for row in metrics_of(tmp_path / "run")]
    assert losses[-1] < losses[0]


@pytest.mark.optional
@pytest.mark.skipif(not REAL_VIDEOS.exists(), reason="the sample of UCF-101 is not here")
def test_a_real_clip_together_with_rendered_ones(tokenizers, tmp_path):
    write_ucf101(tmp_path / "videos", *[MovingDigits(s, frames=16, size=64, length=12) for s in ("train", "heldout")])
    real = next(REAL_VIDEOS.rglob("*.avi"))
    folder = tmp_path / "videos" / "UCF-101" / real.parent.name
    folder.mkdir()
    (folder / real.name).symlink_to(real)
    lists = tmp_path / "videos" / "ucfTrainTestlist"
    (lists / "classInd.txt").write_text((lists / "classInd.txt").read_text().rstrip() + f"\n11 {real.parent.name}\n")
    train = lists / "trainlist01.txt"
    train.write_text(train.read_text().rstrip() + f"\n{real.parent.name}/{real.name} 11\n")
    arguments = ["--data", "videos", "--tokenizer", tokenizers / "vq3d", *SHORT, "--out", "run"]
    run("train_ucf101.py", *arguments, cwd=tmp_path)
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["model"]["num_classes"] == 11
