import asyncio
import datetime
import json
import logging
import threading

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
import tensorstore

from elt_zoo.storage import FolderLocked
from elt_zoo.training import CheckpointError, Checkpoints, TrainState, config_differences

RUN = {"model": {"dim": 8}, "steps": 20}
POSITION = {"index": 7}
OPTIMIZER = optax.adam(0.1)


def at_step(step):
    state = TrainState.create({"w": jnp.arange(300.0) + step}, OPTIMIZER, key=jax.random.key(step))
    return eqx.tree_at(lambda state: state.step, state, jnp.asarray(step, jnp.int32))


def abstract():
    return eqx.filter_eval_shape(at_step, 0)


def everything(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def files(folder):
    return [path for path in sorted(folder.rglob("*")) if path.is_file()]


def saved_run(folder, steps=(1, 2), **options):
    checkpoints = Checkpoints(folder, RUN, **options)
    for step in steps:
        checkpoints.save(at_step(step), POSITION)
    checkpoints.wait_until_finished()
    return checkpoints


def assert_is(state, step):
    assert int(state.step) == step
    np.testing.assert_array_equal(state.model["w"], np.arange(300.0) + step)


def test_a_folder_is_claimed_last(tmp_path):
    folder = tmp_path / "runs" / "mine"
    checkpoints = Checkpoints(folder, RUN)
    assert checkpoints.latest_step() is None and everything(tmp_path) == []
    checkpoints.claim()
    assert json.loads((folder / "run.json").read_text()) == RUN
    checkpoints.close()
    assert everything(folder) == ["run.json", "steps"]


def test_a_folder_belongs_to_one_run(tmp_path):
    saved_run(tmp_path / "run").close()
    other = RUN | {"steps": 30, "model": {"dim": 16}}
    with pytest.raises(
        ValueError, match=r"different run(.|\n)*model\.dim: saved 8, given 16\n  steps: saved 20, given 30"
    ):
        Checkpoints(tmp_path / "run", other)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match=r"is not empty and holds no run of elt_zoo \(thesis\.txt\)"):
        Checkpoints(tmp_path / "mine", RUN)
    assert everything(tmp_path / "mine") == ["thesis.txt"]
    for folder in ("thesis.txt", "thesis.txt/run"):
        with pytest.raises(ValueError, match=r"thesis\.txt.* is a file or lies inside one"):
            Checkpoints(tmp_path / "mine" / folder, RUN)
    assert config_differences({"a": 1}, {"b": 2}) == ["a: saved 1, given '(missing)'", "b: saved '(missing)', given 2"]


def test_a_folder_that_was_only_begun_is_taken_over(tmp_path):
    # What a process leaves that is killed in its first second: its lock, files under way, perhaps the config.
    folder = tmp_path / "run"
    folder.mkdir()
    dead = {"machine": "00000000", "pid": 1, "start": 1}
    (folder / ".elt-zoo-lock").write_text(json.dumps(dead))
    (folder / ".elt-zoo-tmp-00000000-1-1-00000000.json").write_text("{")
    Checkpoints(folder, RUN)
    (folder / ".elt-zoo-lock").unlink()
    with Checkpoints(folder, RUN) as checkpoints:
        checkpoints.claim()
    # Nothing was saved, so that another config loses nothing.
    with Checkpoints(folder, {"steps": 30}) as checkpoints:
        checkpoints.claim()
        assert json.loads((folder / "run.json").read_text()) == {"steps": 30}


def test_one_process_at_a_time(tmp_path):
    first = saved_run(tmp_path / "run", steps=(1,))
    second = Checkpoints(tmp_path / "run", RUN)
    with pytest.raises(FolderLocked, match="this very process"):
        second.claim(step=1)
    with pytest.raises(FolderLocked, match="this very process"):
        second.save(at_step(2), POSITION)
    # Reading needs no lock.
    assert_is(second.restore(abstract())[0], 1)
    first.close()
    second.save(at_step(2), POSITION)
    del second  # waits for what it writes
    Checkpoints(tmp_path / "run", RUN).claim(step=2)


