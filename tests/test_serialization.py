import dataclasses
import enum
import errno
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

import elt_zoo
from elt_zoo.families import DiTConfig, MaskGITConfig, preset
from elt_zoo.generator import Generator, bundled_names
from elt_zoo.storage import (
    WeightsError,
    _folder,
    assemble,
    from_json,
    hash_arrays,
    named_arrays,
    own_names,
    read_folder,
    read_tensors,
    write_folder,
    write_safetensors,
)
from elt_zoo.tokenizers import AbstractTokenizer, GreyLevels, PatchCodebook, load_tokenizer

MASKED = MaskGITConfig(dim=8, num_layers=2, max_loops=3, num_heads=2, num_classes=4, grid=(2, 2), codebook_size=5)
DIFFUSION = DiTConfig(dim=8, num_layers=1, max_loops=2, num_heads=2, num_classes=4, shape=(4, 4, 1))
CODEBOOK = PatchCodebook(jnp.linspace(-1.0, 1.0, 20).reshape(5, 4), (4, 4, 1), 2)


@pytest.fixture(scope="module")
def masked():
    return MASKED.build(key=jax.random.key(0))


@pytest.fixture
def saved(masked, tmp_path):
    return elt_zoo.save(tmp_path / "model", Generator(masked, MASKED, tokenizer=CODEBOOK, metadata={"steps": 7}))


def rewrite(folder, change=lambda tensors: None, text=None, **changes):
    """Writes the weights and the description in them anew."""
    file = read_tensors(folder / "model.safetensors")
    tensors, description = dict(file), json.loads(file.metadata["description"])
    change(tensors)
    text = json.dumps(description | changes) if text is None else text
    write_safetensors(folder / "model.safetensors", tensors, {"description": text})


@pytest.mark.parametrize(
    ("config", "tokenizer"), [(MASKED, CODEBOOK), (MASKED, GreyLevels((2, 2, 1), 5)), (MASKED, None), (DIFFUSION, None)]
)
def test_what_is_saved_comes_back_bit_for_bit(config, tokenizer, tmp_path):
    model = config.build(key=jax.random.key(3))
    folder = elt_zoo.save(
        tmp_path / "new" / "model", Generator(model, config, tokenizer=tokenizer, metadata={"a": [1, "b"]})
    )
    loaded = elt_zoo.load(folder)
    assert eqx.tree_equal(loaded.model, model)
    assert eqx.tree_equal(loaded.tokenizer, tokenizer)
    assert loaded.config == config and loaded.metadata == {"a": [1, "b"]}
    assert sorted(file.name for file in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]


def test_the_file_is_readable_elsewhere_by_the_names_of_attributes(saved, masked):
    tensors = load_file(saved / "model.safetensors")
    np.testing.assert_array_equal(
        tensors["model.trunk.layers.attention.qkv.weight"], masked.trunk.layers.attention.qkv.weight
    )
    np.testing.assert_array_equal(tensors["tokenizer.codebook"], CODEBOOK.codebook)
    described = json.loads((saved / "config.json").read_text())
    assert described["format_version"] == 1 and described["model"]["family"] == "maskgit"


def test_a_model_is_not_overwritten_unless_asked(saved, masked):
    before = (saved / "model.safetensors").read_bytes()
    other = jax.tree.map(lambda leaf: leaf + 1.0 if eqx.is_inexact_array(leaf) else leaf, masked)
    with pytest.raises(FileExistsError, match="already holds a model"):
        elt_zoo.save(saved, Generator(other, MASKED))
    assert (saved / "model.safetensors").read_bytes() == before
    elt_zoo.save(saved, Generator(other, MASKED), overwrite=True)
    assert eqx.tree_equal(elt_zoo.load(saved).model, other) and elt_zoo.load(saved).tokenizer is None


