"""Files of tensors in every published format, and what is wrong with damaged ones."""

import json
import pickle
import pickletools
import struct
import time
import tracemalloc
import zipfile
from typing import Any

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
FLOATS = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
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


def read_all(path):
    """Reads every tensor, or says what is wrong: in one line, naming the file, and soon."""
    start = time.process_time()
    try:
        file = read_tensors(path)
        for name in file:
            assert file[name].shape == file.shape(name)
    except WeightsError as error:
        assert path.name in str(error) and "\n" not in str(error)
    assert time.process_time() - start < 5


sizes = st.one_of(st.integers(-2, 5), st.sampled_from([2**31, 2**62, 2**63, 2**64, 2**70, True, None, 2.0, "3", [1]]))
shapes = st.one_of(st.lists(sizes, max_size=4), st.just([1] * 70), st.just([0, 2**62]), sizes)
texts = st.one_of(st.text(max_size=6), st.sampled_from(["x", "\ud800", "a\nb", "\x1b[2J", "x" * 5000]))
json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), texts),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)
safetensors_entries = st.fixed_dictionaries(
    {},
    optional={
        "dtype": st.sampled_from(["F32", "BOOL", "I64", "F8", 3, None, []]),
        "shape": shapes,
        "data_offsets": st.one_of(st.tuples(sizes, sizes), st.just([0, 8]), json_values),
    },
)


@given(
    header=st.one_of(
        st.dictionaries(texts, safetensors_entries | json_values, max_size=3),
        st.builds(lambda values: {"__metadata__": values, "x": FLOATS}, json_values),
        st.builds(lambda values: {"__metadata__": {"crc32": json.dumps(values)}, "x": FLOATS}, json_values),
        json_values,
    )
)
def test_any_safetensors_header_raises_nothing_but_weights_errors(folder, header):
    write_header(folder / "header.safetensors", header, bytes(8))
    read_all(folder / "header.safetensors")


def write_npy(path, text, content=bytes(8), version=b"\x01\x00"):
    length = struct.pack("<H" if version == b"\x01\x00" else "<I", len(text))
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("x.npy", b"\x93NUMPY" + version + length + text + content)


@given(
    fields=st.dictionaries(st.sampled_from(["descr", "fortran_order", "shape", "more"]), json_values, max_size=4)
    | st.fixed_dictionaries(
        {
            "descr": st.sampled_from(["<f4", "|b1", ">f4", "|O", "|S0", "|V0", "<U1", "", [("a", "<f4")], 3, None]),
            "fortran_order": st.sampled_from([True, False, 1, None]),
            "shape": shapes.map(lambda shape: tuple(shape) if isinstance(shape, list) else shape),
        }
    ),
    version=st.sampled_from([b"\x01\x00", b"\x02\x00", b"\x03\x00", b"\x04\x00"]),
    damage=st.sampled_from([lambda text: text, lambda text: text[:-1], lambda text: b"(" * 4000, lambda text: b"1L"]),
)
def test_any_npy_header_raises_nothing_but_weights_errors(folder, fields, version, damage):
    write_npy(folder / "header.npz", damage(repr(fields).encode("utf-8", "surrogatepass")), version=version)
    read_all(folder / "header.npz")


packed = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(2**63), 2**64 - 1), st.floats(), st.text(max_size=4))
    | st.binary(max_size=8)
    | st.builds(
        lambda *content: msgpack.ExtType(1, msgpack.packb(content, use_bin_type=True)),
        st.one_of(st.lists(st.integers(-1, 2**63), max_size=3), st.none(), st.text(max_size=2)),
        st.sampled_from(["float32", "bool", "<f4", None, 3, []]),
        st.binary(max_size=8) | st.none() | st.text(max_size=4),
    )
    | st.builds(msgpack.ExtType, st.integers(0, 5), st.binary(max_size=8)),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=3) | st.integers(0, 3), inner, max_size=3)
        | st.fixed_dictionaries({"__msgpack_chunked_array__": inner, "shape": inner, "chunks": inner})
    ),
    max_leaves=8,
)


@given(tree=packed | st.dictionaries(st.text(max_size=3), packed, min_size=1, max_size=3))
def test_any_msgpack_tree_raises_nothing_but_weights_errors(folder, tree):
    (folder / "tree").write_bytes(msgpack.packb(tree))
    read_all(folder / "tree")


FUNCTIONS = [
    ("torch._utils", "_rebuild_tensor_v2"),
    ("torch._utils", "_rebuild_parameter"),
    ("torch", "FloatStorage"),
    ("collections", "OrderedDict"),
    ("argparse", "Namespace"),
]
pickled = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-2, 9), st.floats(), st.text(max_size=3), st.binary(max_size=3)),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text(max_size=3) | st.integers(0, 3) | st.tuples(st.integers(0, 1)), inner, max_size=3)
        | st.frozensets(st.integers(0, 3), max_size=2)
        | st.builds(
            lambda name, values: Global(*name, values),
            st.sampled_from(FUNCTIONS),
            st.lists(inner, max_size=5).map(tuple) | inner,
        )
    ),
    max_leaves=8,
)


@given(
    tree=pickled
    | st.builds(
        lambda *view: {"x": Storage(np.arange(6, dtype=np.float32)).view(*view)},
        st.integers(-1, 7) | st.none(),
        st.lists(st.integers(-1, 7), max_size=3).map(tuple),
        st.lists(st.integers(-1, 7), max_size=3).map(tuple),
    )
)
def test_any_pickled_tree_raises_nothing_but_weights_errors(folder, tree):
    write_torch_zip(folder / "tree.pt", tree)
    read_all(folder / "tree.pt")


