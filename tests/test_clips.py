"""Sources of clips: UCF-101, folders of videos, moving digits."""

import shutil
from pathlib import Path
from typing import Literal

import jax
import numpy as np
import pytest
from video_files import decode_all, frames_of, write_frames

from elt_zoo.data import (
    ArraySource,
    ClipTransform,
    DataError,
    MovingDigits,
    UnreadableExample,
    UnreadableLog,
    VideoSource,
    Visit,
    load_digits,
    to_pixels,
    training_batches,
    ucf101,
    video_folder,
    write_ucf101,
)

REAL = Path(__file__).parents[2] / "shared" / "data" / "ucf101-sample" / "UCF-101"
SMALL = ClipTransform(frames=4, size=24, random_start=True)


@pytest.fixture
def folder(tmp_path):
    """Two classes with two videos each, of 20 to 23 frames."""
    for index, name in enumerate(("Walk/v_a.avi", "Walk/v_b.avi", "Run/v_c.avi", "Run/v_d.avi")):
        write_frames(tmp_path / name, frames_of(index, 20 + index))
    return tmp_path


@pytest.fixture
def ucf(folder):
    """The same with the lists of UCF-101, whose order of classes is not that of the names."""
    videos, lists = folder / "UCF-101", folder / "ucfTrainTestlist"
    videos.mkdir()
    lists.mkdir()
    for name in ("Walk", "Run"):
        (folder / name).rename(videos / name)
    (lists / "classInd.txt").write_text("1 Walk\n2 Run\n")
    (lists / "trainlist01.txt").write_text("Walk/v_a.avi 1\nRun/v_c.avi 2\r\n\n")
    (lists / "testlist01.txt").write_text("Walk/v_b.avi\nRun/v_d.avi\n")
    (lists / "trainlist02.txt").write_text("Run/v_d.avi 2\n")
    return folder


def test_a_folder_of_videos_is_numbered_by_name(folder):
    source = video_folder(folder, SMALL)
    assert source.class_names == ("Run", "Walk") and source.num_classes == 2 and len(source) == 4
    assert [source.label(index) for index in range(4)] == [0, 0, 1, 1]
    assert source.name(3) == str(folder / "Walk" / "v_b.avi")
    clip = source[2]
    assert clip.clips.shape == (4, 24, 24, 3) and clip.clips.dtype == np.uint8 and clip.labels == 1
    assert np.asarray(to_pixels(clip).examples).dtype == np.float32


def test_a_part_may_lack_classes_and_holds_only_known_ones(folder):
    (folder / "Walk" / ".hidden.avi").touch()
    (folder / "Walk" / "notes.txt").touch()
    source = video_folder(folder, SMALL, classes=("Walk", "Swim", "Run"))
    assert source.num_classes == 3 and [source.label(index) for index in range(len(source))] == [2, 2, 0, 0]
    with pytest.raises(DataError, match="1 class folders are not among `classes`: Walk"):
        video_folder(folder, SMALL, classes=("Run",))


def test_the_official_lists_choose_files_and_number_classes(ucf):
    train, test = ucf101(ucf, SMALL), ucf101(ucf, SMALL, split="test")
    assert train.class_names == test.class_names == ("Walk", "Run")
    assert train.files == ("Walk/v_a.avi", "Run/v_c.avi") and test.files == ("Walk/v_b.avi", "Run/v_d.avi")
    assert [train.label(0), train.label(1)] == [test.label(0), test.label(1)] == [0, 1]
    assert ucf101(ucf, SMALL, fold=2).files == ("Run/v_d.avi",)
    everything = ucf101(ucf, SMALL, split="all")
    assert len(everything) == 4 and [everything.label(index) for index in range(4)] == [1, 1, 0, 0]
    # From within, with the lists beside, inside or elsewhere.
    assert ucf101(ucf / "UCF-101", SMALL).files == train.files
    shutil.move(ucf / "ucfTrainTestlist", ucf / "UCF-101" / "ucfTrainTestlist")
    assert ucf101(ucf, SMALL).files == train.files and len(ucf101(ucf, SMALL, split="all")) == 4
    shutil.move(ucf / "UCF-101" / "ucfTrainTestlist", ucf / "lists")
    assert ucf101(ucf, SMALL, lists=ucf / "lists").files == train.files
    unlisted = ucf101(ucf, SMALL, split="all")
    assert unlisted.class_names == ("Run", "Walk") and unlisted.label(0) == 0


