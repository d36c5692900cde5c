"""The manifest of published weights, and fetching from a hub cache without the network."""

import hashlib
import re
import sys

import pytest

import elt_zoo
from elt_zoo import pretrained
from elt_zoo.generator import bundled_names
from elt_zoo.pretrained import LicenceWarning, Status, Weights, catalog, fetch, load_dit
from elt_zoo.storage import PublishedFile, WeightsError

REVISION = "0123456789abcdef0123456789abcdef01234567"
CONTENT = b"tensors"


def test_every_entry_can_be_used_or_says_why_not():
    for name, weights in catalog().items():
        if weights.status == Status.NEVER_RELEASED:
            assert weights.note and not weights.loader and not weights.files
            continue
        assert weights.licence and weights.source, name
        assert weights.loader in {
            elt_zoo.load,
            *(getattr(pretrained, each) for each in dir(pretrained) if "load_" in each),
        }
        if weights.status == Status.OURS:
            assert name in bundled_names()
        else:
            assert weights.files and weights.source.startswith("https://"), name
        assert (weights.repository is None) == (weights.revision is None), name
        assert weights.revision is None or re.fullmatch("[0-9a-f]{40}", weights.revision), name
        for file in weights.files:
            assert file.sha256 is None or re.fullmatch("[0-9a-f]{64}", file.sha256)
    assert set(bundled_names()) <= set(catalog())
    assert catalog()["dit-xl-2-256"].licence == "CC-BY-NC 4.0" and catalog()["dit-xl-2-256"].restricted
    with pytest.raises(TypeError):
        catalog()["mine"] = catalog()["magvit"]  # pyright: ignore[reportIndexIssue]


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A hub cache that holds one repository, and a catalog that lists it."""
    snapshot = tmp_path / "models--someone--weights" / "snapshots" / REVISION
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    (snapshot / "weights.safetensors").write_bytes(CONTENT)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    def listing(*files, restricted=False):
        weights = Weights(
            network="a network",
            status=Status.AVAILABLE,
            loader=load_dit,
            licence="CC-BY-NC 4.0",
            source="https://example.org/weights",
            restricted=restricted,
            repository="someone/weights",
            revision=REVISION,
            files=files,
        )
        monkeypatch.setattr(pretrained._catalog, "catalog", lambda: {"mine": weights})
        return tmp_path

    return listing


def get(cache_dir):
    return fetch("mine", cache_dir=cache_dir, local_files_only=True)


def test_what_is_in_the_cache_is_taken_from_there(cache):
    digest = hashlib.sha256(CONTENT).hexdigest()
    place = cache(PublishedFile("weights.safetensors", len(CONTENT), digest))
    assert get(place).read_bytes() == CONTENT
    place = cache(PublishedFile("config.json"), PublishedFile("weights.safetensors"))
    assert {file.name for file in get(place).iterdir()} == {"config.json", "weights.safetensors"}


def test_a_file_that_is_not_what_was_published_is_refused(cache):
    with pytest.raises(WeightsError, match="has 7 bytes, but 8 were published"):
        get(cache(PublishedFile("weights.safetensors", 8)))
    with pytest.raises(WeightsError, match=r"has the SHA-256 .*, but 0000"):
        get(cache(PublishedFile("weights.safetensors", 7, "0" * 64)))


def test_a_restrictive_licence_is_told(cache):
    with pytest.warns(LicenceWarning, match=r"mine is licensed CC-BY-NC 4\.0"):
        get(cache(PublishedFile("weights.safetensors"), restricted=True))


def test_what_is_not_cached_is_not_downloaded_offline(cache, tmp_path):
    place = cache(PublishedFile("other.safetensors"))
    # As an interrupted download leaves it.
    blobs = tmp_path / "models--someone--weights" / "blobs"
    blobs.mkdir()
    (blobs / "abc.incomplete").write_bytes(CONTENT)
    with pytest.raises(FileNotFoundError, match=r"other\.safetensors of someone/weights at 0123.*https://example\.org"):
        get(place)


def test_weights_that_cannot_be_fetched_say_where_they_are(monkeypatch):
    for name, text in [
        ("dit-xl-3", "Unknown weights 'dit-xl-3'. Known are .*dit-xl-2-256"),
        ("magvit", "were never released"),
        ("digits-dit", r"ships with the library: use `elt_zoo\.load\('digits-dit'\)`"),
        ("dit-xl-2-256", r"Download it from https://dl\.fbaipublicfiles.* path to `load_dit`\. Licence: CC-BY-NC 4\.0"),
    ]:
        with pytest.raises(ValueError, match=text):
            fetch(name)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ImportError, match=r"pip install 'elt_zoo\[hub\]'"):
        fetch("sd-vae-ft-mse")
