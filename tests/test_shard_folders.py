"""Who may write a folder of shards, what a killed writer leaves, and what disks do."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from shard_files import contents, token_plan, token_records, write

from elt_zoo.data import DataError, ShardedTokens, open_shards
from elt_zoo.storage import FolderLocked, atomic_write

KILLS = """
import itertools, os, signal, sys
from pathlib import Path
from shard_files import contents, token_plan, write
from elt_zoo.storage import foreign_entries

EVENTS = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.utime"}
root, plan = Path(sys.argv[1]), token_plan(examples=12, shard_size=8)

def run(action):
    process = os.fork()
    if process == 0:
        try:
            action()
            os._exit(0)
        except BaseException as error:
            print(repr(error), flush=True)
            os._exit(1)
    return os.waitpid(process, 0)[1]

assert run(lambda: write(root / "whole", plan)) == 0
for operation in itertools.count(1):
    folder = root / str(operation)

    def killed():
        seen = itertools.count(1)

        def hook(event, _):
            if event in EVENTS and next(seen) == operation:
                os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(hook)
        write(folder, plan)

    status = run(killed)
    if status == 0:
        break
    assert os.WTERMSIG(status) == signal.SIGKILL, status
    assert run(lambda: write(folder, plan)) == 0, (operation, foreign_entries(folder))
    assert contents(folder) == contents(root / "whole"), operation
print(operation - 1)
"""


def run_once(progress):
    """Ends a writer at its first report, when it has claimed its folder."""
    raise InterruptedError


def claim(folder, plan, **options):
    with pytest.raises(InterruptedError):
        write(folder, plan, on_progress=run_once, **options)


@pytest.mark.slow
def test_a_writer_killed_at_any_operation_resumes_and_leaves_nothing(tmp_path):
    here = Path(__file__).parent
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(here.parent), str(here)])}
    command = [sys.executable, "-W", "ignore", "-c", KILLS, str(tmp_path)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-2000:]
    assert int(result.stdout) > 50


def test_what_a_killed_writer_leaves_before_its_index_is_no_obstacle(tmp_path):
    folder = tmp_path / "shards"
    folder.mkdir()
    with atomic_write(folder / "index.json") as file:
        abandoned = file.name
    ended = subprocess.Popen(["true"])
    ended.wait()
    abandoned = abandoned.replace(f"-{os.getpid()}-", f"-{ended.pid}-")
    for name in (abandoned, ".elt-zoo-lock.breaking"):
        (folder / name).write_text("half")
    (folder / "index.json").unlink()
    assert write(folder, token_plan()) == open_shards(folder)
    assert abandoned not in os.listdir(folder)


def test_a_folder_has_one_writer(tmp_path):
    folder, plan, refused = tmp_path / "shards", token_plan(), []

    def second(progress):
        with pytest.raises(FolderLocked, match=r"shards is being written to by this very process \(since .*Wait until"):
            write(folder, plan)
        refused.append(progress.done)

    assert write(folder, plan, on_progress=second) == open_shards(folder)
    assert refused == list(range(51))
    assert sorted(os.listdir(folder)) == sorted(contents(folder))  # the lock is gone


def test_processes_that_share_a_folder_know_of_each_other(tmp_path):
    folder, plan = tmp_path / "shards", token_plan()

    def others(progress):
        if progress.done:
            return
        assert write(folder, plan, process_index=1, process_count=2) is None
        for changes in ({"process_index": 0, "process_count": 2}, {"process_index": 2, "process_count": 3}, {}):
            with pytest.raises(FolderLocked, match=r"process-0-of-2\.lock is being written to by this very process"):
                write(folder, plan, **changes)
        with pytest.raises(FolderLocked, match="is shared by 2 processes, and this one is number 0 of 1"):
            write(folder, plan)
        with pytest.raises(DataError, match="codebook_size: saved 1024, given 16"):
            write(folder, token_plan(codebook_size=16), process_index=1, process_count=2)

    assert write(folder, plan, process_index=0, process_count=2, on_progress=others) == open_shards(folder)
    assert not list(folder.glob("*lock*"))
    # A lock that a killed process left on its part is removed.
    (folder / "process-1-of-3.lock").mkdir()
    assert write(folder, plan) == open_shards(folder) and not list(folder.glob("*lock*"))


def test_a_folder_without_a_shard_takes_another_plan(tmp_path):
    folder = tmp_path / "shards"
    claim(folder, token_plan(shard_size=100_000))
    assert os.listdir(folder) == ["index.json"]
    (folder / "shard-00000-of-00001.json").write_text("{}")  # killed between the note and the shard
    assert write(folder, token_plan()) == open_shards(folder)
    before = contents(folder)
    with pytest.raises(DataError, match="shard_size: saved 16, given 100000"):
        write(folder, token_plan(shard_size=100_000))
    assert contents(folder) == before


def test_a_place_that_takes_no_shards_is_refused_in_one_line_before_the_work(tmp_path):
    (tmp_path / "file").write_text("mine")
    read = []
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(
            OSError, match=r"^\[Errno \d+\] .* cannot take shards: it is not a folder\. .*nothing was c"
        ):
            write(folder, token_plan(), read.append)
    assert not read and (tmp_path / "file").read_text() == "mine"


def test_a_full_disk_ends_in_one_line_and_keeps_complete_shards(tmp_path, monkeypatch):
    folder, plan = tmp_path / "shards", token_plan()
    whole = write(tmp_path / "whole", plan)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def entries(rows):
        if rows.start == 16:
            # Every write beyond this fails as on a full disk.
            resource.setrlimit(resource.RLIMIT_FSIZE, (1024, limits[1]))
        return token_records(plan)(rows)

    try:
        with pytest.raises(
            OSError, match=r"00001-of-00004.* cannot be written: File too large\. Complete shards are k"
        ):
            write(folder, plan, entries)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert sorted(os.listdir(folder)) == [
        "index.json",
        "shard-00000-of-00004.array_record",
        "shard-00000-of-00004.json",
    ]
    assert write(folder, plan) == whole


@pytest.mark.parametrize("note", ["[]", '{"examples": -1, "bytes": 1, "crc32": 1, "skipped": {}}', "half"])
def test_a_damaged_note_is_named(tmp_path, note):
    def after_the_first(progress):
        if progress.done == 20:
            raise InterruptedError

    folder = tmp_path / "shards"
    with pytest.raises(InterruptedError):
        write(folder, token_plan(), on_progress=after_the_first)
    (folder / "shard-00000-of-00004.json").write_text(note)
    with pytest.raises(DataError, match=r"shard-00000-of-00004\.json is damaged"):
        write(folder, token_plan())


def test_an_index_of_an_unknown_kind_is_named(tmp_path):
    folder = tmp_path / "shards"
    write(folder, token_plan())
    content = (folder / "index.json").read_text()
    for kind in ("1", '"texts"'):
        (folder / "index.json").write_text(content.replace('"kind": "tokens"', f'"kind": {kind}'))
        with pytest.raises(DataError, match=r"is not an index of shards: .*kind is"):
            ShardedTokens(folder)