def test_a_clip_is_decided_by_its_visit_alone(folder):
    source = video_folder(
        folder, ClipTransform(frames=4, stride=2, size=48, random_start=True, random_crop=True, flip=True)
    )
    visits = [Visit(index, epoch, seed) for index in range(4) for epoch in range(4) for seed in range(2)]
    clips = [source.read(visit).clips for visit in visits]
    again = video_folder(folder, source.transform)
    for visit, clip in reversed(list(zip(visits, clips, strict=True))):
        np.testing.assert_array_equal(again.read(visit).clips, clip)
    assert len({clip.tobytes() for clip in clips}) > 28  # of 32, of which few may coincide


def test_every_start_and_both_sides_are_drawn_and_show_the_right_frames(folder):
    whole = decode_all(folder / "Run" / "v_c.avi")[:, :, 8:-8]  # 22 frames of 48 × 64, cut to 48 × 48
    source = video_folder(folder, ClipTransform(frames=4, stride=6, size=48, random_start=True, flip=True))
    found = set()
    for epoch in range(60):
        clip = source.read(Visit(0, epoch)).clips
        matches = [
            (start, mirrored)
            for start in range(22 - 18)
            for mirrored in (False, True)
            if np.array_equal(clip, whole[start : start + 19 : 6, :, :: -1 if mirrored else 1])
        ]
        assert len(matches) == 1
        found.update(matches)
    assert len(found) == 8
    still = video_folder(folder, ClipTransform(frames=4, stride=6, size=48))
    np.testing.assert_array_equal(still.read(Visit(0, 7)).clips, whole[2:21:6])


def test_random_crops_reach_both_ends(folder):
    whole = decode_all(folder / "Run" / "v_c.avi")[9:13]
    source = video_folder(folder, ClipTransform(frames=4, size=48, random_crop=True))
    lefts = set()
    for epoch in range(120):
        clip = source.read(Visit(0, epoch)).clips
        lefts.update(left for left in range(17) if np.array_equal(clip, whole[:, :, left : left + 48]))
    assert {0, 16} <= lefts and len(lefts) > 12


def test_bad_videos_are_skipped_counted_and_named(ucf, caplog):
    (ucf / "UCF-101" / "Walk" / "v_a.avi").write_bytes(b"")
    write_frames(ucf / "UCF-101" / "Run" / "v_d.avi", frames_of(0, 3))
    source = ucf101(ucf, SMALL, split="all")
    with pytest.raises(UnreadableExample, match=r"is empty \(0 bytes\)"):
        source.read(Visit(source.files.index("Walk/v_a.avi")))
    with pytest.raises(UnreadableExample, match="has 3 frames; a clip of 4 at stride 1 needs 4"):
        source.read(Visit(source.files.index("Run/v_d.avi")))
    log = UnreadableLog()
    batches = training_batches(source, batch_size=4, seed=0, workers=2, unreadable=log)
    for _ in range(3):
        assert next(batches).clips.shape == (4, 4, 24, 24, 3)
    assert {Path(name).name for name in log.names} == {"v_a.avi", "v_d.avi"}
    assert "skipped" in caplog.text and "is empty (0 bytes)" in caplog.text
    with pytest.raises(DataError, match="2 examples could not be read, more than the 1 allowed"):
        for batch in training_batches(source, batch_size=4, seed=0, workers=0, unreadable=UnreadableLog(limit=1)):
            assert batch is not None


def test_a_file_that_vanishes_is_unreadable(folder):
    source = video_folder(folder, SMALL)
    (folder / "Run" / "v_c.avi").unlink()
    with pytest.raises(UnreadableExample, match="is missing"):
        source[0]


def test_streams_do_not_depend_on_workers(folder):
    source = video_folder(folder, SMALL)
    streams = [training_batches(source, batch_size=3, seed=5, workers=workers) for workers in (0, 2)]
    for _ in range(4):
        jax.tree.map(np.testing.assert_array_equal, *map(next, streams))


