"""Copies of checkpoints in an object store. A file system of fsspec's own, in memory, stands in for it."""

import equinox as eqx
import fsspec
import pytest
from command_line import TINY, rows_of, run
from fsspec.implementations.memory import MemoryFileSystem
from test_checkpoints import POSITION, RUN, abstract, assert_is, at_step

from elt_zoo import load
from elt_zoo.training import CheckpointError, Checkpoints

URL = "gs://bucket/run"


class _Bucket(MemoryFileSystem):
    """What gcsfs is to epath: `gs://` paths, of which the parents need not exist."""

    protocol = ("gs", "gcs")
    store, pseudo_dirs, cachable = {}, [""], False

    @classmethod
    def _strip_protocol(cls, path):
        return MemoryFileSystem._strip_protocol(str(path).removeprefix("gs://"))


@pytest.fixture
def bucket():
    fsspec.register_implementation("gcs", _Bucket, clobber=True)
    _Bucket.store.clear()
    _Bucket.pseudo_dirs[:] = [""]
    return _Bucket


def save(folder, steps, config=RUN, **options):
    with Checkpoints(folder, config, copy_to=URL, **options) as checkpoints:
        for step in steps:
            checkpoints.save(at_step(step), POSITION)


def steps_there():
    return sorted({int(name.split("/")[4]) for name in _Bucket.store if "/steps/" in name})


def test_another_machine_goes_on_from_the_copies(tmp_path, bucket):
    save(tmp_path / "one", (1, 2, 3), every=1, keep=1, keep_every_steps=2)
    assert steps_there() == [2, 3]
    with Checkpoints(tmp_path / "two", RUN, copy_to=URL + "/") as checkpoints:
        assert checkpoints.latest_step() == 3 and not (tmp_path / "two").exists()
        state, position = checkpoints.restore(abstract())
        assert_is(state, 3)
        assert position == POSITION
        checkpoints.save(at_step(4), POSITION)
    assert steps_there() == [3, 4]
    # What training would overwrite is refused, as in a folder.
    with (
        pytest.raises(CheckpointError, match="a checkpoint of step 4, but training would continue from step 0"),
        Checkpoints(tmp_path / "three", RUN, copy_to=URL) as checkpoints,
    ):
        checkpoints.claim()
    # The first machine is behind now.
    with Checkpoints(tmp_path / "one", RUN, copy_to=URL) as checkpoints:
        assert_is(checkpoints.restore(abstract())[0], 4)


def test_copies_belong_to_one_run(tmp_path, bucket):
    save(tmp_path / "one", (1,))
    before = dict(_Bucket.store)
    with pytest.raises(ValueError, match=r"(?s)gs://bucket/run holds the checkpoints of a.*saved 20, given 30"):
        save(tmp_path / "two", (2,), RUN | {"steps": 30})
    assert dict(_Bucket.store) == before
    # The folder's own run may be given more steps, as `recipes` does.
    (tmp_path / "one" / "run.json").write_text('{"model": {"dim": 8}, "steps": 30}')
    save(tmp_path / "one", (2,), RUN | {"steps": 30})
    assert steps_there() == [1, 2]


def test_what_was_killed_while_copying_is_no_checkpoint(tmp_path, bucket):
    save(tmp_path / "one", (1, 2))
    for name in [name for name in _Bucket.store if name.endswith("/2/manifest.json")]:
        del _Bucket.store[name]
    with Checkpoints(tmp_path / "two", RUN, copy_to=URL) as checkpoints:
        assert checkpoints.latest_step() == 1
    # Who has it copies it when it comes again.
    with Checkpoints(tmp_path / "one", RUN, copy_to=URL) as checkpoints:
        checkpoints.claim(step=2)
    with Checkpoints(tmp_path / "two", RUN, copy_to=URL) as checkpoints:
        assert_is(checkpoints.restore(abstract())[0], 2)


def test_a_damaged_copy_is_noticed(tmp_path, bucket):
    save(tmp_path / "one", (1,))
    name = max((name for name in _Bucket.store if "/state/" in name), key=lambda name: _Bucket.store[name].size)
    content = bytearray(_Bucket.store[name].getvalue())
    content[len(content) // 2] ^= 4
    with fsspec.filesystem("gcs").open(name, "wb") as file:
        file.write(bytes(content))
    with (
        Checkpoints(tmp_path / "two", RUN, copy_to=URL) as checkpoints,
        pytest.raises(CheckpointError, match=r"step 1 in .*two is damaged"),
    ):
        checkpoints.restore(abstract())


def test_a_store_that_fails_is_one_line(tmp_path, bucket, monkeypatch):
    save(tmp_path / "one", (1,))

    def refused(*_, **__):
        raise PermissionError("403: no rights to write\nand more")

    with Checkpoints(tmp_path / "one", RUN, copy_to=URL) as checkpoints:
        checkpoints.claim(step=1)
        monkeypatch.setattr(_Bucket, "_open", refused)
        checkpoints.save(at_step(2), POSITION)
        with pytest.raises(
            CheckpointError,
            match=r"^gs://bucket/run cannot be written to: .*403: no rights to write\. Checkpoints on the disk",
        ):
            checkpoints.wait_until_finished()
        assert_is(checkpoints.restore(abstract())[0], 2)  # on the disk it is there
    with pytest.raises(ValueError, match=r"copied to `gs://bucket/folder` and `s3://bucket/folder`, and not to"):
        Checkpoints(tmp_path / "two", RUN, copy_to="/disk/run")


@pytest.mark.slow
def test_a_run_goes_on_in_another_folder(tmp_path, monkeypatch, bucket):
    monkeypatch.chdir(tmp_path)
    command = ("train", *TINY, "--no-compare", "--steps", 8, "--checkpoint-every", 4, "--copy-checkpoints", URL)
    run(*command, "--out", "one")
    assert {"/bucket/run/ilsd/steps/4/manifest.json", "/bucket/run/ilsd/steps/8/manifest.json"} <= bucket.store.keys()
    for name in [name for name in bucket.store if "/steps/8/" in name]:  # as if the machine was lost before
        del bucket.store[name]
    run(*command, "--out", "two")
    assert [int(row["step"]) for row in rows_of(tmp_path / "two" / "metrics-ilsd.csv")] == [8]
    one, two = (load(tmp_path / name / "model").model for name in ("one", "two"))
    assert eqx.tree_equal(one, two)
