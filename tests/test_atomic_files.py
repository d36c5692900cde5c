import errno
import json
import os
import signal
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from elt_zoo.nn import Mlp
from elt_zoo.storage import (
    atomic_write,
    foreign_entries,
    hash_arrays,
    read_json,
    remove_abandoned,
    require_writable,
    require_writable_folder,
    write_json,
)

WRITE_AND_DIE = """
import os, signal, sys
from elt_zoo.storage import atomic_write
with atomic_write(sys.argv[1]) as file:
    file.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def umask():
    """Sets the mask of this process, and puts the old one back."""
    before = os.umask(0o022)
    yield os.umask
    os.umask(before)


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_a_written_file_has_the_rights_of_any_new_file(mask, mode, umask, tmp_path):
    umask(mask)
    with atomic_write(tmp_path / "a.txt") as file:
        file.write_text("new")
    assert stat.S_IMODE((tmp_path / "a.txt").stat().st_mode) == mode


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("old")
    with pytest.raises(KeyError), atomic_write(path) as file:
        file.write_text("half")
        raise KeyError
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["a.csv"]
    with atomic_write(path) as file:
        assert file.suffix == ".csv" and file.parent == tmp_path
        file.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new" and os.listdir(tmp_path) == ["a.csv"]


def test_what_a_killed_writer_left_is_removed_by_the_next_and_nothing_else_is(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("old")
    done = subprocess.run([sys.executable, "-c", WRITE_AND_DIE, str(path)], check=False)
    assert done.returncode == -signal.SIGKILL and path.read_text() == "old"
    (left,) = [name for name in os.listdir(tmp_path) if name != "a.json"]
    others = [".elt-zoo-tmp-notes", "a.json.tmp", ".hidden"]
    for name in others:
        (tmp_path / name).touch()
    assert foreign_entries(tmp_path) == sorted(["a.json", *others])
    with atomic_write(tmp_path / "b.json"), atomic_write(tmp_path / "c.json"):
        assert left not in os.listdir(tmp_path)
    assert sorted(os.listdir(tmp_path)) == sorted(["a.json", "b.json", "c.json", *others])


def test_what_another_machine_left_is_removed_after_a_day(tmp_path):
    file = tmp_path / ".elt-zoo-tmp-0123abcd-1-1-00000000.npz"
    file.touch()
    remove_abandoned(tmp_path)
    assert file.exists() and foreign_entries(tmp_path) == []
    old = time.time() - 90_000
    os.utime(file, (old, old))
    remove_abandoned(tmp_path)
    assert not file.exists()


def test_a_link_is_followed(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere" / "file")
    write_json(tmp_path / "link", [1])
    assert (tmp_path / "link").is_symlink() and read_json(tmp_path / "elsewhere" / "file") == [1]


def test_what_cannot_be_written_is_one_line(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("old")
    for place, kind in (
        (tmp_path / "missing" / "a", FileNotFoundError),
        (tmp_path / "file" / "a", NotADirectoryError),
        (tmp_path, IsADirectoryError),
        ("/dev/null", OSError),
    ):
        for attempt in (require_writable, lambda path: write_json(path, 1)):
            with pytest.raises(kind, match=rf"{place} cannot be written: .*Nothing was changed") as error:
                attempt(place)
            assert "\n" not in str(error.value)
    full = OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(OSError, match=r"file cannot be written: No space left on device\. Nothing was changed"):
        with atomic_write(tmp_path / "file"):
            raise full
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(full))
    with pytest.raises(OSError, match=r"file cannot be written: No space left on device"):
        write_json(tmp_path / "file", 1)
    assert os.listdir(tmp_path) == ["file"] and (tmp_path / "file").read_text() == "old"


@pytest.fixture
def read_only():
    """A folder that this process may not write to. Root may write anywhere, so it becomes nobody for a while."""
    nobody, before = 65534, os.geteuid()
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o555)
        if before == 0:
            os.seteuid(nobody)
        yield Path(folder)
        os.seteuid(before)


def test_a_folder_without_rights_is_one_line(read_only):
    with pytest.raises(PermissionError, match=r"a cannot be written: Permission denied"):
        require_writable(read_only / "a")


def test_json_comes_back_and_what_is_none_is_named(tmp_path):
    path = tmp_path / "a.json"
    content = {"name": "θ", "values": [1, 2.5, None, True]}
    write_json(path, content)
    assert read_json(path) == content and "θ" in path.read_text()
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert read_json(path) == content
    for damaged in (b"", b"{", b"\xff", b'{"a": 1, "a": 2}', b"[" * 100_000):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"a\.json is damaged or not a JSON file: ") as error:
            read_json(path)
        assert "\n" not in str(error.value)


def test_equal_arrays_have_one_hash_whatever_their_order_or_place():
    tree = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": jnp.ones(2)}
    assert hash_arrays(tree) == hash_arrays({"b": np.ones(2, np.float32), "a": jnp.asarray(tree["a"])})
    assert hash_arrays(Mlp(2, 4, key=jax.random.key(0))) == hash_arrays(Mlp(2, 4, key=jax.random.key(0)))
    assert hash_arrays(tree, {"x": 1, "y": 2}) == hash_arrays(tree, {"y": 2, "x": 1})
    others = [
        {"a": tree["a"], "c": tree["b"]},
        {"a": tree["b"], "b": tree["a"]},
        {"a": tree["a"].reshape(3, 2), "b": tree["b"]},
        {"a": tree["a"].view(np.int32), "b": tree["b"]},
        {"a": np.nextafter(tree["a"], np.float32(9)), "b": tree["b"]},
        {"a": tree["a"], "b": tree["b"], "c": jnp.zeros((0,))},
    ]
    hashes = [hash_arrays(each) for each in [tree, *others]] + [hash_arrays(tree, {}), hash_arrays(tree, {"x": 1})]
    assert len(set(hashes)) == 9 and all(len(each) == 64 for each in hashes)
    assert hash_arrays({"k": jax.random.key(1)}) != hash_arrays({"k": jax.random.key(2)})
    assert json.dumps(hash_arrays({})) == json.dumps(hash_arrays([]))


def test_a_folder_to_be_made_is_checked_whatever_lies_beside_it(tmp_path):
    (tmp_path / "x").mkdir()
    require_writable_folder(tmp_path / "runs" / "new")
    assert sorted(tmp_path.iterdir()) == [tmp_path / "x"]
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match=r"cannot be a folder: .*file is a file"):
        require_writable_folder(tmp_path / "file" / "new")
