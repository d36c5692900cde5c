import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from elt_zoo.storage import FolderLock, FolderLocked, _lock, foreign_entries
from elt_zoo.storage._process import this_process

HOLD = """
import sys, time
from elt_zoo.storage import FolderLock
with FolderLock(sys.argv[1]):
    print("held", flush=True)
    time.sleep(600)
"""
COUNT = """
import sys, time
from elt_zoo.storage import FolderLock, FolderLocked
done = 0
while done < 15:
    try:
        with FolderLock(sys.argv[1]) as lock:
            with open(sys.argv[1] + "/holder", "x"):
                pass
            lock.check()
            import os; os.unlink(sys.argv[1] + "/holder")
        done += 1
    except FolderLocked:
        time.sleep(0.001)
"""


@contextlib.contextmanager
def holder(folder):
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True)
    with process:
        try:
            assert process.stdout.readline() == "held\n"
            yield process
        finally:
            process.kill()


def rewrite(folder, **changes):
    file = folder / ".elt-zoo-lock"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_the_holder_is_named_and_a_killed_one_locks_nobody_out(tmp_path):
    folder = tmp_path / "runs" / "a"
    with holder(folder) as process:
        with pytest.raises(FolderLocked, match=rf"process {process.pid} on \S+ since \d{{4}}-.* UTC \(-c") as error:
            FolderLock(folder).acquire()
        assert "\n" not in str(error.value)
        os.kill(process.pid, signal.SIGKILL)
        # Nobody has asked after it yet: it is a zombie.
        deadline = time.monotonic() + 10
        while True:
            try:
                with FolderLock(folder) as lock:
                    lock.check()
                break
            except FolderLocked:
                assert time.monotonic() < deadline
    assert os.listdir(folder) == []


def test_a_lock_is_refused_twice_in_one_process_and_free_afterwards(tmp_path):
    with FolderLock(tmp_path):
        assert foreign_entries(tmp_path) == []
        with pytest.raises(FolderLocked, match=r"this very process \(since "), FolderLock(tmp_path):
            pass
        # The refused one has not given back what it never had.
        assert os.listdir(tmp_path) == [".elt-zoo-lock"]
    with pytest.raises(KeyError), FolderLock(tmp_path):
        raise KeyError
    assert os.listdir(tmp_path) == []


def test_another_process_of_the_same_number_does_not_hold_it(tmp_path):
    FolderLock(tmp_path).acquire()
    rewrite(tmp_path, start=this_process().start + 1)
    with FolderLock(tmp_path):
        pass
    assert os.listdir(tmp_path) == []


def test_a_lock_of_another_machine_opens_when_its_heart_stops(tmp_path):
    lost = FolderLock(tmp_path)
    lost.acquire()
    rewrite(tmp_path, machine="elsewhere", host="alpha", pid=12)
    with pytest.raises(FolderLocked, match="process 12 on alpha since"):
        FolderLock(tmp_path).acquire()
    past = time.time() - _lock.STALE_SECONDS - 1
    os.utime(tmp_path / ".elt-zoo-lock", (past, past))
    with FolderLock(tmp_path) as lock:
        lock.check()
        with pytest.raises(FolderLocked, match=r"was lost: it is held by this very process"):
            lost.check()
        lost.release()
        lock.check()
    with pytest.raises(FolderLocked, match="was lost: nobody holds it now"):
        lost.check()


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"machine": 3}', "\xff"])
def test_a_damaged_lock_is_kept_until_it_is_old(content, tmp_path):
    file = tmp_path / ".elt-zoo-lock"
    file.write_text(content, encoding="latin-1")
    with pytest.raises(FolderLocked, match="a process that left no name"):
        FolderLock(tmp_path).acquire()
    os.utime(file, (0, 0))
    with FolderLock(tmp_path):
        pass


def test_a_held_lock_beats(tmp_path, monkeypatch):
    monkeypatch.setattr(_lock, "HEARTBEAT_SECONDS", 0.01)
    file = tmp_path / ".elt-zoo-lock"
    with FolderLock(tmp_path):
        os.utime(file, (0, 0))
        deadline = time.monotonic() + 10
        while not file.stat().st_mtime:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    assert not file.exists()


def test_file_systems_without_links_are_served_too(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(PermissionError(1, "not permitted")))
    with FolderLock(tmp_path), pytest.raises(FolderLocked, match="this very process"):
        FolderLock(tmp_path).acquire()
    assert os.listdir(tmp_path) == []


def test_one_of_many_takes_an_abandoned_lock(tmp_path):
    FolderLock(tmp_path).acquire()
    rewrite(tmp_path, start=this_process().start + 1)
    start, got, refused = threading.Barrier(8), [], []

    def contend():
        lock = FolderLock(tmp_path)
        start.wait()
        try:
            lock.acquire()
            got.append(lock)
        except FolderLocked:
            refused.append(lock)

    threads = [threading.Thread(target=contend) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == 1 and len(refused) == 7
    got[0].check()
    got[0].release()
    assert os.listdir(tmp_path) == []


@pytest.mark.slow
def test_processes_exclude_each_other(tmp_path):
    processes = [subprocess.Popen([sys.executable, "-c", COUNT, str(tmp_path)]) for _ in range(3)]
    assert [process.wait(120) for process in processes] == [0, 0, 0]
    assert os.listdir(tmp_path) == []