def test_a_failed_save_leaves_nothing_behind(masked, saved, tmp_path):
    class Mine(AbstractTokenizer):
        codebook_size: int = 5  # pyright: ignore[reportIncompatibleMethodOverride]
        grid: tuple[int, ...] = (2, 2)  # pyright: ignore[reportIncompatibleMethodOverride]
        shape: tuple[int, ...] = (2, 2, 1)

        def encode(self, image):
            return image

        def decode(self, ids):
            return ids

    fresh = tmp_path / "fresh"
    with pytest.raises(TypeError, match="A tokenizer of type Mine cannot be described"):
        elt_zoo.save(fresh, Generator(masked, MASKED, tokenizer=Mine()))
    with pytest.raises(TypeError, match="holds what JSON cannot"):
        elt_zoo.save(fresh, Generator(masked, MASKED, metadata={"score": jnp.ones(2)}))
    with pytest.raises(
        ValueError, match=r"not build this model; pass `own_model=True`.*\n  missing: head\.modulation\.bias"
    ):
        elt_zoo.save(fresh, Generator(masked, DIFFUSION))
    assert not fresh.exists()
    with pytest.raises(TypeError):
        elt_zoo.save(saved, Generator(masked, MASKED, metadata={"score": jnp.ones(2)}), overwrite=True)
    assert elt_zoo.load(saved).metadata == {"steps": 7}


def test_every_difference_of_the_weights_is_named_at_once(saved):
    def change(tensors):
        del tensors["model.head.bias"]
        tensors["model.extra"] = np.zeros(3, np.float32)
        tensors["model.head.hidden.weight"] = tensors["model.head.hidden.weight"][:4]
        tensors["model.head.hidden.bias"] = tensors["model.head.hidden.bias"].astype(np.int32)

    rewrite(saved, change)
    with pytest.raises(WeightsError, match="does not hold the tensors of this network") as error:
        elt_zoo.load(saved)
    for line in (
        "missing: model.head.bias (5,)",
        "unused: model.extra (3,)",
        "different: model.head.hidden.weight is of shape (4, 8), expected (8, 8)",
        "different: model.head.hidden.bias is of type int32, expected float32",
    ):
        assert line in str(error.value)


def test_a_model_is_read_into_another_dtype_and_onto_a_sharding(saved, masked):
    loaded = elt_zoo.load(saved, dtype=jnp.bfloat16)
    narrowed = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16) if eqx.is_array(leaf) else leaf, masked)
    assert eqx.tree_equal(loaded.model, narrowed)
    mesh = jax.sharding.Mesh(np.asarray(jax.devices()[:2]), ("model",))

    def rows(name, shape):
        spec = ("model",) if name.endswith("up.weight") and shape[0] % 2 == 0 else ()
        return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*spec))

    sharded: Any = elt_zoo.load(saved, sharding=rows).model
    assert sharded.trunk.layers.mlp.up.weight.sharding.spec == jax.sharding.PartitionSpec("model")
    assert len(sharded.head.hidden.weight.sharding.device_set) == 2
    assert eqx.tree_equal(jax.device_get(sharded), jax.device_get(masked))
    second: Any = elt_zoo.load(saved, sharding=jax.sharding.SingleDeviceSharding(jax.devices()[1])).model
    assert second.head.bias.devices() == {jax.devices()[1]}


def test_weights_in_half_precision_are_widened_and_in_double_refused(saved):
    def narrow(tensors):
        tensors["model.head.hidden.bias"] = np.linspace(0, 1, 8).astype(np.float16)

    rewrite(saved, narrow)
    head: Any = elt_zoo.load(saved).model.head
    bias = head.hidden.bias
    assert bias.dtype == jnp.float32
    np.testing.assert_array_equal(bias, np.linspace(0, 1, 8).astype(np.float16).astype(np.float32))

    def widen(tensors):
        tensors["model.head.hidden.bias"] = np.zeros(8)

    rewrite(saved, widen)
    with pytest.raises(WeightsError, match=r"head\.hidden\.bias is of type float64, expected float32"):
        elt_zoo.load(saved)


@pytest.mark.parametrize("size", [0, 5, 200, -1])
def test_truncated_weights_are_refused(saved, size):
    file = saved / "model.safetensors"
    file.write_bytes(file.read_bytes()[:size])
    with pytest.raises(WeightsError, match=r"model\.safetensors (is|has) .*(truncated|damaged)"):
        elt_zoo.load(saved)


