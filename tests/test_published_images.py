"""CIFAR-10 and MNIST from their official files: what is read, how it is resized and mirrored, what is refused."""

import dataclasses
import gzip
import io
import pickle
import tarfile

import numpy as np
import pytest
from published_files import made_up_cifar10, pack, python2_pickle, write_cifar10, write_idx, write_mnist

from elt_zoo.data import (
    IMAGE_SETS,
    DataError,
    ImageArrays,
    Visit,
    cifar10,
    first_examples,
    mnist,
    read_idx,
    training_batches,
)
from elt_zoo.data.published import _cifar10
from elt_zoo.storage import PickledArray, PickleError, read_numpy_pickle

COUNT = 12


@pytest.fixture(autouse=True)
def small(monkeypatch, tmp_path):
    """Files of twelve images instead of 10,000, and a cache of the test's own."""
    monkeypatch.setattr(_cifar10, "IMAGES_OF_A_FILE", COUNT)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def everything(source):
    return source.read_batch([Visit(index) for index in range(len(source))])


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("version", ["bin", "py"])
def test_every_image_of_either_version_is_read(tmp_path, version, packed):
    parts = made_up_cifar10(COUNT)
    place = write_cifar10(tmp_path / "data", parts, version=version, packed=packed)
    for root in (place, str(place), tmp_path / "data"):
        train, heldout = cifar10(root, "train"), cifar10(root, "heldout")
        assert (len(train), len(heldout), train.num_classes) == (5 * COUNT, COUNT, 10)
        assert train.class_names[:2] == ("airplane", "automobile") and train.shape == (32, 32, 3)
        batch, number = everything(train), 3 * COUNT + 4
        pixels, labels = parts["data_batch_4"]
        for row, column, channel in ((0, 0, 0), (5, 31, 1), (31, 7, 2)):
            assert batch.images[number, row, column, channel] == pixels[4, 1024 * channel + 32 * row + column]
        assert batch.labels[number] == train.label(number) == labels[4]
        assert train.name(number) == "cifar10 train image 40"
        expected = parts["test_batch"][0].reshape(-1, 3, 32, 32)
        np.testing.assert_array_equal(everything(heldout).images, np.moveaxis(expected, 1, 3))


def test_a_name_alone_means_the_cache(tmp_path):
    write_cifar10(tmp_path / "cache" / "elt_zoo" / "cifar10", made_up_cifar10(COUNT), packed=True)
    write_mnist(tmp_path / "cache" / "elt_zoo" / "mnist")
    assert len(cifar10(None, "train")) == 5 * COUNT and len(mnist(None, "heldout")) == 20


def test_the_pickles_of_the_tests_are_real_ones():
    pixels, labels = made_up_cifar10(COUNT)["test_batch"]
    table = pickle.loads(python2_pickle(pixels, labels), encoding="latin1")
    np.testing.assert_array_equal(table["data"], pixels)
    assert table["labels"] == labels.tolist() and len(table["filenames"]) == COUNT


@pytest.mark.parametrize("protocol", [2, 3, 4])
@pytest.mark.parametrize("order", ["C", "F"])
def test_arrays_that_pickle_wrote_come_back(protocol, order):
    array = np.asarray(np.random.default_rng(0).integers(0, 256, (3, 5), np.uint8), order=order)
    table = read_numpy_pickle(pickle.dumps({"data": array, "labels": [1, 2], "name": "x"}, protocol))
    assert table["labels"] == [1, 2] and table["name"] == "x"
    np.testing.assert_array_equal(table["data"].read(), array)


class Evil:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_a_pickle_runs_nothing(tmp_path, protocol):
    victim = tmp_path / "victim"
    evil = pickle.dumps({"data": Evil(open, str(victim), "w"), "labels": []}, protocol)
    with pytest.raises(PickleError, match="which could run code, so the file is refused"):
        read_numpy_pickle(evil)
    folder = write_cifar10(tmp_path / "data", made_up_cifar10(COUNT), version="py")
    (folder / "test_batch").write_bytes(evil)
    with pytest.raises(DataError, match=r"test_batch: its pickle asks for .*open, which could run code"):
        cifar10(folder, "heldout")
    assert not victim.exists()


