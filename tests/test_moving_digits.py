"""Clips of moving digits: their judge, the bundled model, and the training that says how long it will take."""

import dataclasses
import re
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from command_line import run, run_example
from PIL import Image

from elt_zoo import load
from elt_zoo.data import MovingDigits, Visit
from elt_zoo.generator import model_card
from elt_zoo.metrics import MovingDigitsEvaluator
from elt_zoo.tokenizers import VQ3DConfig


@pytest.fixture(scope="module")
def judge():
    return MovingDigitsEvaluator()


@pytest.fixture(scope="module")
def real():
    source = MovingDigits("heldout", frames=4, size=12, augment=False)
    batch = source.read_batch([Visit(index) for index in range(100)])
    return batch.clips, batch.labels


def test_the_judge_knows_real_clips_and_no_others(judge, real):
    clips, labels = real
    quality = judge(clips, labels)
    assert quality.accuracy > 0.95 and quality.frame_accuracy > 0.95 and quality.samples == 100
    assert 0.02 < quality.speed < 0.06  # those of `MovingDigits`, less what walls turn back
    assert judge(clips, (labels + 1) % 10).accuracy < 0.05
    noise = np.random.default_rng(0).integers(0, 256, clips.shape, np.uint8)
    assert judge(noise, labels).accuracy < 0.3
    assert judge.floor(frames=2).accuracy > 0.97


def test_the_judge_sees_where_the_digit_is(judge, real):
    clips, labels = real
    still = np.repeat(clips[:, :1], 4, axis=1)
    assert judge(still, labels).speed == 0.0
    moved = np.roll(still, 1, axis=2)
    empty = ~still[:, :, -1:].any(axis=(1, 2, 3, 4))  # those that no row leaves at the bottom
    assert empty.sum() > 20 and judge(moved[empty], labels[empty]) == judge(still[empty], labels[empty])


def test_a_digit_that_changes_on_the_way_costs_frames_and_not_the_clip(judge, real):
    clips, labels = real
    mixed = clips.copy()
    mixed[:, 0] = clips[np.roll(np.arange(100), 1), 0]
    quality = judge(mixed, labels)
    assert quality.frame_accuracy < 0.85 and quality.accuracy > 0.9


def test_bytes_and_pixels_are_judged_alike(judge, real):
    clips, labels = real
    pixels = dataclasses.asdict(judge(clips / np.float32(127.5) - np.float32(1.0), labels))
    assert pixels == pytest.approx(dataclasses.asdict(judge(clips, labels)))


def test_what_cannot_be_judged_is_refused(judge, real):
    clips, labels = real
    with pytest.raises(ValueError, match=r"got clips of shape \(100, 4, 8, 8, 3\).*it needs"):
        judge(clips[:, :, :8, :8], labels)
    with pytest.raises(ValueError, match="digits are 0 to 9"):
        judge(clips, labels + 5)
    with pytest.raises(ValueError, match="not finite"):
        judge(np.full(clips.shape, np.nan, np.float32), labels)


@pytest.fixture(scope="module")
def bundled():
    return load("moving-digits")


def test_the_bundled_model_is_small_and_its_card_says_how_good_it_is(bundled):
    folder = Path(sys.modules["elt_zoo.generator"].__file__ or "").parent / "assets" / "moving-digits"
    assert sum(file.stat().st_size for file in folder.iterdir()) < 2_000_000
    card = model_card(bundled, address="moving-digits")
    assert "moving-digits" in card and "| objective |" in card and "frame_accuracy" in card
    assert "MovingDigitsEvaluator" in card and bundled.pixels.shape[-1] == 3


def test_the_command_writes_a_film_with_a_row_for_every_loop_count(tmp_path, bundled):
    out = tmp_path / "clips.png"
    finished = run("sample", "--model", "moving-digits", "--loops", 1, 2, "--steps", 2, "--out", out)
    film = out.with_suffix(".gif")
    assert f"Saved {out} and {film}." in finished.output
    with Image.open(film) as picture:
        assert getattr(picture, "n_frames", 1) == bundled.pixels.shape[0]
        assert picture.width > 500  # ten clips that can be seen, with the names of their rows
        first = np.asarray(picture.convert("L"))
        picture.seek(bundled.pixels.shape[0] - 1)
        assert np.mean(first != np.asarray(picture.convert("L"))) > 0.01


@pytest.mark.slow
@pytest.mark.optimized
def test_the_bundled_model_shows_the_digit_that_was_asked_for(judge, bundled):
    labels = np.tile(np.arange(10), 6)
    for loops in (2, bundled.config.max_loops):
        clips = bundled.sample(labels, loops=loops, key=jax.random.key(5))
        # Another seed than those that were reported, and fewer clips.
        assert judge(clips, labels).accuracy > 0.8


@pytest.mark.slow
def test_training_says_first_what_follows_and_how_long_it_takes(tmp_path, monkeypatch):
    small = VQ3DConfig(
        shape=(4, 16, 16),
        filters=2,
        channel_multipliers=(1, 1, 1),
        temporal_downsample=(True, False),
        num_enc_res_blocks=1,
        num_dec_res_blocks=1,
        embedding_dim=4,
        codebook_size=16,
        groups=1,
    )
    options = sys.modules["elt_zoo.recipes._tokenizer_options"]
    monkeypatch.setattr(options, "_SMALL_VIDEO", small)
    monkeypatch.setattr(options, "_CLIP_STEPS", 2)
    monkeypatch.chdir(tmp_path)
    sizes = ("--dim", 8, "--num-layers", 1, "--max-loops", 2, "--num-heads", 1, "--sampler.steps", 2)
    command = ("train_ucf101.py", *sizes, "--steps", 4, "--batch-size", 8, "--clips", 16, "--heldout", 8)
    finished = run_example(*command)
    announced = finished.output[: finished.output.index("Watch it in a browser")]
    assert "3 trainings follow" in announced
    assert re.search(r"tokenizer +2 steps of 16 clips: about \d+ (s|min)\n", announced)
    assert re.search(r"ilsd +4 steps of 8 clips: about \d+ (s|min)\n +vanilla +4 steps", announced)
    assert re.search(r"together at most about \d+ (s|min)\. The last two run side by side", announced)
    assert "frame accuracy" in (tmp_path / "runs" / "moving-digits-maskgit-ilsd" / "quality.md").read_text()
    again = run_example(*command)
    assert "follow" not in again.output and "Clips, table, metrics and model are in" in again.output