def test_a_stump_of_a_header_is_no_pickle(saved):
    (saved / "model.safetensors").write_bytes(b"\x80\x02\x00\x00\x00")  # of 640 bytes
    with pytest.raises(WeightsError, match="is empty, truncated or of an unknown format"):
        elt_zoo.load(saved)


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "{}", "[" * 100_000]
    + [f'{{"format_version": {version}}}' for version in ('"one"', "null", "true", "-1", '1, "format_version": 1')],
)
def test_a_damaged_description_is_refused(saved, text):
    rewrite(saved, text=text)
    with pytest.raises(WeightsError, match=r"model\.safetensors is damaged or holds no description of elt_zoo"):
        elt_zoo.load(saved)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"format_version": 2}, "format version 2; this elt_zoo reads up to 1. Install a newer"),
        ({"model": {"family": "gan"}}, "of the family 'gan'; known are"),
        ({"model": MASKED.to_dict() | {"depth": 3}}, "unknown: 'depth'"),
        ({"model": MASKED.to_dict() | {"num_heads": 3}}, "heads must divide the width"),
        ({"tokenizer": {"kind": "gan", "shape": [4, 4, 1]}}, "unknown tokenizer 'gan'"),
        ({"tokenizer": {"kind": "grey_levels"}}, "missing: levels; missing: shape"),
    ],
)
def test_a_description_of_another_kind_is_refused(saved, changes, text):
    rewrite(saved, **changes)
    with pytest.raises(WeightsError, match=text):
        elt_zoo.load(saved)


def test_an_unknown_place_is_named_with_what_there_is(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"No model at 'digits-gan'.*bundled model"):
        elt_zoo.load("digits-gan")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors"):
        elt_zoo.load(tmp_path)


_BUNDLED = {"digits-dit": 1_000_000, "digits-maskgit": 1_000_000, "mnist-dit": 1_000_000}
_BUNDLED |= {"cifar10-dit": 3_000_000, "cifar10-maskgit": 3_000_000}
"""Bytes that each may have at most."""


def test_the_bundled_models_load_and_are_small():
    assert set(bundled_names()) == {*_BUNDLED, "moving-digits"}
    for name, most in _BUNDLED.items():
        loaded = elt_zoo.load(name)
        # They were trained with another default of `remat`, which has no part in what the model is.
        same = dataclasses.replace(loaded.config, remat=preset(name).remat)
        assert same == preset(name) and loaded.metadata["objective"] == "ilsd"
        assert sum(leaf.nbytes for leaf in jax.tree.leaves(eqx.filter(loaded.model, eqx.is_array))) < most


def test_the_description_travels_with_the_weights(saved, masked):
    """`config.json` is for people: what is loaded does not depend on it."""
    described = json.loads((saved / "config.json").read_text())
    assert described["model"] == json.loads(json.dumps(MASKED.to_dict())) and "copy" in described["about"]
    (saved / "config.json").write_text("{")
    assert elt_zoo.load(saved).metadata == {"steps": 7}
    (saved / "config.json").unlink()
    assert eqx.tree_equal(elt_zoo.load(saved).model, masked)


def test_weights_of_other_programs_are_described_beside_them(saved, masked):
    save_file(load_file(saved / "model.safetensors"), saved / "model.safetensors")
    assert eqx.tree_equal(elt_zoo.load(saved).model, masked)
    (saved / "config.json").write_text("[]")
    with pytest.raises(WeightsError, match=r"config\.json is damaged or holds no description"):
        elt_zoo.load(saved)
    (saved / "config.json").unlink()
    with pytest.raises(WeightsError, match=r"carries no description, and there is no config\.json"):
        elt_zoo.load(saved)


def test_an_opened_folder_stays_what_it_was_while_it_is_replaced(saved, masked):
    description, tensors = read_folder(saved)
    assert tensors.is_current()
    other = jax.tree.map(lambda leaf: leaf + 1.0 if eqx.is_inexact_array(leaf) else leaf, masked)
    elt_zoo.save(saved, Generator(other, MASKED, metadata={"steps": 8}), overwrite=True)
    assert not tensors.is_current() and description["metadata"] == {"steps": 7}
    for name, leaf in named_arrays(masked).items():
        np.testing.assert_array_equal(tensors[f"model.{name}"], leaf)


