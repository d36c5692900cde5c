"""Fetching published files from a server on this machine, and training on what was fetched by its name."""

import dataclasses
import functools
import hashlib
import http.server
import json
import threading

import jax
import numpy as np
import pytest
from command_line import SMALL, rows_of, run, run_example
from published_files import made_up_cifar10, write_cifar10, write_mnist

from elt_zoo import load
from elt_zoo.data import IMAGE_SETS, DataError, Visit, fetch_images
from elt_zoo.data.published import _cifar10, _fetch
from elt_zoo.recipes import Augmentation, open_images, open_source
from elt_zoo.storage import DownloadError, PublishedFile, cache_folder, download

COUNT = 12
CONTENT = bytes(range(256)) * 9000
WHOLE = PublishedFile("file", len(CONTENT), hashlib.sha256(CONTENT).hexdigest())


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves a folder; `/short/…` promises more than it sends."""

    def do_GET(self):
        if self.path.startswith("/short/"):
            self.send_response(200)
            self.send_header("Content-Length", str(len(CONTENT)))
            self.end_headers()
            self.wfile.write(CONTENT[:1000])
        else:
            super().do_GET()

    def log_message(self, format, *args):
        pass


@pytest.fixture
def server(tmp_path):
    """The address of a server, and the folder that it serves."""
    folder = tmp_path / "served"
    folder.mkdir()
    handler = functools.partial(Handler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as listening:
        thread = threading.Thread(target=listening.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.server_port}", folder
        finally:
            listening.shutdown()
            thread.join()


@pytest.fixture(autouse=True)
def small(monkeypatch, tmp_path):
    """Files of twelve images instead of 10,000, and a cache of the test's own."""
    monkeypatch.setattr(_cifar10, "IMAGES_OF_A_FILE", COUNT)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)


def published(path):
    content = path.read_bytes()
    return PublishedFile(path.name, len(content), hashlib.sha256(content).hexdigest())


@pytest.fixture
def sets(server, monkeypatch):
    """The made-up CIFAR-10 and MNIST on the server, as if those were the official ones."""
    address, folder = server
    archive = write_cifar10(folder, made_up_cifar10(COUNT), packed=True)
    write_mnist(folder, train=60)
    files = {"cifar10": [archive], "mnist": sorted(folder.glob("*ubyte.gz"))}
    made_up = {
        name: dataclasses.replace(images, address=address, files=tuple(map(published, files[name])))
        for name, images in IMAGE_SETS.items()
    }
    monkeypatch.setattr(_fetch, "IMAGE_SETS", made_up)
    return server


def test_a_file_comes_whole_and_says_how_far_it_is(server, tmp_path):
    address, folder = server
    (folder / "file").write_bytes(CONTENT)
    received = []
    download(f"{address}/file", tmp_path / "file", WHOLE, on_progress=received.append)
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert received == sorted(received) and received[-1] == len(CONTENT) and len(received) > 1


@pytest.mark.parametrize(
    ("url", "expected", "message"),
    [
        ("{address}/nothing", WHOLE, "nothing could not be downloaded .*404"),
        ("{address}/short/file", WHOLE, "(could not be downloaded|has 1000 bytes, but 2304000 were published)"),
        ("{address}/file", PublishedFile("file", 1 << 20), "is longer than the 1048576 bytes that were published"),
        ("{address}/file", PublishedFile("file", 3 << 20), "has 2304000 bytes, but 3145728 were published"),
        ("{address}/file", PublishedFile("file", None, "0" * 64), "has the SHA-256 .*, but 0000.*put it at .*mine"),
        ("http://127.0.0.1:9/file", WHOLE, "could not be downloaded"),
        ("file:///etc/passwd", WHOLE, "no address that starts with http:// or https://"),
    ],
)
def test_a_download_that_fails_leaves_nothing(server, tmp_path, url, expected, message):
    address, folder = server
    (folder / "file").write_bytes(CONTENT)
    (tmp_path / "here").mkdir()
    with pytest.raises(DownloadError, match=message):
        download(url.format(address=address), tmp_path / "here" / "mine", expected)
    assert not list((tmp_path / "here").iterdir())


def test_the_folder_of_the_cache_follows_the_user(monkeypatch, tmp_path):
    assert cache_folder("x") == tmp_path / "cache" / "elt_zoo" / "x"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_folder("x") == tmp_path / "home" / ".cache" / "elt_zoo" / "x"


def test_what_is_there_is_checked_and_kept(sets, tmp_path):
    _, folder = sets
    seen = []
    place = fetch_images("mnist", on_progress=lambda *report: seen.append(report[0]))
    assert place == cache_folder("mnist") and len(set(seen)) == 4
    for file in folder.iterdir():
        file.unlink()
    assert fetch_images("mnist") == place  # nothing is left to serve
    (place / "t10k-labels-idx1-ubyte.gz").write_bytes(b"else")
    with pytest.raises(DataError, match=r"t10k-labels-idx1-ubyte\.gz has 4 bytes, but .* Delete it and fetch it again"):
        fetch_images("mnist")
    with pytest.raises(ValueError, match="known are cifar10, mnist"):
        fetch_images("cifar100")