@pytest.mark.parametrize(
    "name", ["numpy load", "numpy.core.multiarray fromfile", "numpy.core.multiarray scalar", "_codecs decode"]
)
def test_names_beside_the_known_ones_are_refused(name):
    module, attribute = name.split()
    with pytest.raises(PickleError, match=rf"asks for {module}\.{attribute}"):
        read_numpy_pickle(f"c{module}\n{attribute}\n(S'x'\ntR.".encode())


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros(4, np.float64), "holds an array of 'f8'; only bytes"),
        (np.asarray([object()]), "without content|only bytes"),
    ],
)
def test_arrays_of_anything_but_bytes_are_refused(array, message):
    content = pickle.dumps(array, 2) if array.dtype != object else pickle.dumps(np.asarray([None]), 2)
    with pytest.raises(PickleError, match=message):
        read_numpy_pickle(content).read()


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (b"(K\x01K\x05\x85DTYPE\x89U\x03abct", r"of shape \(5,\), but 3 bytes"),
        (b"(K\x01J\xff\xff\xff\xff\x85DTYPE\x89U\x03abct", "impossible shape"),
        (b"(K\x01(" + b"K\x01" * 9 + b"tDTYPE\x89U\x01at", "impossible shape"),
        (b"(K\x01U\x01x\x85DTYPE\x89U\x01at", "impossible shape"),
        (b"(K\x01K\x01\x85DTYPE\x89X\x03\x00\x00\x00\xe2\x82\xact", "no string of bytes"),
        (b"(K\x01K\x01\x85DTYPE\x89K\x01t", "without content"),
        (b"N", "without content"),
    ],
)
def test_arrays_that_contradict_themselves_are_refused(state, message):
    kind = b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R"
    start = b"\x80\x02cnumpy.core.multiarray\n_reconstruct\n)R"
    array = read_numpy_pickle(start + state.replace(b"DTYPE", kind) + b"b.")
    assert isinstance(array, PickledArray)
    with pytest.raises(PickleError, match=message):
        array.read()


@pytest.mark.slow
def test_what_a_pickle_repeats_costs_nothing():
    """Many calls that would each copy a megabyte: bytes are made of a text only where an array is read."""
    text = b"X" + (1 << 20).to_bytes(4, "little") + bytes(1 << 20) + b"q\x00"
    calls = b"c_codecs\nencode\nh\x00X\x06\x00\x00\x00latin1\x86R0"
    with pytest.raises(PickleError, match="uses POP, which tables, lists and arrays of bytes do not need"):
        read_numpy_pickle(b"\x80\x02" + text + calls * 10 + b".")
    many = read_numpy_pickle(b"\x80\x02](" + text + calls[:-1] * 100_000 + b"e.")
    assert len(many) == 100_001 and len({id(each[0]) for each in many[1:]}) == 1


def test_flips_are_drawn_for_every_visit():
    images = np.random.default_rng(0).integers(0, 256, (200, 4, 4, 3), np.uint8)
    source = ImageArrays(images, np.zeros(200, np.int32), ("a",), flip=True)
    epochs = [source.read_batch([Visit(index, epoch) for index in range(200)]).images for epoch in (0, 1)]
    for batch in epochs:
        flipped = (batch != images).any((1, 2, 3))
        np.testing.assert_array_equal(batch[flipped], images[flipped][:, :, ::-1])
        assert 60 < flipped.sum() < 140
    assert (epochs[0] != epochs[1]).any()
    for index in range(20):
        np.testing.assert_array_equal(source.read(Visit(index, 1)).images, epochs[1][index])
    np.testing.assert_array_equal(everything(source.with_flip(False)).images, images)
    np.testing.assert_array_equal(source[3].images, source.read(Visit(3)).images)
    # A thread reads ahead where flips are drawn, and none where there are none: the same batches.
    assert source.with_flip(False).in_memory and not source.in_memory
    one, two = (training_batches(source, batch_size=8, seed=0, workers=workers) for workers in (0, 1))
    for _ in range(3):
        np.testing.assert_array_equal(next(one).images, next(two).images)
    one.close()
    two.close()


