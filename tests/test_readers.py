"""Files of tensors in every published format, and what is wrong with damaged ones."""

import json
import pickle
import struct
import zipfile

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from weight_files import (
    BFLOAT16,
    Global,
    Storage,
    nested,
    write_msgpack,
    write_npz,
    write_safetensors,
    write_torch_zip,
)

from elt_zoo.storage import WeightsError, read_tensors

WRITERS = {
    "safetensors": write_safetensors,
    "npz": write_npz,
    "msgpack": lambda path, tensors: write_msgpack(path, nested(tensors)),
    "torch": lambda path, tensors: write_torch_zip(path, nested(tensors)),
}
TENSORS = {
    "encoder/kernel": np.arange(24, dtype=np.float32).reshape(2, 3, 4),
    "encoder/half": np.linspace(-1, 1, 6).astype(np.float16).reshape(3, 2),
    "steps": np.asarray(7, np.int64),
    "empty": np.zeros((0, 3), np.float32),
    "bytes": np.arange(5, dtype=np.uint8),
}
arrays = hnp.arrays(
    st.sampled_from([np.dtype(name) for name in ("f4", "f8", "f2", "i4", "i8", "u1", "?")]),
    hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4),
)
names = st.text("abcdefgh._019", min_size=1, max_size=12).filter(lambda name: not name.startswith("."))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("files")


def written(folder, kind, tensors=TENSORS):
    path = folder / f"weights-{kind}.npz" if kind == "npz" else folder / f"weights-{kind}"
    path.unlink(missing_ok=True)
    WRITERS[kind](path, tensors)
    return path


def same(file, tensors):
    assert set(file) == set(tensors)
    for name, array in tensors.items():
        read = file[name]
        assert file.shape(name) == read.shape == array.shape and read.dtype == array.dtype
        np.testing.assert_array_equal(read, array)


@pytest.mark.parametrize("kind", WRITERS)
def test_every_format_comes_back(folder, kind):
    same(read_tensors(written(folder, kind)), TENSORS)


@pytest.mark.parametrize("kind", WRITERS)
@given(tensors=st.dictionaries(names, arrays, min_size=1, max_size=4))
def test_any_tensors_come_back(folder, kind, tensors):
    same(read_tensors(written(folder, kind, tensors)), tensors)


@pytest.mark.parametrize("kind", ["safetensors", "msgpack", "torch"])
def test_bfloat16_comes_back(folder, kind):
    tensors = {"x": np.linspace(-3, 3, 8).astype(BFLOAT16).reshape(2, 4)}
    same(read_tensors(written(folder, kind, tensors)), tensors)


@pytest.mark.parametrize("kind", WRITERS)
@given(data=st.data())
def test_a_truncated_file_is_always_refused_by_name(folder, kind, data):
    path = written(folder, kind)
    content = path.read_bytes()
    path.write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
    with pytest.raises(WeightsError, match=path.name):
        read_tensors(path)


@pytest.mark.parametrize("kind", WRITERS)
@given(data=st.data())
def test_a_damaged_file_raises_nothing_but_weights_errors(folder, kind, data):
    path = written(folder, kind)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(bytes(content))
    try:
        file = read_tensors(path)
        for name in file:
            assert file[name].shape == file.shape(name)
    except WeightsError as error:
        assert path.name in str(error)


@given(content=st.binary(max_size=200))
def test_any_bytes_raise_nothing_but_weights_errors(folder, content):
    path = folder / "anything"
    path.write_bytes(content)
    try:
        read_tensors(path)
    except WeightsError as error:
        assert path.name in str(error)


def test_parts_of_a_file_can_be_taken_and_replaced(folder):
    file = read_tensors(written(folder, "msgpack"))
    assert set(file.under("encoder/")) == {"kernel", "half"}
    changed = file.replacing({"steps": None, "bytes": np.zeros(2, np.float32), "new": np.ones((2, 2))})
    assert "steps" not in changed and "steps" in file
    assert changed.shape("bytes") == (2,) and changed["new"].sum() == 4
    with pytest.raises(WeightsError, match=r"has no tensor 'nothing'\. It has 5 tensors: encoder"):
        file.shape("nothing")


def test_a_missing_file_and_an_unknown_format_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no file .*nowhere\.pt"):
        read_tensors(tmp_path / "nowhere.pt")
    (tmp_path / "text").write_text("hello, this is no file of weights")
    with pytest.raises(WeightsError, match="of an unknown format"):
        read_tensors(tmp_path / "text")