def test_a_mirror_and_a_folder_of_ones_own(sets, tmp_path):
    address, folder = sets
    (folder / "mirror").mkdir()
    for file in folder.glob("*.tar.gz"):
        file.rename(folder / "mirror" / file.name)
    assert "404" in run("fetch", "--data", "cifar10", "--out", "mine", check=False).errors
    finished = run("fetch", "--data", "cifar10", "--out", "mine", "--mirror", f"{address}/mirror/")
    assert "use it with `--data mine`" in finished.output
    assert len(open_source("mine", split="train", size=32)) == 5 * COUNT


def test_named_sets_are_opened_as_they_should_be(tmp_path):
    write_cifar10(cache_folder("cifar10"), made_up_cifar10(COUNT))
    write_mnist(cache_folder("mnist"))
    opened = open_images("cifar10", size=16, heldout=5)
    assert (len(opened.train), len(opened.heldout), len(opened.plain)) == (5 * COUNT, COUNT, 5 * COUNT)
    assert opened.train[0].images.shape == (16, 16, 3)

    def batch(source):
        return source.read_batch([Visit(index, 1) for index in range(40)]).images

    assert (batch(opened.train) != batch(opened.plain)).any()
    still = open_images("cifar10", size=16, heldout=5, augmentation=Augmentation(flip=False))
    np.testing.assert_array_equal(batch(still.train), batch(opened.plain))
    digits = open_images("mnist", size=28, heldout=5)  # never mirrored
    np.testing.assert_array_equal(batch(digits.train), batch(digits.plain))
    with pytest.raises(DataError, match="`mnist` is MNIST, which are images; what was asked for are clips"):
        open_source("mnist", split="train", size=28, frames=4)


SHORT = (*SMALL, "--num-heads", 2, "--steps", 2, "--batch-size", 8, "--log-every", 1, "--sampler.steps", 2)


def check_run(folder, shape, data):
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["config"]["data"] == data and summary["model"]["num_classes"] == 10
    assert all(np.isfinite(row["heldout_loss"]) for row in summary["results"]) and len(summary["results"]) == 4
    assert [int(row["step"]) for row in rows_of(folder / "metrics-ilsd.csv")] == [1, 2]
    images = load(folder / "model").sample([0, 9], loops=2, key=jax.random.key(0))
    assert images.shape == (2, *shape) and np.isfinite(images).all()
    return summary


@pytest.mark.slow
def test_from_fetching_cifar10_to_samples(sets, tmp_path):
    """Pixels in colour without a tokenizer: 64 tokens of 4 × 4 pixels."""
    assert "is in" in run("fetch", "--data", "cifar10").output
    run("train", "--data", "cifar10", *SHORT, "--out", "run")
    summary = check_run(tmp_path / "run", (32, 32, 3), "cifar10")
    assert summary["model"]["shape"] == [32, 32, 3] and summary["model"]["patch_size"] == 4
    assert load(tmp_path / "run" / "model").config.num_tokens == 64
    assert summary["config"]["flip"] is True and summary["config"]["random_crop"] is False
    # The path of the archive is the same data.
    archive = next(cache_folder("cifar10").glob("*.gz"))
    run_example("train_imagenet.py", "--data", archive, *SHORT, "--out", "run2")
    assert check_run(tmp_path / "run2", (32, 32, 3), "cifar10")["results"][0]["heldout_loss"] == pytest.approx(
        summary["results"][0]["heldout_loss"], rel=1e-5
    )
    assert (
        "copies image files" in run("precompute", "--data", archive, "--out", "new", "--size", 32, check=False).errors
    )


@pytest.mark.slow
def test_training_on_mnist_in_both_families(tmp_path):
    write_mnist(tmp_path / "data", train=60)
    run("train", "--data", "data", "--image-size", 14, "--preset", "mnist-dit", *SHORT, "--out", "pixels")
    summary = check_run(tmp_path / "pixels", (14, 14, 1), "mnist")
    assert summary["config"]["flip"] is False
    run("train", "--data", "data", "--family", "maskgit", "--codebook-size", 16, *SHORT, "--out", "tokens")
    assert load(tmp_path / "tokens" / "model").config.example.shape == (7, 7)
    check_run(tmp_path / "tokens", (28, 28, 1), "mnist")


def test_wrong_uses_of_named_sets_are_refused_in_one_line(tmp_path):
    write_mnist(cache_folder("mnist"))
    for words, message in (
        ("train --data cifar10", "`elt-zoo fetch --data cifar10`"),
        ("train --data mnist --image-size 20", "cannot have 20 × 20"),
        ("train-tokenizer --data mnist", "has grey images"),
        ("precompute --data mnist --out new", "cannot have 256 × 256"),
        ("fetch --data imagenet", "imagenet"),
        ("fetch", "data"),
    ):
        finished = run(*words.split(), check=False)
        assert finished.code in (1, 2) and message in finished.errors and finished.errors.count("\n") == 1, words
    assert not (tmp_path / "runs").exists()