@pytest.mark.parametrize(
    ("labels", "message"),
    [([0, 1], "3 images and 2 labels"), ([0, 1, 2], "from 0 to 2 and 2 classes"), ([-1, 0, 1], "-1")],
)
def test_arrays_of_other_lengths_or_labels_are_refused(labels, message):
    with pytest.raises(ValueError, match=message):
        ImageArrays(np.zeros((3, 2, 2, 1), np.uint8), np.asarray(labels), ("a", "b"))


@pytest.mark.parametrize("packed", [True, False])
def test_mnist_is_read_packed_or_not(tmp_path, packed):
    arrays = write_mnist(tmp_path, packed=packed)
    for name, source in (("train", mnist(tmp_path, "train")), ("t10k", mnist(tmp_path, "heldout"))):
        batch = everything(source)
        np.testing.assert_array_equal(batch.images[..., 0], arrays[f"{name}-images-idx3-ubyte"])
        np.testing.assert_array_equal(batch.labels, arrays[f"{name}-labels-idx1-ubyte"])
        assert source.class_names == tuple("0123456789") and first_examples(source, 3).images.shape == (3, 28, 28, 1)


def test_images_are_averaged_or_get_a_border(tmp_path):
    images = write_mnist(tmp_path)["t10k-images-idx3-ubyte"]
    small = everything(mnist(tmp_path, "heldout", size=14)).images[..., 0]
    blocks = images.reshape(-1, 14, 2, 14, 2).mean((2, 4))
    assert small.dtype == np.uint8 and np.abs(small - blocks).max() <= 0.5
    large = everything(mnist(tmp_path, "heldout", size=33)).images[..., 0]
    np.testing.assert_array_equal(large[:, 2:30, 2:30], images)
    assert large.shape == (20, 33, 33) and large.sum(dtype=np.int64) == images.sum(dtype=np.int64)
    with pytest.raises(DataError, match=r"cannot have 20 × 20. Use 28, a divisor to average pixels \(14, 7, 4, 2, 1\)"):
        mnist(tmp_path, "heldout", size=20)
    with pytest.raises(DataError, match="or up to 56 for a black border"):
        mnist(tmp_path, "heldout", size=57)
    write_cifar10(tmp_path, made_up_cifar10(COUNT))
    assert cifar10(tmp_path, "heldout", size=8).shape == (8, 8, 3)
    for size in (0, 33, 64):
        with pytest.raises(DataError, match=rf"cannot have {size} × {size}. Use 32, a divisor .*\(16, 8, 4, 2, 1\)\.$"):
            cifar10(tmp_path, "heldout", size=size)


@pytest.mark.parametrize("open_set", [cifar10, mnist])
def test_a_split_is_train_or_heldout(open_set):
    with pytest.raises(ValueError, match="the splits are 'train' and 'heldout'"):
        open_set(None, "test")


def test_what_is_not_there_is_named_with_a_way_to_get_it(tmp_path):
    with pytest.raises(
        DataError, match=r"there is no .*cache/elt_zoo/cifar10\. Expected .*`elt-zoo fetch --data cifar10`"
    ):
        cifar10(None, "train")
    with pytest.raises(DataError, match=r"mnist lacks train-images.* and train-labels.*`elt-zoo fetch --data mnist`"):
        mnist(None, "train")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "cats.tar").write_bytes(b"")
    with pytest.raises(DataError, match=r"other holds no CIFAR-10, but cats\.tar"):
        cifar10(tmp_path / "other", "train")
    with pytest.raises(DataError, match=r"cats\.tar is no archive of CIFAR-10"):
        cifar10(tmp_path / "other" / "cats.tar", "train")
    folder = write_cifar10(tmp_path, made_up_cifar10(COUNT))
    (folder / "data_batch_3.bin").unlink()
    with pytest.raises(DataError, match=r"batches-bin lacks data_batch_3\.bin"):
        cifar10(tmp_path, "train")
    pack(tmp_path / "cifar-10-binary.tar.gz", folder)
    with pytest.raises(DataError, match=r"binary\.tar\.gz lacks data_batch_3\.bin"):
        cifar10(tmp_path / "cifar-10-binary.tar.gz", "train")