def write_header(path, header, content=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + content)


FLOATS = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    ("header", "text"),
    [
        ({"x": FLOATS | {"shape": [3]}}, r"'x' has 8 bytes, but F32\[3\] takes 12"),
        ({"x": FLOATS | {"dtype": "F4"}}, "'x' is of type 'F4'"),
        ({"x": FLOATS | {"shape": [-2]}}, "entry of the tensor 'x' is damaged"),
        ({"x": FLOATS | {"shape": [2.0]}}, "entry of the tensor 'x' is damaged"),
        ({"x": [1, 2]}, "entry of the tensor 'x' is damaged"),
        ({"x": FLOATS, "y": FLOATS}, "'y' starts at byte 0, but the one before ends at 8"),
        ({"x": FLOATS | {"data_offsets": [4, 12]}}, "'x' starts at byte 4, but the one before ends at 0"),
        ({}, "its tensors take 0 bytes, but it holds 8"),
        (b'{"x": 1, "x": 2}', "a name occurs twice"),
        (b"{x}", "damaged safetensors header"),
    ],
)
def test_a_wrong_safetensors_header_is_refused(tmp_path, header, text):
    write_header(tmp_path / "file.safetensors", header, bytes(8))
    with pytest.raises(WeightsError, match=text):
        read_tensors(tmp_path / "file.safetensors")


def test_npz_may_be_compressed_or_in_column_order(tmp_path):
    tensors = {"x": np.asfortranarray(np.arange(6.0, dtype=np.float32).reshape(2, 3)), "y": np.ones(3)}
    for compressed in (False, True):
        write_npz(tmp_path / "file.npz", tensors, compressed)
        same(read_tensors(tmp_path / "file.npz"), tensors)


@pytest.mark.parametrize(
    ("array", "text"),
    [
        (np.ones(3, ">f4"), "'x' is big-endian"),
        (np.asarray([object()]), "'x' holds pickled Python objects, which could run code"),
        (np.asarray(["text"]), "'x' is of type <U4, but only plain numbers"),
    ],
)
def test_npz_of_other_than_little_endian_numbers_is_refused(tmp_path, array, text):
    np.savez(tmp_path / "file.npz", x=array)
    with pytest.raises(WeightsError, match=text):
        read_tensors(tmp_path / "file.npz")


def test_msgpack_arrays_in_chunks_are_joined(tmp_path):
    whole = np.arange(10, dtype=np.float32).reshape(2, 5)
    parts = {"0": whole.reshape(-1)[:6], "1": whole.reshape(-1)[6:]}
    chunked = {"__msgpack_chunked_array__": True, "shape": {"0": 2, "1": 5}, "chunks": parts}
    write_msgpack(tmp_path / "file", {"params": {"x": chunked, "note": "kept out"}})
    same(read_tensors(tmp_path / "file"), {"params/x": whole})
    del parts["0"]
    write_msgpack(tmp_path / "file", {"params": {"x": chunked}})
    with pytest.raises(WeightsError, match="chunks of the tensor 'params/x' are damaged"):
        read_tensors(tmp_path / "file")


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (([2], ">f4", bytes(8)), "an array of type '>f4'"),
        (([3], "float32", bytes(8)), "cannot reshape"),
        (([-1], "float32", bytes(8)), r"an array of shape \[-1\]"),
    ],
)
def test_msgpack_arrays_that_cannot_be_are_refused(tmp_path, content, text):
    array = msgpack.ExtType(1, msgpack.packb(content, use_bin_type=True))
    (tmp_path / "file").write_bytes(msgpack.packb({"x": array}))
    with pytest.raises(WeightsError, match=text):
        read_tensors(tmp_path / "file")


def test_msgpack_without_end_is_refused(tmp_path):
    (tmp_path / "file").write_bytes(b"\x81\xa1a" * 400 + b"\x80")
    with pytest.raises(WeightsError, match="nests its tables"):
        read_tensors(tmp_path / "file")


