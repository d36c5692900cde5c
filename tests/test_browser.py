"""The pages to play with in a real browser: pictures follow the sliders, and nothing comes from elsewhere."""

import dataclasses
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from browser import DESKTOP, PHONE, Browser, missing, served

from elt_zoo import load, save

ROOT = Path(__file__).parents[1]
STEPS = 3
PATIENCE = 300  # seconds, for a busy machine
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def browser():
    pytest.importorskip("selenium")
    if lacks := missing():
        pytest.skip(lacks)
    browser = Browser()
    yield browser
    browser.driver.quit()


@pytest.fixture(scope="module")
def documentation(tmp_path_factory):
    """The page as mkdocs builds it, without all others."""
    pytest.importorskip("mkdocs")
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    site = tmp_path_factory.mktemp("site")
    alone = "*\n!/play.md\n!/assets/\n!/assets/**\n"
    config = load_config(
        str(ROOT / "mkdocs.yml"),
        site_dir=str(site),
        nav=[{"Play": "play.md"}],
        plugins=[],
        exclude_docs=alone,
        strict=False,
    )
    build(config)
    with served(site) as address:
        yield f"{address}/play/"


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """The address that `elt-zoo demo` prints, of a model that is sampled in few steps and so has few programs."""
    pytest.importorskip("gradio")
    folder, generator = tmp_path_factory.mktemp("demo"), load("digits-dit")
    settings = dataclasses.replace(generator.settings, steps=STEPS)
    model = save(folder / "model", dataclasses.replace(generator, settings=settings))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    said = folder / "output.txt"
    command = [sys.executable, "-m", "elt_zoo", "demo", "--port", str(port), "--samples", "2", "--model", str(model)]
    with said.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=os.environ, cwd=ROOT)
    try:
        deadline = time.monotonic() + PATIENCE
        while "Open" not in said.read_text():
            assert process.poll() is None and time.monotonic() < deadline, said.read_text()
            time.sleep(0.2)
        assert f"Open http://127.0.0.1:{port}/ (Ctrl-C stops it)." in said.read_text()
        yield f"http://127.0.0.1:{port}/"
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 0, said.read_text()
        assert "Traceback" not in said.read_text() and "FATAL" not in said.read_text(), said.read_text()
    finally:
        process.kill()
        process.wait()


def _looks_sound(browser):
    assert browser.complaints() == []
    assert browser.from_elsewhere() == []
    assert browser.overflow() <= 0


@pytest.mark.parametrize("width", [DESKTOP, PHONE])
def test_the_page_of_the_documentation_follows_its_sliders(browser, documentation, width):
    def picture():
        return browser.run("return document.querySelector('[data-play=picture]').toDataURL()")

    def shown(name):
        return browser.find(f"[data-play={name}]").text

    browser.open(documentation, width=width)
    empty = browser.run("return document.createElement('canvas').toDataURL()")
    browser.wait(lambda: shown("flops") and picture() != empty, seconds=PATIENCE, what="a picture")
    before, cost = picture(), shown("flops")
    browser.press("[data-play=loops]", "ARROW_RIGHT")
    assert picture() != before and shown("loops-shown") == "2" and shown("flops") != cost
    before = picture()
    browser.press("[data-play=steps]", "HOME")
    assert picture() != before and shown("steps-shown") == "1"
    before = picture()
    browser.slide("[data-play=class]", 7)
    assert picture() != before and shown("class-shown") == "7"
    before = picture()
    browser.run("arguments[0].click()", browser.find(".play-models label:last-child input"))
    assert picture() != before
    browser.press("[data-play=loops]", "END")
    assert shown("loops-shown") == "8 (trained for 4)" and shown("layers") == "8"
    assert browser.find(".play-sheets").is_displayed() is False
    _looks_sound(browser)


@pytest.mark.parametrize("width", [DESKTOP, PHONE])
def test_the_demo_follows_its_sliders_and_shows_every_view(browser, demo, width):
    def html(name):
        return browser.run("return document.querySelector(arguments[0])?.innerHTML ?? ''", f"#{name}")

    def holds(name, text):
        browser.wait(lambda: text in html(name), seconds=PATIENCE, what=f"{text} in {name}")

    def pictures(name):
        return browser.run("return [...document.querySelectorAll(arguments[0])].map(each => each.src)", f"#{name} img")

    browser.open(demo, width=width)
    holds("now", f"4 loops, {STEPS} steps: {4 * STEPS * 2} layer applications")
    holds("viewed", "Samples with 8 loops")
    for slider, value, text in [
        ("loops", 7, f"7 loops (trained for 4), {STEPS} steps"),
        ("steps", 2, "7 loops (trained for 4), 2 steps: 28 layer applications"),
        ("guidance", 2, "56 layer applications"),  # of two branches
    ]:
        before = pictures("now")
        browser.slide(f"#{slider} input[type=range]", value)
        holds("now", text)
        assert len(before) == 2 and not set(before) & set(pictures("now"))
    for view, text in enumerate(("What exit 8 expects", "7 → 8", "Step 2"), start=1):
        browser.run("document.querySelectorAll('#view input')[arguments[0]].click()", view)
        holds("viewed", text)
    assert browser.run("return [...document.images].every(image => image.complete && image.naturalWidth > 0)")
    _looks_sound(browser)
