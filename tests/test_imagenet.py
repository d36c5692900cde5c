import gzip
import io
import logging
import os
import tarfile

import numpy as np
import pytest
import scipy.io
from image_files import encode, smooth, write_folders

from elt_zoo.data import DataError, ImageTransform, UnreadableExample, image_tar, imagenet, imagenet_classes

CENTER = ImageTransform(32)
# Not in the order of the ids: the development kit numbers the classes in an order of its own.
DEVKIT_CLASSES = ["n02119789", "n01440764", "n03126707"]
TRUTH = [3, 1, 2, 1]
TRAIN = {"n03126707": 2, "n01440764": 3, "n02119789": 1}
KIT = "ILSVRC2012_devkit_t12"


def tar_of(files: dict[str, bytes]) -> bytes:
    with io.BytesIO() as out:
        with tarfile.open(fileobj=out, mode="w") as tar:
            for name, data in files.items():
                member = tarfile.TarInfo(name)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
        return out.getvalue()


def validation_images() -> dict[str, bytes]:
    return {f"ILSVRC2012_val_{n + 1:08}.JPEG": encode(smooth(seed=50 + n)) for n in range(len(TRUTH))}


def write_train_tar(root) -> None:
    """ImageNet's: one tar per class, `n01440764.tar`, of `n01440764_0.JPEG`."""
    inner = {}
    for label, (wordnet_id, count) in enumerate(TRAIN.items()):
        images = {f"{wordnet_id}_{n}.JPEG": encode(smooth(seed=100 * label + n)) for n in range(count)}
        inner[f"{wordnet_id}.tar"] = tar_of(images)
    (root / "ILSVRC2012_img_train.tar").write_bytes(tar_of(inner))


def write_devkit(root) -> None:
    """`meta.mat` as it is published: a struct array of the classes, then of their hypernyms."""
    fields = [
        "ILSVRC2012_ID",
        "WNID",
        "words",
        "gloss",
        "num_children",
        "children",
        "wordnet_height",
        "num_train_images",
    ]
    synsets = np.zeros((len(DEVKIT_CLASSES) + 1, 1), dtype=[(field, object) for field in fields])
    for row, wordnet_id in enumerate([*DEVKIT_CLASSES, "n00001740"]):
        children = np.asarray([1.0, 2.0]) if wordnet_id == "n00001740" else np.zeros((0, 0))
        synsets[row, 0] = (float(row + 1), wordnet_id, "words", "gloss", float(len(children)), children, 0.0, 1300.0)
    (root / KIT / "data").mkdir(parents=True)
    scipy.io.savemat(root / KIT / "data" / "meta.mat", {"synsets": synsets})
    truth = "".join(f"{number}\n" for number in TRUTH)
    (root / KIT / "data" / "ILSVRC2012_validation_ground_truth.txt").write_text(truth)


def pack_devkit(root) -> None:
    with tarfile.open(root / f"{KIT}.tar.gz", "w:gz") as tar:
        tar.add(root / KIT, KIT)
    for file in (root / KIT / "data").iterdir():
        file.unlink()
    (root / KIT / "data").rmdir()
    (root / KIT).rmdir()


def contents(source) -> list[tuple[bytes, str]]:
    """What a source holds, whatever the order: bytes and class of every image."""
    return sorted((source.encoded(index), source.classes[source.label(index)]) for index in range(len(source)))


def expected_validation() -> list[tuple[bytes, str]]:
    classes = [DEVKIT_CLASSES[number - 1] for number in TRUTH]
    return sorted(zip(validation_images().values(), classes, strict=True))


def test_the_table_of_classes_is_the_usual_one():
    classes = imagenet_classes()
    assert len(classes) == 1000 and list(classes) == sorted(classes)
    labels = list(classes.values())
    assert labels[0] == "tench, Tinca tinca" and labels[999].startswith("toilet tissue")
    # Labels in general use, such as those of the published DiT's samples.
    assert [labels[label].split(",")[0] for label in (207, 360, 387, 417, 979)] == [
        "golden retriever",
        "otter",
        "lesser panda",
        "balloon",
        "valley",
    ]