def test_what_was_saved_comes_back_and_the_oldest_goes(tmp_path):
    with saved_run(tmp_path / "run", steps=(1, 2, 10), keep=2) as checkpoints:
        checkpoints.save(at_step(10), POSITION)
        assert everything(tmp_path / "run" / "steps")[0] == "10" and not (tmp_path / "run" / "steps" / "1").exists()
        state, position = checkpoints.restore(abstract())
        assert_is(state, 10)
        assert position == POSITION and jnp.array_equal(
            jax.random.key_data(state.key), jax.random.key_data(at_step(10).key)
        )
    with pytest.raises(ValueError, match="both must be at least 1"):
        Checkpoints(tmp_path / "run", RUN, every=0)


def test_leftovers_are_no_checkpoints_and_go(tmp_path):
    saved_run(tmp_path / "run").close()
    steps = tmp_path / "run" / "steps"
    for name in ("99", "3.writing", "0.deleting", "notes"):
        (steps / name).mkdir()
    (steps / "3.writing" / "state").write_text("half")
    with Checkpoints(tmp_path / "run", RUN) as checkpoints:
        assert checkpoints.latest_step() == 2
        checkpoints.claim(step=2)
        assert sorted(path.name for path in steps.iterdir()) == ["1", "2", "notes"]


def test_a_checkpoint_that_a_kill_kept_too_long_goes(tmp_path):
    saved_run(tmp_path / "run", steps=(1, 2, 3), keep=3).close()  # as a kill between saving and removing leaves it
    with Checkpoints(tmp_path / "run", RUN, keep=2) as checkpoints:
        assert sorted(path.name for path in (tmp_path / "run" / "steps").iterdir()) == ["1", "2", "3"]
        checkpoints.claim(step=3)
    assert sorted(path.name for path in (tmp_path / "run" / "steps").iterdir()) == ["2", "3"]


def test_every_changed_byte_is_noticed_or_does_no_harm(tmp_path):
    checkpoints = saved_run(tmp_path / "run")
    newest, noticed = tmp_path / "run" / "steps" / "2", set()
    for file in files(newest):
        content = file.read_bytes()
        for position in {0, len(content) // 2, len(content) - 1}:
            file.write_bytes(content[:position] + bytes([content[position] ^ 4]) + content[position + 1 :])
            try:
                state, data = checkpoints.restore(abstract())
            except CheckpointError as error:
                noticed.add(file.relative_to(newest).parts[0])
                assert "step 2" in str(error) and "\n" not in str(error) and len(str(error)) < 600
            else:
                assert_is(state, 2)
                assert data == POSITION
        file.write_bytes(content)
    assert noticed == {"state", "data.json", "manifest.json"}
    assert_is(checkpoints.restore(abstract())[0], 2)
    checkpoints.close()


def test_falling_back_takes_a_word(tmp_path, caplog):
    saved_run(tmp_path / "run").close()
    steps = tmp_path / "run" / "steps"
    for file in files(steps / "2" / "state"):
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(
        CheckpointError, match=r"step 2 in .*damaged.* To continue from step 1, use `--fall-back`, `Checkpoints\(fall_"
    ):
        Checkpoints(tmp_path / "run", RUN).restore(abstract())
    checkpoints = Checkpoints(tmp_path / "run", RUN, fall_back=True)
    with caplog.at_level(logging.WARNING, "elt_zoo.training"):
        assert_is(checkpoints.restore(abstract())[0], 1)
    assert "step 2" in caplog.text and "Trying the checkpoint before it" in caplog.text
    checkpoints.save(at_step(2), POSITION)  # `restore` waits for it
    assert_is(checkpoints.restore(abstract())[0], 2)
    assert sorted(path.name for path in steps.iterdir()) == ["1", "2", "2.damaged"]
    for file in files(steps):
        file.write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"None of the checkpoints in .* \(steps \[2, 1\]\)"):
        checkpoints.restore(abstract())
    checkpoints.close()