def test_what_is_missing_is_named(ucf, tmp_path):
    lists, videos = ucf / "ucfTrainTestlist", ucf / "UCF-101"
    with pytest.raises(ValueError, match="the splits are 'train', 'test' and 'all'"):
        ucf101(ucf, split="validation")  # pyright: ignore[reportArgumentType]
    with pytest.raises(DataError, match=r"nowhere does not exist. Expected .*nowhere/UCF-101/<Class>/v_\*.avi"):
        ucf101(ucf / "nowhere")
    with pytest.raises(DataError, match=r"`video_folder\(.*nowhere does not exist. Expected .*nowhere/<class>/<video>"):
        video_folder(ucf / "nowhere")
    with pytest.raises(DataError, match=r"no list .*trainlist03.txt. Beside it: classInd.txt, testlist01.txt"):
        ucf101(ucf, fold=3)
    (lists / "trainlist01.txt").write_text("".join(f"Walk/v_{index}.avi 1\n" for index in range(5)))
    with pytest.raises(DataError, match=r"5 of the 5 videos wanted .* Walk/v_0.avi, .*, Walk/v_4.avi"):
        ucf101(ucf)
    (lists / "trainlist01.txt").write_text("\n")
    with pytest.raises(DataError, match="the list of files is empty"):
        ucf101(ucf)
    (lists / "trainlist01.txt").write_text("Walk/v_a.avi 2\n")
    with pytest.raises(DataError, match=r"gives Walk/v_a.avi the number 2; in classInd.txt it is 1"):
        ucf101(ucf)
    (lists / "trainlist01.txt").write_text("Swim/v_a.avi 1\n")
    with pytest.raises(DataError, match=r"classes that classInd.txt does not name: Swim"):
        ucf101(ucf)
    for wrong in ("0 Walk\n1 Run\n", "Walk\nRun\n"):
        (lists / "classInd.txt").write_text(wrong)
        with pytest.raises(DataError, match="should number the classes from 1 on"):
            ucf101(ucf)
    shutil.rmtree(lists)
    with pytest.raises(DataError, match=r"needs the official lists .*split='all'"):
        ucf101(ucf)
    (videos / "Empty").mkdir()
    with pytest.raises(DataError, match=r"1 of 3 class folders hold no video: Empty. Fill or remove them"):
        ucf101(ucf, split="all")
    flat = tmp_path / "flat"
    flat.mkdir()
    with pytest.raises(DataError, match=r"no class folders. Expected .*; found nothing"):
        video_folder(flat)
    for name in "abcd":
        (flat / f"{name}.avi").touch()
    with pytest.raises(
        DataError, match=r"no class folders. Expected .*; found 4 file\(s\) \(a.avi, b.avi, c.avi, d.avi\)"
    ):
        video_folder(flat)


def test_impossible_sources_are_refused(folder):
    with pytest.raises(ValueError, match=r"`ClipTransform\(frames=16, stride=0, size=128\)` must all be at least 1"):
        ClipTransform(stride=0)
    with pytest.raises(ValueError, match="got 1 files and 2 labels"):
        VideoSource(folder, ["Walk/v_a.avi"], [0, 1], ("Walk", "Run"))
    with pytest.raises(ValueError, match="needs at least 1 frame, a size of 12 and 1 clip"):
        MovingDigits("train", size=8)
    with pytest.raises(ValueError, match="the parts are 'train' and 'heldout'"):
        MovingDigits("test")  # pyright: ignore[reportArgumentType]


def test_digits_move_evenly_stay_inside_and_bounce():
    source = MovingDigits("train", frames=24, size=32)
    assert len(source) == 1437 and source.num_classes == 10
    bounced = 0
    for index in range(40):
        example = source.read(Visit(index))
        assert example.clips.shape == (24, 32, 32, 3) and example.clips.dtype == np.uint8
        assert example.labels == source.label(index) == load_digits("train").labels[index]
        np.testing.assert_array_equal(example.clips[..., 0], example.clips[..., 2])
        light = example.clips[..., 0].astype(np.float64)
        # The whole digit is there in every frame: its light is that of the real digit, spread over more pixels.
        expected = load_digits("train").images[index].sum() / 16 * (2 / 3 * 32 / 8) ** 2 * 255
        np.testing.assert_allclose(light.sum((1, 2)), expected, rtol=0.12)
        y, x = np.mgrid[:32, :32]
        centres = np.stack([(light * axis).sum((1, 2)) / light.sum((1, 2)) for axis in (y, x)], axis=-1)
        moves = np.diff(centres, axis=0)
        speed = np.abs(moves)
        # Between bounces both coordinates change by the same amount each frame.
        assert (np.abs(speed - np.median(speed, axis=0)) < 0.15).mean() > 0.8
        assert 0.02 * 32 * 0.9 < np.linalg.norm(np.median(speed, axis=0)) < 0.06 * 32 * 1.1
        bounced += int((np.sign(moves[0]) != np.sign(moves[-1])).any())
    assert bounced > 10