def test_folders_and_tars_of_training_hold_the_same(tmp_path):
    write_folders(tmp_path / "folders" / "train", TRAIN)
    (tmp_path / "tars").mkdir()
    write_train_tar(tmp_path / "tars")
    folders, tars = (imagenet(tmp_path / kind, "train", CENTER) for kind in ("folders", "tars"))
    assert folders.classes == tars.classes == ("n01440764", "n02119789", "n03126707")
    assert folders.class_names == ("tench, Tinca tinca", "kit fox, Vulpes macrotis", "crane")
    assert contents(folders) == contents(tars) and len(tars) == 6
    assert tars.name(0).endswith("ILSVRC2012_img_train.tar/n01440764/n01440764_0.JPEG")
    np.testing.assert_array_equal(tars[0].images, CENTER(encode(smooth(seed=100)), np.random.default_rng()))


@pytest.mark.parametrize("packed", [False, True])
def test_validation_labels_come_from_the_development_kit(tmp_path, packed):
    flat, tarred, foldered = (tmp_path / name for name in ("flat", "tarred", "foldered"))
    for root in (flat, tarred):
        root.mkdir()
        write_devkit(root)
        if packed:
            pack_devkit(root)
    (flat / "val").mkdir()
    for name, data in validation_images().items():
        (flat / "val" / name).write_bytes(data)
    (tarred / "ILSVRC2012_img_val.tar").write_bytes(tar_of(validation_images()))
    for (name, data), number in zip(validation_images().items(), TRUTH, strict=True):
        folder = foldered / "val" / DEVKIT_CLASSES[number - 1]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    for root in (flat, tarred, foldered):
        source = imagenet(root, "val", CENTER)
        assert source.classes == ("n01440764", "n02119789", "n03126707")
        assert contents(source) == expected_validation()
    assert imagenet(flat, "val", CENTER, classes=list(imagenet_classes())).num_classes == 1000


def test_some_validation_images_keep_their_own_labels(tmp_path):
    write_devkit(tmp_path)
    (tmp_path / "val").mkdir()
    name = "ILSVRC2012_val_00000003.JPEG"
    (tmp_path / "val" / name).write_bytes(validation_images()[name])
    assert imagenet(tmp_path, "val", CENTER).classes == ("n01440764",)
    for odd in ("ILSVRC2012_val_00000005.JPEG", "holiday.jpg"):
        (tmp_path / "val" / odd).write_bytes(b"")
        with pytest.raises(DataError, match=f"{odd} is none of the validation images .* to 00000004"):
            imagenet(tmp_path, "val", CENTER)
        (tmp_path / "val" / odd).unlink()


def test_what_is_not_there_is_said(tmp_path):
    with pytest.raises(ValueError, match=r"`imagenet\(split='test'\)`: the splits are 'train' and 'val'"):
        imagenet(tmp_path, "test", CENTER)  # pyright: ignore[reportArgumentType]
    with pytest.raises(DataError, match=r"nowhere does not exist. Expected train/<WordNet id>/"):
        imagenet(tmp_path / "nowhere", "train", CENTER)
    (tmp_path / "Data").mkdir()
    with pytest.raises(
        DataError, match=r"Expected train/<WordNet id>/\*.JPEG or ILSVRC2012_img_train.tar; found 1 fol"
    ):
        imagenet(tmp_path, "train", CENTER)
    with pytest.raises(
        DataError, match=r"or val/ILSVRC2012_val_\*.JPEG; the last two with .* found 1 folder\(s\) \(Dat"
    ):
        imagenet(tmp_path, "val", CENTER)
    (tmp_path / "ILSVRC2012_img_val.tar").write_bytes(tar_of(validation_images()))
    with pytest.raises(DataError, match=r"do not say their classes. Expected the development kit, .*devkit_t12.tar.gz"):
        imagenet(tmp_path, "val", CENTER)
    (tmp_path / f"{KIT}.tar.gz").write_bytes(b"not packed")
    with pytest.raises(DataError, match=r"(?s)devkit_t12.tar.gz is damaged \(.*Fetch it again"):
        imagenet(tmp_path, "val", CENTER)
    (tmp_path / "train").mkdir()
    with pytest.raises(DataError, match="no class folders"):
        imagenet(tmp_path, "train", CENTER)