def test_other_models_and_missing_checkpoints_are_named(tmp_path):
    with pytest.raises(CheckpointError, match="There is no checkpoint in"):
        Checkpoints(tmp_path / "run", RUN).restore(abstract())
    with saved_run(tmp_path / "run") as checkpoints:
        other = eqx.filter_eval_shape(lambda: TrainState.create({"w": jnp.zeros(4)}, OPTIMIZER, key=jax.random.key(0)))
        with pytest.raises(CheckpointError, match=r"another model or optimiser.* differ, first .*float32\[300\]"):
            checkpoints.restore(other)
        (tmp_path / "run" / "steps" / "2" / "manifest.json").unlink()
        with pytest.raises(CheckpointError, match="incomplete, or of an older version"):
            checkpoints.restore(abstract())
        with pytest.raises(CheckpointError, match="a checkpoint of step 2, but training would continue from step 1"):
            checkpoints.save(at_step(1), POSITION)


@pytest.mark.parametrize(("content", "message"), [("{", r"run\.json cannot be read"), ("[1]", "holds a list and not")])
def test_a_damaged_run_file_is_named(tmp_path, content, message):
    saved_run(tmp_path / "run").close()
    (tmp_path / "run" / "run.json").write_text(content)
    with pytest.raises(CheckpointError, match=message):
        Checkpoints(tmp_path / "run", RUN)