@pytest.mark.parametrize("version", ["bin", "py"])
def test_files_of_cifar10_that_are_cut_or_changed_are_refused(tmp_path, version):
    folder = write_cifar10(tmp_path, made_up_cifar10(COUNT), version=version)
    file = next(folder.glob("test_batch*"))
    whole = file.read_bytes()
    short = r"has 33,803 bytes; 12 images of 3,073 are 36,876" if version == "bin" else "its pickle is damaged"
    for content, message in (
        (whole[: -3073 if version == "bin" else -300], short),
        (b"", "has 0 bytes" if version == "bin" else "its pickle is damaged"),
        (whole + b"\0" if version == "bin" else whole[:2000], "36,877 bytes" if version == "bin" else "damaged"),
    ):
        file.write_bytes(content)
        with pytest.raises(DataError, match=f"test_batch.*{message}"):
            cifar10(tmp_path, "heldout")
    write = made_up_cifar10(COUNT)
    write["test_batch"] = (write["test_batch"][0], np.full(COUNT, 10))
    other = write_cifar10(tmp_path / "labels", write, version=version)
    with pytest.raises(DataError, match=r"test_batch.* (the label 10|labels other than 0 to 9)"):
        cifar10(other, "heldout")


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ([1], "a pickle without the `data` and `labels`"),
        ({"labels": [1] * COUNT}, "a pickle without the `data` and `labels`"),
        ({"data": np.zeros((COUNT, 3072), np.uint8), "labels": "x"}, "a pickle without the `data` and `labels`"),
        ({"data": np.zeros((COUNT, 3071), np.uint8), "labels": [1] * COUNT}, r"pixels of shape \(12, 3071\)"),
        ({"data": np.zeros((COUNT, 3072), np.uint8), "labels": [1]}, r"and 1 labels; expected \(12, 3072\) and 12"),
        ({"data": np.zeros((COUNT, 3072), np.uint8), "labels": ["1"] * COUNT}, "labels other than 0 to 9"),
        ({"data": np.zeros((COUNT, 3072), np.int16), "labels": [1] * COUNT}, "only bytes"),
    ],
)
def test_pickles_of_something_else_are_refused(tmp_path, table, message):
    folder = write_cifar10(tmp_path, made_up_cifar10(COUNT), version="py")
    (folder / "test_batch").write_bytes(pickle.dumps(table, 2))
    with pytest.raises(DataError, match=f"test_batch.*{message}"):
        cifar10(tmp_path, "heldout")


@pytest.mark.parametrize("version", ["bin", "py"])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.9])
def test_an_archive_that_is_cut_off_is_refused(tmp_path, version, share):
    archive = write_cifar10(tmp_path, made_up_cifar10(COUNT), version=version, packed=True)
    content = archive.read_bytes()
    archive.write_bytes(content[: int(share * len(content))])
    with pytest.raises(DataError, match=r"tar\.gz is cut off or damaged .*Fetch"):
        cifar10(archive, "heldout")
        cifar10(archive, "train")