@given(content=st.lists(st.sampled_from([op.code.encode("latin-1") for op in pickletools.opcodes]), max_size=30))
def test_any_operations_of_pickles_raise_nothing_but_weights_errors(folder, content):
    with zipfile.ZipFile(folder / "operations.pt", "w") as file:
        file.writestr("archive/data.pkl", b"\x80\x02" + b"".join(content) + b".")
    read_all(folder / "operations.pt")


@pytest.mark.parametrize("kind", ["npz", "torch"])
@pytest.mark.parametrize("compressed", [False, True])
def test_a_flipped_bit_in_a_zipped_tensor_is_found(folder, kind, compressed):
    """By the checksums of the zip file."""
    tensors, path = {"x": np.arange(6, dtype=np.float32).reshape(2, 3), "y": np.ones(3)}, folder / f"flip.{kind}"
    if kind == "npz":
        write_npz(path.with_suffix(".npz"), tensors, compressed)
        path = path.with_suffix(".npz")
    else:
        write_torch_zip(path, tensors, compression=zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED)
    whole, differences = path.read_bytes(), []
    for place in range(0, len(whole), 5):
        content = bytearray(whole)
        content[place] ^= 1 << place % 8
        path.write_bytes(bytes(content))
        try:
            read = dict(read_tensors(path))
            if set(read) == set(tensors) and any(read[name].tobytes() != tensors[name].tobytes() for name in tensors):
                differences.append(place)
        except WeightsError:
            pass
    assert differences == []


def test_a_part_of_a_damaged_storage_is_refused(tmp_path):
    storage, path = Storage(np.arange(1000, dtype=np.float32)), tmp_path / "file.pt"
    write_torch_zip(path, {"head": storage.view(0, (2,), (1,)), "tail": storage.view(990, (10,), (1,))})
    same(read_tensors(path), {"head": storage.array[:2], "tail": storage.array[990:]})
    content = path.read_bytes()
    path.write_bytes(content.replace(np.float32(500).tobytes(), np.float32(501).tobytes()))
    with pytest.raises(WeightsError, match=r"'archive/data/0' is damaged: its checksum does not match"):
        read_tensors(path)["head"]


def test_files_without_checksums_are_read(tmp_path):
    """As `torch.serialization.set_crc32_options(False)` makes them: zero in place of each."""
    path = tmp_path / "file.pt"
    write_torch_zip(path, {"x": np.ones(3, np.float32)})
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as file:
        for entry in file.infolist():
            while (place := content.find(struct.pack("<I", entry.CRC))) >= 0:
                content[place : place + 4] = bytes(4)
    path.write_bytes(bytes(content))
    same(read_tensors(path), {"x": np.ones(3, np.float32)})


def test_shared_lists_and_keys_are_not_followed_without_end(tmp_path):
    lists, tuples = b"\x80\x02]q\x00", b"\x80\x02)q\x00"
    for index in range(90):  # each holds the one before twice
        before, name = b"h" + bytes([index]), b"q" + bytes([index + 1])
        lists += b"](" + before * 2 + b"e" + name
        tuples += before * 2 + b"\x86" + name
    for content in (lists + b".", tuples + b"}" + b"hZ" + b"K\x01s.", tuples + b"\x91."):
        with zipfile.ZipFile(tmp_path / "file.pt", "w") as file:
            file.writestr("archive/data.pkl", content)
        read_all(tmp_path / "file.pt")
    with zipfile.ZipFile(tmp_path / "file.pt", "w") as file:
        file.writestr("archive/data.pkl", lists + b".")
    with pytest.raises(WeightsError, match="nests its tensors without end"):
        read_tensors(tmp_path / "file.pt")


@pytest.mark.parametrize("name", ["archive/data.pkl", "archive/data/0", "x.npy", "archive/byteorder"])
def test_small_files_that_unpack_to_much_are_refused(tmp_path, name):
    with zipfile.ZipFile(tmp_path / "file", "w", zipfile.ZIP_DEFLATED) as file:
        if not name.endswith("npy"):
            file.writestr("archive/version", "3")
        with file.open(name, "w") as entry:
            for _ in range(100):
                entry.write(bytes(1 << 20))
    tracemalloc.start()
    with pytest.raises(WeightsError, match=r"would unpack to 1048\d+, which no weights do"):
        read_tensors(tmp_path / "file")
    assert tracemalloc.get_traced_memory()[1] < 10 << 20
    tracemalloc.stop()


def test_views_that_repeat_a_number_are_refused(tmp_path):
    storage = Storage(np.ones(4, np.float32))
    write_torch_zip(tmp_path / "file.pt", {"x": storage.view(0, (1_000_000_000,), (0,))})
    with pytest.raises(WeightsError, match=r"'x' of shape .* does not fit its storage"):
        read_tensors(tmp_path / "file.pt")


def test_a_table_of_msgpack_with_a_key_twice_is_refused(tmp_path):
    array: Any = msgpack.packb(msgpack.ExtType(1, msgpack.packb(([1], "float32", bytes(4)), use_bin_type=True)))
    for keys in (b"\xa1x", b"\xa1x"), (b"\xa11", b"\x01"):
        (tmp_path / "file").write_bytes(b"\x82" + keys[0] + array + keys[1] + array)
        with pytest.raises(WeightsError, match="a key that is no text, or is there twice"):
            read_tensors(tmp_path / "file")


def test_lists_of_msgpack_take_no_memory_for_what_is_not_there(tmp_path):
    (tmp_path / "file").write_bytes(b"\x81\xa1a" + (b"\xdd" + struct.pack(">I", 1_000_000)) * 500 + bytes(1_000_000))
    read_all(tmp_path / "file")


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
