"""The pictures of the documentation are those of the models that come with the library."""

import dataclasses
import hashlib
import json
from pathlib import Path

import equinox as eqx
import numpy as np
import pytest
from PIL import Image

from elt_zoo import load
from elt_zoo.generator import bundled_names
from elt_zoo.profile import sample_compute

ASSETS = Path(__file__).parents[1] / "docs" / "assets"
PLAY, STRIPS, FILMS = ASSETS / "play", ASSETS / "strips", ASSETS / "films"
AGAIN = "make them again with `python -m pictures`"


@pytest.fixture(scope="module")
def described():
    return json.loads((PLAY / "sheets.json").read_text())


def test_the_page_shows_every_bundled_model(described):
    films = json.loads((FILMS / "films.json").read_text())
    assert sorted(shown["model"] for shown in (*described, *films)) == sorted(bundled_names())


def test_films_are_small_move_and_are_those_of_the_models_of_today():
    from pictures import _films

    for film, said in zip(_films.FILMS, json.loads((FILMS / "films.json").read_text()), strict=True):
        path = FILMS / f"{film.model}.gif"
        assert said.pop("sha256") == hashlib.sha256(path.read_bytes()).hexdigest(), AGAIN
        generator = load(film.model)
        assert said == _films.describe(film, generator), AGAIN
        assert path.stat().st_size < 300_000
        with Image.open(path) as picture:
            assert getattr(picture, "n_frames", 1) == generator.pixels.shape[0]


@pytest.mark.parametrize("index", range(5))
def test_sheets_are_those_of_the_models_and_settings_of_today(described, index):
    from pictures._sheets import SHEETS, describe

    sheet, said = SHEETS[index], dict(described[index])
    picture = (PLAY / f"{sheet.model}.png").read_bytes()
    assert said.pop("sha256") == hashlib.sha256(picture).hexdigest(), AGAIN
    assert said == describe(sheet, load(sheet.model)), AGAIN


def test_strips_are_those_of_the_models_and_settings_of_today():
    from pictures._strips import STRIPS as strips
    from pictures._strips import describe

    described = json.loads((STRIPS / "strips.json").read_text())
    for strip, said in zip(strips, described, strict=True):
        picture = (STRIPS / f"{strip.model}.png").read_bytes()
        assert said.pop("sha256") == hashlib.sha256(picture).hexdigest(), AGAIN
        assert said == describe(strip, load(strip.model)), AGAIN


def test_the_film_is_that_of_the_model_and_the_distances_of_today():
    from pictures._loops_film import describe
    from pictures._main import BUDGETS

    said = json.loads((ASSETS / "loops.json").read_text())
    assert said.pop("sha256") == hashlib.sha256((ASSETS / "loops.gif").read_bytes()).hexdigest(), AGAIN
    assert said == describe(BUDGETS), AGAIN


def test_the_film_has_a_picture_for_every_loop_count():
    with Image.open(ASSETS / "loops.gif") as film:
        assert getattr(film, "n_frames", 1) == load("mnist-dit").config.max_loops
        assert (ASSETS / "loops.gif").stat().st_size <= 100_000


def test_a_sheet_of_other_weights_or_settings_is_stale():
    from pictures._sheets import SHEETS, describe

    generator = load("mnist-dit")
    weights = eqx.tree_at(
        lambda model: model.head.patch_embedding.bias, generator.model, replace_fn=lambda bias: bias + 1e-3
    )
    settings = dataclasses.replace(generator.settings, clip_x0=0.9)
    others = dataclasses.replace(generator, model=weights), dataclasses.replace(generator, settings=settings)
    hashes = [describe(SHEETS[0], each)["sampled"] for each in (generator, *others)]
    assert len(set(hashes)) == 3


def test_sheets_are_small_and_have_a_place_for_every_sample(described):
    assert sum(file.stat().st_size for file in PLAY.iterdir()) <= 450_000
    for sheet in described:
        with Image.open(PLAY / f"{sheet['model']}.png") as picture:
            height, width = sheet["size"]
            columns, rows = sheet["classes"] * sheet["noises"], len(sheet["steps"]) * len(sheet["loops"])
            assert picture.size == (columns * width, rows * height)


def test_the_page_counts_the_operations_of_a_sample(described):
    for sheet in described:
        generator = load(sheet["model"])
        row, column = 2, 5
        sampler, loops = generator.sampler(steps=sheet["steps"][row]), sheet["loops"][column]
        assert sheet["flops"][row][column] == sample_compute(generator.config, sampler, loops=loops).flops
        assert sheet["layers"][row][column] == sampler.steps * loops * sheet["num_layers"]


@pytest.mark.slow
@pytest.mark.parametrize("index", range(5))
def test_sheets_hold_what_the_models_sample(described, index):
    from pictures._sheets import SHEETS, sample

    sheet = SHEETS[index]
    steps, loops = sheet.steps[2], sheet.loops[1]
    fresh = sample(sheet, load(sheet.model), steps=steps, loops=loops)
    row = sheet.steps.index(steps) * len(sheet.loops) + sheet.loops.index(loops)
    classes, noises, height, width, channels = fresh.shape
    kept = np.asarray(Image.open(PLAY / f"{sheet.model}.png"))[row * height : (row + 1) * height]
    kept = kept.reshape(height, classes, noises, width, channels).transpose(1, 2, 0, 3, 4)
    differs = np.abs(kept.astype(int) - fresh.astype(int)).reshape(classes * noises, -1).max(axis=1) > 17
    # Another machine rounds otherwise, which may tip a token or a level. Another noise changes every sample.
    assert np.mean(differs) <= 0.1