def test_any_tar_of_class_folders_is_a_source(tmp_path):
    images = {f"./set/{name}/{n}.jpg": encode(smooth(seed=n)) for name in ("cat", "dog") for n in range(3)}
    path = tmp_path / "set.tar"
    path.write_bytes(tar_of({**images, "./set/readme.txt": b"text", "./set/cat/.hidden.jpg": b"no image"}))
    source = image_tar(path, CENTER)
    assert source.class_names == ("cat", "dog") and len(source) == 6
    assert source.encoded(0) == images["./set/cat/0.jpg"]


def test_an_archive_is_searched_once_until_it_changes(tmp_path, monkeypatch):
    path, index = tmp_path / "set.tar", tmp_path / "elsewhere.npz"
    path.write_bytes(tar_of({"cat/1.jpg": encode(smooth(seed=1))}))
    image_tar(path, CENTER, index=index)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["elsewhere.npz", "set.tar"]
    with monkeypatch.context() as patch:
        patch.setattr(tarfile, "TarFile", None)  # searching would need it
        assert image_tar(path, CENTER, index=index).encoded(0) == encode(smooth(seed=1))
    index.write_bytes(index.read_bytes()[:100])  # cut off
    assert len(image_tar(path, CENTER, index=index)) == 1
    path.write_bytes(tar_of({"cat/1.jpg": encode(smooth(seed=2)), "dog/1.jpg": encode(smooth(seed=3))}))
    source = image_tar(path, CENTER, index=index)
    assert source.classes == ("cat", "dog") and source.encoded(0) == encode(smooth(seed=2))
    os.truncate(path, 1000)
    with pytest.raises(UnreadableExample, match=r"set.tar has become shorter"):
        source.encoded(1)


def test_an_index_that_cannot_be_kept_is_mentioned(tmp_path, caplog):
    path = tmp_path / "set.tar"
    path.write_bytes(tar_of({"cat/1.jpg": encode(smooth())}))
    with caplog.at_level(logging.WARNING, "elt_zoo.data"):
        assert len(image_tar(path, CENTER, index=tmp_path / "nowhere" / "index.npz")) == 1
    assert "every start will search it again; give a place with `index`" in caplog.text


def test_archives_that_are_none_are_refused(tmp_path):
    path = tmp_path / "set.tar"
    with pytest.raises(DataError, match=r"set.tar` does not exist. Expected an uncompressed tar"):
        image_tar(path, CENTER)
    one = tar_of({"1.jpg": encode(smooth())})
    whole = tar_of({"cat.tar": one, "dog.tar": one})
    cut_before = tar_of({"cat.tar": one[:1024], "dog.tar": one})  # it was packed like this
    damaged = bytearray(whole)
    damaged[whole.index(b"dog.tar")] ^= 1
    inner = bytearray(whole)
    inner[512] ^= 1  # the first header of cat.tar
    for data in (b"", b"text", whole[:2000], cut_before, bytes(damaged), bytes(inner), gzip.compress(whole)):
        path.write_bytes(data)
        with pytest.raises(DataError, match="is no complete, uncompressed tar archive"):
            image_tar(path, CENTER)
    path.write_bytes(tar_of({"readme.txt": b"text"}))
    with pytest.raises(DataError, match="holds no images"):
        image_tar(path, CENTER)
    path.write_bytes(tar_of({"1.jpg": encode(smooth())}))
    with pytest.raises(DataError, match=r"1 images are in no class: 1.jpg. Expected one folder or one tar per class"):
        image_tar(path, CENTER)
