import dataclasses
import shutil

import huggingface_hub.constants
import jax
import numpy as np
import pytest
from hub_stand_in import Hub

import elt_zoo
from elt_zoo.commands import main
from elt_zoo.families import MaskGITConfig
from elt_zoo.generator import Generator, model_card, push
from elt_zoo.storage import WeightsError

# Of the hub's client, about itself.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

CONFIG = MaskGITConfig(dim=8, num_layers=1, max_loops=2, num_heads=1, num_classes=2, grid=(2, 2), codebook_size=3)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """The hub's client talks to a server of this process, and caches in a folder of the test."""
    server = Hub()
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", server.address)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    template = server.address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def folder(tmp_path):
    generator = Generator(CONFIG.build(key=jax.random.key(0)), CONFIG, metadata={"data": "dots", "licence": "mit"})
    return elt_zoo.save(tmp_path / "model", generator)


def first_weights(generator):
    return np.asarray(jax.tree.leaves(generator.model)[0])


def test_a_pushed_model_is_loaded_by_its_address(hub, folder):
    address = push(folder, "hf://someone/dots", private=True)
    commit = hub.branches["someone/dots"]["main"]
    assert address == f"hf://someone/dots@{commit}" and hub.private["someone/dots"]
    for name in (address, "hf://someone/dots", "hf://someone/dots@main"):
        loaded = elt_zoo.load(name)
        assert loaded.config == CONFIG
        np.testing.assert_array_equal(first_weights(loaded), first_weights(elt_zoo.load(folder)))
    card = hub.files("someone/dots", "main")[1]["README.md"].decode()
    assert 'elt_zoo.load("hf://someone/dots")' in card and "license: mit\n" in card


def test_what_is_there_is_not_replaced_unasked(hub, folder):
    push(folder, "hf://someone/dots")
    with pytest.raises(FileExistsError, match="holds a model already"):
        push(folder, "hf://someone/dots")
    before = hub.branches["someone/dots"]["main"]
    after = push(folder, "hf://someone/dots", overwrite=True)
    assert not after.endswith(before) and "model.safetensors" in hub.files("someone/dots", before)[1]


def test_a_branch_is_made_and_loaded(hub, folder):
    push(folder, "hf://someone/dots@small")
    assert elt_zoo.load("hf://someone/dots@small").config == CONFIG
    with pytest.raises(FileNotFoundError, match=r"holds no model\.safetensors"):
        elt_zoo.load("hf://someone/dots")


def test_the_cache_serves_without_a_network(hub, folder, monkeypatch):
    address = push(folder, "hf://someone/dots")
    elt_zoo.load("hf://someone/dots")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    seen = len(hub.requests)
    assert elt_zoo.load(address).config == CONFIG and elt_zoo.load("hf://someone/dots").config == CONFIG
    with pytest.raises(FileNotFoundError, match="neither on the hub nor in the cache"):
        elt_zoo.load("hf://someone/else")
    assert len(hub.requests) == seen


def test_a_changed_file_is_refused(hub, folder, tmp_path):
    push(folder, "hf://someone/dots")
    elt_zoo.load("hf://someone/dots")
    (weights,) = (tmp_path / "cache").rglob("model.safetensors")
    other = dataclasses.replace(elt_zoo.load(folder), model=CONFIG.build(key=jax.random.key(9)))
    shutil.copy(elt_zoo.save(tmp_path / "other", other) / "model.safetensors", weights.resolve())
    with pytest.raises(WeightsError, match=r"has the SHA-256 .* was published"):
        elt_zoo.load("hf://someone/dots")


def test_a_damaged_model_is_not_pushed(hub, folder):
    weights = folder / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(WeightsError):
        push(folder, "hf://someone/dots")
    assert not hub.commits


@pytest.mark.parametrize("address", ["someone/dots", "hf://dots", "hf://a/b/c", "hf://a/b@", "hf://a b/c", "hf://"])
def test_wrong_addresses_are_refused(folder, address):
    with pytest.raises(ValueError, match="Write hf://owner/name"):
        push(folder, address)


def test_what_the_hub_refuses_is_said_in_one_line(hub, folder):
    hub.refuses_uploads = True
    with pytest.raises(OSError, match="The hub did not take hf://someone/dots") as error:
        push(folder, "hf://someone/dots")
    assert "\n" not in str(error.value)


def test_the_command_pushes_and_says_the_address(hub, folder, capsys):
    main(["push", "--model", str(folder), "--to", "hf://someone/dots"])
    assert f"hf://someone/dots@{hub.branches['someone/dots']['main']}" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stop:
        main(["push", "--model", str(folder), "--to", "hf://someone/dots"])
    assert stop.value.code == 2


def test_a_card_says_what_the_model_is(folder):
    generator = dataclasses.replace(
        elt_zoo.load(folder),
        metadata={"results": [{"loops": 1, "loss": 0.123456}, {"loops": 2, "accuracy": 0.5}], "protocol": {"seeds": 5}},
    )
    card = model_card(generator)
    assert "| **Unique layers N** | 1 |" in card and "to be decoded with a tokenizer" in card
    assert "| loops | loss | accuracy |" in card and "| 1 | 0.1235 |  |" in card and '"seeds": 5' in card


def test_a_card_written_by_hand_is_kept(folder):
    generator = elt_zoo.load(folder)
    elt_zoo.save(folder, dataclasses.replace(generator, metadata={"data": "stars"}), overwrite=True)
    assert "| **Data** | stars |" in (folder / "README.md").read_text()
    (folder / "README.md").write_text("My own words.")
    elt_zoo.save(folder, generator, overwrite=True)
    assert (folder / "README.md").read_text() == "My own words."