def test_a_folder_replaced_between_weights_and_config_is_read_again(saved, monkeypatch):
    """Weights without a description were opened; then the whole folder was replaced."""
    save_file(load_file(saved / "model.safetensors"), saved / "model.safetensors")
    read, calls = _folder.read_tensors, []

    def read_and_replace(path):
        tensors = read(path)
        calls.append(path)
        if len(calls) == 1:
            write_folder(saved, {"x": np.zeros(3, np.float32)}, {"new": True})
        return tensors

    monkeypatch.setattr(_folder, "read_tensors", read_and_replace)
    description, tensors = read_folder(saved)
    assert description["new"] and set(tensors) == {"x"} and len(calls) == 2


# Imports once and forks a writer for every number that it is told.
WRITERS = """
import os, sys
from pathlib import Path
import numpy as np
from elt_zoo.storage import write_folder
for line in sys.stdin:
    number, pid = int(line), os.fork()
    if pid:
        print(pid, flush=True)
        os.waitpid(pid, 0)
        print("ended", flush=True)
    while not pid:
        number += 1
        tensors = {f"t{i}": np.full(2000, number % 97, np.float32) for i in range(5 + number % 3)}
        write_folder(Path(sys.argv[1]), tensors, {"number": number, "count": len(tensors)})
"""


