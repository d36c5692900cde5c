"""Folders of classes on real disks: links, loops, and folders without permission, for images and videos alike."""

import errno
import os

import pytest
from image_files import encode, smooth
from video_files import frames_of, write_frames

from elt_zoo.data import DataError, ImageTransform, image_folder, image_tar, imagenet, ucf101, video_folder


def images(root):
    return image_folder(root, ImageTransform(8))


KINDS = {"images": (images, "1.jpg"), "videos": (video_folder, "1.avi")}


@pytest.fixture(params=KINDS)
def kind(request, tmp_path):
    """How to open a folder, and one with two classes and a third one elsewhere."""
    read, name = KINDS[request.param]
    root = tmp_path / "root"
    write_frames(root / "cat" / "1.avi", frames_of(0, 3))
    if request.param == "images":
        (root / "cat" / "1.avi").unlink()
        (root / "cat" / name).write_bytes(encode(smooth()))
    for folder in (root / "dog", tmp_path / "owl"):
        folder.mkdir()
        (folder / name).write_bytes((root / "cat" / name).read_bytes())
    return read, root


def test_a_class_may_lie_elsewhere(kind, tmp_path):
    read, root = kind
    (root / "owl").symlink_to(tmp_path / "owl")
    source = read(root)
    assert source.class_names == ("cat", "dog", "owl") and len(source) == 3


def test_a_link_to_another_class_is_refused(kind):
    read, root = kind
    (root / "puppy").symlink_to(root / "dog")
    with pytest.raises(DataError, match=r"puppy and dog are one folder, by a symbolic link, .* count twice. Remove"):
        read(root)


def test_links_inside_a_class_neither_double_nor_loop(kind):
    read, root = kind
    (root / "dog" / "more").symlink_to(root / "cat")
    if read is video_folder:  # which does not look below a class
        assert len(read(root)) == 2
        return
    with pytest.raises(DataError, match="dog/more and cat are one folder"):
        read(root)
    (root / "dog" / "more").unlink()
    (root / "dog" / "more").symlink_to("..")
    with pytest.raises(DataError, match=r"dog/more and \. are one folder"):
        read(root)


@pytest.mark.parametrize("target", ["owl", "nowhere"])
def test_a_class_that_links_to_itself_or_nowhere_is_refused(kind, target):
    read, root = kind
    (root / "owl").symlink_to(target)
    reason = "cannot be read .*symbolic link" if target == "owl" else "is a symbolic link that leads nowhere; repair or"
    with pytest.raises(DataError, match=rf"root/owl {reason}"):
        read(root)


def test_a_folder_without_permission_is_named(kind, monkeypatch):
    read, root = kind
    scan = os.scandir

    def refuse(path):
        # Root may read anything, so the answer is replaced and not the permission.
        if str(path) == str(root / "dog"):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DataError, match=r"root/dog cannot be read \(Permission denied\)\.$"):
        read(root)
    with pytest.raises(DataError, match=r"root/dog cannot be read \(Permission denied\)\. Expected"):
        read(root / "dog")


def test_archives_and_lists_without_permission_are_named(tmp_path, monkeypatch):
    def refuse(path, *arguments, **options):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    (tmp_path / "set.tar").write_bytes(b"")
    lists = tmp_path / "ucfTrainTestlist"
    lists.mkdir()
    (lists / "classInd.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match=r"The list .*classInd.txt cannot be read: .*utf-8"):
        ucf101(tmp_path)
    (tmp_path / "val").mkdir()
    (tmp_path / "val" / "ILSVRC2012_val_00000001.JPEG").write_bytes(b"")
    (tmp_path / "ILSVRC2012_devkit_t12.tar.gz").write_bytes(b"")
    monkeypatch.setattr(os, "open", refuse)
    monkeypatch.setattr("tarfile.open", refuse)
    with pytest.raises(DataError, match=r"set.tar` cannot be read \(Permission denied\)"):
        image_tar(tmp_path / "set.tar", ImageTransform(8))
    with pytest.raises(DataError, match=r"devkit_t12.tar.gz cannot be read \(Permission denied\)"):
        imagenet(tmp_path, "val", ImageTransform(8))