def test_moving_digits_depend_on_the_visit_or_on_the_index_alone():
    source = MovingDigits("heldout", frames=3, size=16, length=1000)
    assert len(source) == 1000 and source.label(0) == source.label(360)
    visits = [Visit(index, epoch, seed) for index in (0, 360) for epoch in (0, 1) for seed in (0, 1)]
    assert len({source.read(visit).clips.tobytes() for visit in visits}) == 8
    np.testing.assert_array_equal(source.read(Visit(5, 1, 2)).clips, source.read(Visit(5, 1, 2)).clips)
    still = MovingDigits("heldout", frames=3, size=16, augment=False)
    np.testing.assert_array_equal(still.read(Visit(5, 1, 2)).clips, still.read(Visit(5)).clips)
    batch = next(training_batches(source, batch_size=4, seed=0))
    assert batch.clips.shape == (4, 3, 16, 16, 3) and batch.labels.shape == (4,)


def test_moving_digits_are_written_as_ucf101_and_read_back(tmp_path):
    train = MovingDigits("train", frames=6, size=32, length=24, augment=False)
    test = MovingDigits("heldout", frames=6, size=32, length=6, augment=False)
    write_ucf101(tmp_path, train, test)
    splits: tuple[tuple[Literal["train", "test"], MovingDigits], ...] = (("train", train), ("test", test))
    for split, source in splits:
        videos = ucf101(tmp_path, ClipTransform(frames=6, size=32), split=split)
        assert videos.class_names == source.class_names and len(videos) == len(source)
        for index in range(len(source)):
            assert videos.label(index) == source.label(index)
            difference = videos[index].clips.astype(int) - source[index].clips
            assert np.abs(difference).mean() < 3
    assert len(ucf101(tmp_path, SMALL, split="all")) == 30
    other = ArraySource(np.zeros((1, 1)), np.zeros(1, int))
    with pytest.raises(ValueError, match="sources of different classes"):
        write_ucf101(tmp_path, train, other)
    spaced = ArraySource(np.zeros((1, 1)), np.zeros(1, int), ("Long Jump",))
    with pytest.raises(ValueError, match=r"classes named \['Long Jump'\]; the names must be words"):
        write_ucf101(tmp_path, spaced, spaced)


@pytest.mark.optional
@pytest.mark.skipif(not REAL.is_dir(), reason="the real clip of UCF-101 is not here")
def test_the_real_clip_beside_rendered_ones(tmp_path):
    (tmp_path / "UCF-101").mkdir()
    for folder in filter(Path.is_dir, REAL.iterdir()):
        shutil.copytree(folder, tmp_path / "UCF-101" / folder.name)
    for index in range(2):
        frames = MovingDigits("train", frames=20, size=32)[index].clips
        write_frames(tmp_path / "UCF-101" / "Digit" / f"v_Digit_g01_c0{index}.avi", frames)
    source = ucf101(tmp_path, ClipTransform(random_start=True), split="all")
    assert source.class_names == ("CricketShot", "Digit") and len(source) == 3
    assert source.read(Visit(0, 3)).clips.shape == (16, 128, 128, 3)
    # Cut in full size, a clip shows the very frames of the file.
    whole = decode_all(Path(source.name(0)))
    size = min(whole.shape[1:3])
    middle = ucf101(tmp_path, ClipTransform(stride=2, size=size), split="all")[0].clips
    start = (len(whole) - 31 + 1) // 2
    assert whole.shape[1] == whole.shape[2]
    np.testing.assert_array_equal(middle, whole[start : start + 31 : 2])
    batch = next(training_batches(source, batch_size=3, seed=0))
    assert batch.clips.shape == (3, 16, 128, 128, 3)