@pytest.mark.slow
def test_readers_see_one_model_whole_while_writers_are_killed(tmp_path):
    """100 writers are killed at random moments. A reader meets weights and description of one model, always."""
    folder, rng, seen, last = tmp_path / "model", random.Random(0), 0, 0
    write_folder(folder, {"t0": np.zeros(4, np.float32)}, {"number": 0, "count": 1})
    command = [sys.executable, "-W", "ignore", "-c", WRITERS, str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as writers:
        for _ in range(100):
            print(last, file=writers.stdin, flush=True)
            pid = int(writers.stdout.readline())
            end = time.monotonic() + rng.uniform(0.0, 0.2)
            while time.monotonic() < end:
                description, tensors = read_folder(folder)
                assert len(tensors) == description["count"]
                for array in dict(tensors).values():
                    assert (array == description["number"] % 97).all()
                assert description["number"] >= last
                last = description["number"]
                seen += 1
            os.kill(pid, signal.SIGKILL)
            assert writers.stdout.readline() == "ended\n"
            last = max(last, read_folder(folder).description["number"])
        writers.stdin.close()
    assert seen > 100 and last > 100
    write_folder(folder, {"t0": np.zeros(4, np.float32)}, {"number": 0, "count": 1})
    assert sorted(os.listdir(folder)) == ["config.json", "model.safetensors"]


@given(data=st.data())
def test_a_flipped_bit_is_found(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("flipped")
    tensors = {"a": np.arange(12, dtype=np.float32).reshape(3, 4), "b": np.ones(5, np.int32)}
    write_folder(folder, tensors, {"steps": 7})
    file = folder / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    file.write_bytes(bytes(content))
    try:
        description, read = read_folder(folder)
        # Blanks at the end of the header may change into others.
        assert description == {"format_version": 1, "steps": 7} and hash_arrays(dict(read)) == hash_arrays(tensors)
    except WeightsError as error:
        assert "model.safetensors" in str(error) and "\n" not in str(error)


def test_a_damaged_tensor_is_named_when_it_is_read(saved):
    content = bytearray((saved / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (saved / "model.safetensors").write_bytes(bytes(content))
    with pytest.raises(WeightsError, match=r"the tensor '.*' is damaged: its checksum does not match"):
        elt_zoo.load(saved)


def test_a_model_is_readable_by_others_like_any_file(saved, tmp_path):
    (tmp_path / "any").touch()
    for name in ("model.safetensors", "config.json"):
        assert (saved / name).stat().st_mode == (tmp_path / "any").stat().st_mode


def test_a_full_disk_is_one_line_and_leaves_what_was_there(saved, masked, tmp_path, monkeypatch):
    before = (saved / "model.safetensors").read_bytes()

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    for folder in (saved, tmp_path / "new"):
        with pytest.raises(OSError, match=r"model\.safetensors cannot be written: No space left on device\.") as error:
            elt_zoo.save(folder, Generator(masked, MASKED), overwrite=True)
        assert error.value.errno == errno.ENOSPC and "\n" not in str(error.value)
    assert (saved / "model.safetensors").read_bytes() == before and not (tmp_path / "new").exists()
    assert sorted(os.listdir(saved)) == ["README.md", "config.json", "model.safetensors"]
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match="file is a file, not a folder to save to"):
        elt_zoo.save(tmp_path / "file", Generator(masked, MASKED))


@pytest.mark.parametrize("dtype", [jnp.int32, np.uint8, bool])
def test_weights_are_not_read_as_other_than_floating_point_numbers(saved, dtype):
    with pytest.raises(ValueError, match=r"`dtype=.*`: weights are read as floating-point numbers"):
        elt_zoo.load(saved, dtype=dtype)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, jnp.bfloat16, np.float64])
def test_weights_of_a_run_that_diverged_are_refused(value, dtype, tmp_path):
    array = np.linspace(-1, 1, 100_000).astype(dtype)
    array[70_000] = value
    write_safetensors(tmp_path / "file", {"fine": array[:60_000], "bad": array})
    abstract = {name: jax.ShapeDtypeStruct(a.shape, a.dtype) for name, a in (("fine", array[:60_000]), ("bad", array))}
    file = read_tensors(tmp_path / "file")
    with pytest.raises(WeightsError, match=r"holds NaN or infinite numbers in 1 of 2 leaves: bad\. Did the training"):
        assemble(abstract, own_names(abstract), file)
    if dtype != np.float64:  # which JAX would narrow
        read = assemble(abstract, own_names(abstract), file, allow_nonfinite=True)
        assert np.asarray(read["bad"]).tobytes() == array.tobytes()


def test_numbers_too_large_for_a_narrower_type_are_refused(tmp_path):
    write_safetensors(tmp_path / "file", {"x": np.asarray([1.0, 70_000.0], np.float32)})
    abstract = {"x": jax.ShapeDtypeStruct((2,), jnp.float32)}
    with pytest.raises(WeightsError, match="infinite numbers as float16 in 1 of 1 leaves: x"):
        assemble(abstract, own_names(abstract), read_tensors(tmp_path / "file"), dtype=jnp.float16)


class Mine(eqx.Module):
    """A network that this library does not know."""

    layers: list[eqx.nn.Linear]
    activation: Callable
    scale: float = 2.0


def test_a_skeleton_of_the_user_is_filled(tmp_path):
    def build(key):
        return Mine([eqx.nn.Linear(3, 3, key=each) for each in jax.random.split(key)], jax.nn.gelu)

    model = build(jax.random.key(1))
    tensors = {name: np.asarray(leaf) for name, leaf in named_arrays(model).items()}
    assert set(tensors) == {f"layers.{i}.{name}" for i in (0, 1) for name in ("weight", "bias")}
    write_folder(tmp_path / "mine", tensors, {"by": "hand"})
    _, file = read_folder(tmp_path / "mine")
    for skeleton in (build(jax.random.key(2)), eqx.filter_eval_shape(build, jax.random.key(2))):
        assert eqx.tree_equal(assemble(skeleton, own_names(skeleton), file), model)
    with pytest.raises(ValueError, match=r"two arrays of this dict have the name 'a\.b'"):
        named_arrays({"a.b": np.ones(1), "a": {"b": np.ones(1)}})


class Colour(enum.Enum):
    RED = "red"


@dataclasses.dataclass(frozen=True)
class Inner:
    size: int


@dataclasses.dataclass(frozen=True)
class Outer:
    count: int
    shape: tuple[int, int]
    names: tuple[str, ...] = ()
    rate: float = 0.5
    flag: bool = False
    colour: Colour = Colour.RED
    patch: int | tuple[int, ...] | None = None
    inner: Inner = Inner(1)

    def __post_init__(self):
        if self.count < 1:
            raise ValueError("count must be at least 1")


def test_a_dataclass_comes_back_from_json():
    full = Outer(3, (1, 2), ("a", "b"), 0.25, True, Colour.RED, (4, 5), Inner(6))
    text = json.dumps(dataclasses.asdict(full) | {"colour": "red"})
    assert from_json(Outer, json.loads(text)) == full
    assert from_json(Outer, {"count": 3, "shape": [1, 2], "rate": 1, "patch": 7}) == Outer(3, (1, 2), rate=1.0, patch=7)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"count": True}, "wrong: count is True, expected int"),
        ({"count": 1.0}, "wrong: count is 1.0, expected int"),
        ({"count": 10**12}, "wrong: count is 1000000000000, expected int"),
        ({"count": None, "more": 1, "rate": "x"}, r"unknown: 'more'; wrong: count is None.*; wrong: rate is 'x'"),
        ({"shape": [1, 2, 3]}, r"wrong: shape is \[1, 2, 3\], expected tuple"),
        ({"shape": "12"}, "wrong: shape is '12'"),
        ({"rate": float("nan")}, "wrong: rate is nan"),
        ({"flag": 1}, "wrong: flag is 1, expected bool"),
        ({"colour": "blue"}, "wrong: colour is 'blue', expected one of 'red'"),
        ({"patch": [1, "2"]}, r"wrong: patch is \[1, '2'\]"),
        ({"inner": {"size": "1"}}, "wrong: inner: This is not a complete `Inner`: wrong: size is '1'"),
        ({"count": 0}, "count must be at least 1"),
    ],
)
def test_what_is_no_description_of_a_dataclass_is_refused(changes, text):
    with pytest.raises(ValueError, match=text):
        from_json(Outer, {"count": 3, "shape": [1, 2]} | changes)
    with pytest.raises(ValueError, match=r"missing: count; missing: shape"):
        from_json(Outer, {})
    with pytest.raises(ValueError, match="is described by a table of its fields"):
        from_json(Outer, [1])