def test_torch_views_share_a_storage_and_may_be_strided(tmp_path):
    storage = Storage(np.arange(12, dtype=np.float32))
    tree = {
        "model": {"rows": storage.view(4, (2, 4), (4, 1)), "transposed": storage.view(0, (4, 3), (1, 4))},
        "args": Global("argparse", "Namespace", ()),
        "step": 3,
    }
    for compression in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        write_torch_zip(tmp_path / "file.pt", tree, compression=compression)
        whole = np.arange(12, dtype=np.float32).reshape(3, 4)
        same(read_tensors(tmp_path / "file.pt"), {"model/rows": whole[1:], "model/transposed": whole.T})


@pytest.mark.parametrize(
    ("view", "text"),
    [
        ((0, (13,), (1,)), "does not fit its storage"),
        ((8, (2, 3), (3, 1)), "does not fit its storage"),
        ((0, (2, 2), (100, 1)), "does not fit its storage"),
        ((-1, (2,), (1,)), "are not its offset, shape and strides"),
        ((4, (2,), (-1,)), "are not its offset, shape and strides"),
        ((0, (2, 2), (1,)), "are not its offset, shape and strides"),
    ],
)
def test_torch_views_outside_their_storage_are_refused(tmp_path, view, text):
    write_torch_zip(tmp_path / "file.pt", {"weight": Storage(np.arange(12, dtype=np.float32)).view(*view)})
    with pytest.raises(WeightsError, match=rf"'weight'.*{text}|{text}.*'weight'"):
        read_tensors(tmp_path / "file.pt")


@pytest.mark.parametrize("name", [("os", "system"), ("posix", "system"), ("builtins", "eval"), ("builtins", "getattr")])
def test_pickles_that_would_run_code_are_refused_and_do_not(tmp_path, name):
    victim = tmp_path / "victim"
    write_torch_zip(tmp_path / "file.pt", {"x": Global(*name, (f"touch {victim}",))})
    with pytest.raises(
        WeightsError, match=rf"file\.pt: its pickle asks for {name[0]}\.{name[1]}, which could run code"
    ):
        read_tensors(tmp_path / "file.pt")
    assert not victim.exists()


class Evil:
    def __init__(self, victim):
        self.victim = victim

    def __reduce__(self):
        return open, (str(self.victim), "w")


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_pickles_of_any_protocol_run_nothing(tmp_path, protocol):
    victim, path = tmp_path / "victim", tmp_path / "file.pt"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", pickle.dumps({"x": Evil(victim)}, protocol))
    with pytest.raises(WeightsError, match="which could run code"):
        read_tensors(path)
    # Outside a zip file nothing of a pickle is looked at.
    path.write_bytes(pickle.dumps({"x": Evil(victim)}, protocol))
    with pytest.raises(WeightsError):
        read_tensors(path)
    assert not victim.exists()


def test_names_reached_through_allowed_ones_are_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "file.pt", "w") as file:
        dotted = b"\x80\x04\x8c\x0ccollections\x94\x8c\x0bOrderedDict.fromkeys".replace(b"\x0ccoll", b"\x0bcoll")
        dotted = dotted.replace(b"\x0bOrderedDict", b"\x14OrderedDict")
        file.writestr("archive/data.pkl", dotted + b"\x94\x93.")
    with pytest.raises(WeightsError, match=r"asks for collections\.OrderedDict\.fromkeys"):
        read_tensors(tmp_path / "file.pt")


def test_other_files_of_torch_are_told_apart(tmp_path):
    path = tmp_path / "file.pt"
    write_torch_zip(path, {"x": np.ones(2, np.float32)}, byteorder="big")
    with pytest.raises(WeightsError, match="is big-endian"):
        read_tensors(path)
    path.write_bytes(b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.")
    with pytest.raises(WeightsError, match=r"is a pickle, as PyTorch wrote before version 1\.6"):
        read_tensors(path)
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("m/data.pkl", b"\x80\x02}.")
        file.writestr("m/code/model.py", "")
    with pytest.raises(WeightsError, match="is a TorchScript program"):
        read_tensors(path)
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("notes.txt", "")
    with pytest.raises(WeightsError, match=r"neither NumPy's nor PyTorch's"):
        read_tensors(path)
    write_torch_zip(path, {"x": np.ones(2, np.float32)})
    with zipfile.ZipFile(path) as file:
        kept = {name: file.read(name) for name in file.namelist() if name != "archive/data/0"}
    with zipfile.ZipFile(path, "w") as file:
        for name, content in kept.items():
            file.writestr(name, content)
    with pytest.raises(WeightsError, match="storage of the tensor 'x' is missing"):
        read_tensors(path)
