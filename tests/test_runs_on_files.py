"""Training on files, as on the full sets: folders of images and videos, shards, and what does not go together."""

import csv
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from command_line import SMALL, run, run_example
from PIL import Image

from elt_zoo import load
from elt_zoo.data import MovingDigits, write_ucf101
from elt_zoo.tokenizers import AutoencoderKLConfig, PatchCodebook, VQ3DConfig, VQGANConfig, save_tokenizer

REAL_IMAGES = Path(__file__).parents[2] / "shared" / "data" / "imagenet-sample"
REAL_VIDEOS = Path(__file__).parents[2] / "shared" / "data" / "ucf101-sample"
SHORT = (*SMALL, "--num-heads", 2, "--steps", 6, "--batch-size", 8, "--log-every", 3, "--sampler.steps", 2)
pytestmark = pytest.mark.slow


def metrics_of(folder, name="ilsd"):
    return list(csv.DictReader((folder / f"metrics-{name}.csv").read_text().splitlines()))


def summary_of(folder):
    return json.loads((folder / "summary.json").read_text())


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


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


def test_pixels_of_a_folder_with_a_broken_file(images, tmp_path, caplog):
    finished = run_example("train_imagenet.py", "--data", images, *SHORT, "--out", "run")
    assert "0.JPEG" in finished.errors + caplog.text
    summary = summary_of(tmp_path / "run")
    assert summary["model"]["num_classes"] == 3 and summary["model"]["shape"] == [32, 32, 3]
    assert [row["loops"] for row in summary["results"]] == [1, 2, 3, 4]
    assert (tmp_path / "run" / "samples.png").stat().st_size > 1000
    rows = metrics_of(tmp_path / "run")
    assert [int(row["step"]) for row in rows] == [1, 3, 6]
    assert all(np.isfinite(float(row["loss"])) and 0.0 <= float(row["data_wait"]) <= 1.0 for row in rows)


def test_augmentation_sizes_and_a_codebook_of_ones_own(images, tmp_path):
    plain = ("--no-random-crop", "--no-flip", "--image-size", 16, "--workers", 0)
    run("train", "--data", images, *plain, *SHORT, "--out", "run")
    summary = summary_of(tmp_path / "run")
    assert summary["model"]["shape"] == [16, 16, 3] and summary["config"]["flip"] is False
    coded = ("--family", "maskgit", "--codebook-size", 32)
    run("train", "--data", images, *coded, *SHORT, "--out", "coded")
    generator = load(tmp_path / "coded" / "model")
    assert isinstance(generator.tokenizer, PatchCodebook) and generator.tokenizer.shape == (32, 32, 3)
    assert generator.tokenizer.codebook_size == 32 and generator.config.to_dict()["codebook_size"] == 32
    run("sample", "--model", "coded/model", "--loops", 1, "--labels", 0)
    assert (tmp_path / "samples.png").exists()


def test_precomputed_tokens_and_latents_train_both_families(images, tokenizers, tmp_path):
    common = ("precompute", "--data", images, "--max-unreadable", 1)
    packed = run(*common, "--tokenizer", tokenizers / "vqgan", "--out", "tokens")
    assert "39 examples (tokens)" in packed.output and "0.JPEG" in packed.output
    masked = ("train", "--data", "tokens", "--family", "maskgit", *SHORT)
    run(*masked, "--tokenizer", tokenizers / "vqgan", "--out", "masked")
    assert summary_of(tmp_path / "masked")["model"]["grid"] == [8, 8]

    kl = ("--tokenizer", tokenizers / "kl")
    run_example("precompute.py", *common[1:], *kl, "--size", 32, "--out", "latents", "--views", "ten_crops")
    run("train", "--data", "latents", *kl, *SHORT, "--out", "latent")
    assert summary_of(tmp_path / "latent")["model"]["shape"] == [16, 16, 4]
    assert (tmp_path / "latent" / "samples.png").exists()

    refusals = [
        (("--data", "tokens", "--family", "maskgit", "--tokenizer", tokenizers / "vq3d"), "need a tokenizer of images"),
        (("--data", "tokens", "--family", "dit"), "holds tokens, which the family 'dit' does not take"),
        (("--data", "latents", "--family", "maskgit"), "holds latents, which the family 'maskgit' does not take"),
        (("--data", tmp_path), "class folders hold no image"),
    ]
    for arguments, message in refusals:
        refused = run("train", *arguments, "--out", "refused", check=False)
        assert refused.code == 2 and message in refused.errors
    assert not (tmp_path / "refused").exists()


def test_videos_and_their_tokens(tokenizers, tmp_path):
    sources = [MovingDigits(split, frames=6, size=32, length=24) for split in ("train", "heldout")]
    write_ucf101(tmp_path / "videos", *sources)
    tokenizer = ("--tokenizer", tokenizers / "vq3d")
    run_example("train_ucf101.py", "--data", "videos", *tokenizer, *SHORT, "--out", "run")
    summary = summary_of(tmp_path / "run")
    assert summary["model"]["grid"] == [2, 8, 8] and summary["model"]["num_classes"] == 10
    with Image.open(tmp_path / "run" / "samples.gif") as film:
        assert getattr(film, "n_frames", 1) > 1
    run("precompute", "--data", "videos", *tokenizer, "--out", "tokens", "--views", "one")
    run("train", "--data", "tokens", "--preset", "tiny-ucf101", *SHORT, "--out", "coded")
    assert (tmp_path / "coded" / "quality.png").exists() and not (tmp_path / "coded" / "samples.png").exists()
    refused = run_example("train_ucf101.py", "--data", "videos", check=False)
    assert refused.code == 2 and "MAGVIT's was never released" in refused.errors
    refused = run_example("train_ucf101.py", "--preset", "digits-maskgit", check=False)
    assert refused.code == 2 and "not for video" in refused.errors


@pytest.mark.optional
@pytest.mark.skipif(not REAL_IMAGES.exists(), reason="the sample of ImageNet is not here")
@pytest.mark.parametrize("family", ["dit", "maskgit"])
def test_real_images(family, tmp_path):
    run("train", "--data", REAL_IMAGES, "--family", family, *SHORT, "--steps", 12, "--out", "run")
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
    run_example("train_ucf101.py", "--data", "videos", "--tokenizer", tokenizers / "vq3d", *SHORT, "--out", "run")
    assert summary_of(tmp_path / "run")["model"]["num_classes"] == 11