@pytest.mark.parametrize(
    "description",
    [
        [],
        {},
        {"kind": 3},
        {"kind": []},
        {"kind": "grey_levels", "shape": [8, 8, 1]},
        {"kind": "grey_levels", "shape": [8, 8, 1], "levels": 1},
        {"kind": "grey_levels", "shape": [-8, 8, 1], "levels": 17},
        {"kind": "grey_levels", "shape": 8, "levels": 17},
        {"kind": "patch_codebook", "shape": [4, 4, 1], "patch_size": 0, "codebook_size": 5},
        {"kind": "patch_codebook", "shape": [4, 4, 1], "patch_size": 3, "codebook_size": 5},
        {"kind": "patch_codebook", "shape": [4, 4, 1], "patch_size": 2, "codebook_size": 2**40},
        {"kind": "patch_codebook", "shape": [2**31 - 1] * 3, "patch_size": 2**31 - 1, "codebook_size": 2**31 - 1},
        {"kind": "maskgit_vqgan", "num_res_blocks": 1_000_000},
        {"kind": "maskgit_vqgan", "channel_multipliers": [1] * 1_000_000},
        {"kind": "maskgit_vqgan", "filters": "128"},
        {"kind": "maskgit_vqgan", "groups": 3},
        {"kind": "maskgit_vqgan", "shortcut": "none"},
        {"kind": "vq3d", "shape": [-16, 128, 128]},
        {"kind": "vq3d", "temporal_downsample": [1, 0, 1]},
        {"kind": "autoencoder_kl", "scaling_factor": 0},
        {"kind": "autoencoder_kl", "latents": 4},
    ],
)
def test_a_damaged_description_of_a_tokenizer_is_refused_at_once(description, tmp_path):
    write_folder(tmp_path, {}, {"tokenizer": description})
    start = time.process_time()
    with pytest.raises(WeightsError, match=r"model\.safetensors does not (describe a tokenizer|hold the tensors)"):
        load_tokenizer(tmp_path)
    assert time.process_time() - start < 5