def test_a_full_disk_is_one_line(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device\nand many lines of a traceback")

    with saved_run(tmp_path / "run") as checkpoints:
        monkeypatch.setattr(ocp.AsyncCheckpointer, "save", full)
        with pytest.raises(
            CheckpointError, match=r"step 3 cannot be saved in .*No space left on device\. Those"
        ) as caught:
            checkpoints.save(at_step(3), POSITION)
        assert "\n" not in str(caught.value)
        assert_is(checkpoints.restore(abstract())[0], 2)


@pytest.fixture
def held(monkeypatch):
    """Whatever would write arrays waits for this event."""
    release, real = threading.Event(), tensorstore.open

    async def waiting(*arguments, **options):
        await asyncio.to_thread(release.wait)
        return await real(*arguments, **options)

    monkeypatch.setattr(tensorstore, "open", waiting)
    yield release
    release.set()


def test_training_goes_on_while_a_checkpoint_is_written(tmp_path, held):
    change = jax.jit(lambda arrays: jax.tree.map(lambda array: array + 1, arrays), donate_argnums=0)
    position = {"index": 7}
    with saved_run(tmp_path / "run", steps=()) as checkpoints:
        state = at_step(1)
        checkpoints.save(state, position)
        assert checkpoints.latest_step() is None and not checkpoints.failed
        # What the next steps do: they donate the arrays, and the iterator moves on.
        for _ in range(3):
            state = eqx.tree_at(lambda state: state.model, state, change(state.model))
        position["index"] = 8
        assert checkpoints.latest_step() is None
        held.set()
        checkpoints.wait_until_finished()
        assert checkpoints.latest_step() == 1
        restored, data = checkpoints.restore(abstract())
        assert_is(restored, 1)
        assert data == {"index": 7}


def test_whoever_ends_waits_for_what_is_written(tmp_path, held):
    for number, end in enumerate((lambda one: one.close(), lambda one: one.save(at_step(2), POSITION))):
        held.clear()
        checkpoints = saved_run(tmp_path / f"run-{number}", steps=())
        checkpoints.save(at_step(1), POSITION)
        threading.Timer(0.2, held.set).start()
        end(checkpoints)
        assert (tmp_path / f"run-{number}" / "steps" / "1" / "manifest.json").exists()
        checkpoints.close()


def test_without_a_background_a_save_is_there_at_once(tmp_path):
    with Checkpoints(tmp_path / "run", RUN, asynchronous=False) as checkpoints:
        checkpoints.save(at_step(1), POSITION)
        assert checkpoints.latest_step() == 1


def test_a_write_that_fails_in_the_background_is_one_line(tmp_path, monkeypatch, caplog):
    def full(*_, **__):
        raise OSError(28, "No space left on device\nand many lines")

    message = r"step 3 cannot be saved in .*No space left on device\. Those before it are kept\.$"
    with saved_run(tmp_path / "run") as checkpoints:
        for look in (checkpoints.wait_until_finished, lambda: checkpoints.save(at_step(4), POSITION)):
            with monkeypatch.context() as patch:
                patch.setattr(tensorstore, "open", full)
                checkpoints.save(at_step(3), POSITION)
                with pytest.raises(CheckpointError, match=message) as caught:
                    look()
            assert "\n" not in str(caught.value) and checkpoints.latest_step() == 2
        checkpoints.wait_until_finished()  # said once
        checkpoints.save(at_step(3), POSITION)
        assert_is(checkpoints.restore(abstract())[0], 3)
        assert sorted(path.name for path in (tmp_path / "run" / "steps").iterdir()) == ["2", "3"]
    monkeypatch.setattr(tensorstore, "open", full)
    with pytest.raises(CheckpointError, match="step 4 cannot be saved"), Checkpoints(tmp_path / "run", RUN) as one:
        one.save(at_step(4), POSITION)
    # What ended the run matters more.
    with pytest.raises(ZeroDivisionError), Checkpoints(tmp_path / "run", RUN) as one:
        one.save(at_step(4), POSITION)
        _ = 1 / 0
    assert "step 4 cannot be saved" in caplog.text
    caplog.clear()
    one = Checkpoints(tmp_path / "run", RUN)
    one.save(at_step(4), POSITION)
    del one
    assert "could not be saved: " in caplog.text


def test_a_lock_that_is_lost_while_writing_keeps_the_checkpoint_back(tmp_path, held):
    with saved_run(tmp_path / "run", steps=()) as checkpoints:
        checkpoints.save(at_step(1), POSITION)
        (tmp_path / "run" / ".elt-zoo-lock").unlink()
        held.set()
        with pytest.raises(FolderLocked, match="was lost"):
            checkpoints.wait_until_finished()
        assert checkpoints.latest_step() is None


def test_some_are_kept_for_good_by_steps_and_by_time(tmp_path):
    def there(name):
        return sorted(int(path.name) for path in (tmp_path / name / "steps").iterdir())

    def age(name, step, hours):
        file = tmp_path / name / "steps" / str(step) / "data.json"
        saved = json.loads(file.read_text())
        before = datetime.datetime.fromisoformat(saved["time"]) - datetime.timedelta(hours=hours)
        file.write_text(json.dumps(saved | {"time": before.isoformat()}))

    saved_run(tmp_path / "steps", range(1, 10), every=1, keep=2, keep_every_steps=3).close()
    assert there("steps") == [3, 6, 8, 9]
    # By time: the first stays, those within the two hours after it go, the next one stays.
    saved_run(tmp_path / "time", range(1, 7), keep=6).close()
    for step, hours in zip(range(1, 7), (5.0, 4.5, 3.5, 2.9, 1.5, 1.0), strict=True):
        age("time", step, hours)
    options = {"keep": 1, "keep_every_hours": 2.0}
    saved_run(tmp_path / "time", (7,), **options).close()
    assert there("time") == [1, 4, 7]
    # Without a time, as older versions wrote them, the age of the files counts; and nothing changes by looking again.
    file = tmp_path / "time" / "steps" / "7" / "data.json"
    file.write_text(json.dumps({"iterator": POSITION}))
    with Checkpoints(tmp_path / "time", RUN, **options) as checkpoints:
        checkpoints.claim(step=7)
        assert there("time") == [1, 4, 7]
        checkpoints.save(at_step(8), POSITION)
    assert there("time") == [1, 4, 7, 8]


def test_wrong_rules_of_preservation_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"keep_every_steps=15\)` must be a multiple of the 10 steps"):
        Checkpoints(tmp_path / "run", RUN, every=10, keep_every_steps=15)
    for hours in (0.0, -1.0, float("inf"), float("nan")):
        with pytest.raises(ValueError, match="must be a positive number of hours"):
            Checkpoints(tmp_path / "run", RUN, keep_every_hours=hours)