def test_archives_of_something_else_are_refused(tmp_path, monkeypatch):
    archive = tmp_path / "cifar-10-binary.tar.gz"
    archive.write_bytes(b"no gzip at all")
    with pytest.raises(DataError, match="is cut off or damaged"):
        cifar10(archive, "train")
    with tarfile.open(archive, "w:gz") as tar:
        link = tarfile.TarInfo("cifar-10-batches-bin/test_batch.bin")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    with pytest.raises(DataError, match=r"lacks test_batch\.bin: it is cut off or another archive"):
        cifar10(archive, "heldout")
    with tarfile.open(archive, "w:gz", compresslevel=1) as tar:
        large = tarfile.TarInfo("zeros")
        large.size = 65 << 20
        tar.addfile(large, io.BytesIO(bytes(large.size)))
    with pytest.raises(DataError, match="holds more than CIFAR-10"):
        cifar10(archive, "heldout")
    with tarfile.open(archive, "w:gz") as tar:
        for number in range(101):
            tar.addfile(tarfile.TarInfo(f"file{number}"))
    with pytest.raises(DataError, match="holds more than CIFAR-10"):
        cifar10(archive, "heldout")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x00\x00\x08\x01\x00\x00\x00\x05abc", "holds 3 values; 5 were promised"),
        (b"\x00\x00\x08\x01\x00\x00\x00\x02abc", "holds more values; 2 were promised"),
        (b"\x00\x00\x08\x03\x00\x00\x00\x02abc", "ends within its header"),
        (b"\x00\x00\x08\x02\xff\xff\xff\xff\xff\xff\xff\xff", "claims 18,446,744,065,119,617,025 values"),
        (b"\x00\x00\x08\x09", "not an idx file"),
        (b"\x00\x00\x0d\x01\x00\x00\x00\x01abcd", "not an idx file"),
        (b"GIF89a", "not an idx file"),
        (b"\x00", "not an idx file"),
    ],
)
@pytest.mark.parametrize("packed", [True, False])
def test_other_files_than_idx_are_refused(tmp_path, content, message, packed):
    path = tmp_path / "images"
    path.write_bytes(gzip.compress(content) if packed else content)
    with pytest.raises(DataError, match=f"images .*{message}"):
        read_idx(path)


def test_packed_files_that_are_cut_off_or_unpack_to_more_are_refused(tmp_path):
    path = tmp_path / "images.gz"
    for content in (gzip.compress(bytes([0, 0, 8, 1, 0, 0, 4, 0]) + bytes(1024))[:-9], b"no gzip"):
        path.write_bytes(content)
        with pytest.raises(DataError, match="fetch it again"):
            read_idx(path)
    write_idx(path, np.zeros(4, np.uint8))
    wrong = bytearray(path.read_bytes())
    wrong[-6] ^= 1  # of the checksum
    path.write_bytes(bytes(wrong))
    with pytest.raises(DataError, match="no whole gzip file"):
        read_idx(path)
    with pytest.raises(DataError, match="cannot be read"):
        read_idx(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        ((20, 28, 27), np.zeros(20), r"an array \[20, 28, 27\]"),
        ((20, 28, 28), np.zeros(19), r"one of \[19\]"),
        ((0, 28, 28), np.zeros(0), r"an array \[0, 28, 28\]"),
        ((20, 28, 28), np.full(20, 11), "the label 11; MNIST has 0 to 9"),
    ],
)
def test_files_of_mnist_that_do_not_go_together_are_refused(tmp_path, images, labels, message):
    write_idx(tmp_path / "t10k-images-idx3-ubyte.gz", np.zeros(images, np.uint8))
    write_idx(tmp_path / "t10k-labels-idx1-ubyte.gz", labels.astype(np.uint8))
    with pytest.raises(DataError, match=f"t10k.*{message}"):
        mnist(tmp_path, "heldout")


def test_the_table_of_sets_agrees_with_what_is_read(tmp_path):
    write_cifar10(tmp_path / "cifar10", made_up_cifar10(COUNT))
    write_mnist(tmp_path / "mnist")
    for name, images in IMAGE_SETS.items():
        source = images.open(tmp_path / name, "train", flip=False, size=None)
        assert images.name == name and source.shape == images.shape and len(source.class_names) == 10
        assert [each.holds(tmp_path / name) for each in IMAGE_SETS.values()] == [key == name for key in IMAGE_SETS]
        for file in images.files:
            assert file.size and file.sha256 and len(file.sha256) == 64
            assert images.holds(tmp_path / "touched") is False
            (tmp_path / "touched").mkdir(exist_ok=True)
            (tmp_path / "touched" / file.name).touch()
            assert images.holds(tmp_path / "touched")
            (tmp_path / "touched" / file.name).unlink()
        assert dataclasses.replace(images, name="other").folder == tmp_path / "cache" / "elt_zoo" / "other"
