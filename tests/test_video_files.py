"""Decoding, indexing and writing videos."""

import json
import os
from fractions import Fraction
from typing import Any, NamedTuple

import av
import numpy as np
import pytest
from PIL import Image, ImageSequence
from video_files import decode_all, frames_of, write_frames

import elt_zoo.data.videos._decode as module
from elt_zoo._optional import optional_import
from elt_zoo.data import UnreadableExample, write_video
from elt_zoo.data.videos._decode import Cut, VideoInfo, probe_video, read_frames
from elt_zoo.data.videos._index import index_videos

OPEN_GROUPS = {"x264-params": "open-gop=1:scenecut=0:keyint=8:min-keyint=8"}
FILES = {
    "plain.avi": {},
    "one-keyframe.avi": {"keyframe_every": 100},
    "reordered.avi": {"between": 2},
    "untimed.avi": {"codec": "libx264", "between": 2},
    "reordered.mp4": {"codec": "libx264", "between": 2},
    "open.mp4": {"codec": "libx264", "between": 2, "options": OPEN_GROUPS},
    "milliseconds.mkv": {"between": 2},
    "hidden.webm": {"codec": "libvpx-vp9"},
    "guessed.mpg": {"codec": "mpeg1video", "between": 2},
}


@pytest.mark.parametrize("name", FILES)
def test_frames_read_by_number_are_those_of_a_full_decode(tmp_path, name):
    path = tmp_path / name
    write_frames(path, frames_of(0, 40), **FILES[name])
    info, whole = probe_video(path), decode_all(path)
    assert info[:4] == (40, 48, 64, 25.0) and len(whole) == 40
    assert (info.times is None) == (name in ("untimed.avi", "guessed.mpg"))
    for start in range(40 - 6):
        np.testing.assert_array_equal(
            read_frames(path, info, start=start, count=3, stride=3), whole[start : start + 7 : 3]
        )


def test_two_frames_in_one_packet_are_two_frames(tmp_path):
    """DivX and XviD put a frame and the one shown before it into one packet, and follow it with an empty one."""
    plain, packed, frame_start = tmp_path / "plain.avi", tmp_path / "packed.avi", b"\x00\x00\x01\xb6"
    write_frames(plain, frames_of(0, 41), between=1, keyframe_every=100)
    with av.open(str(plain)) as container:
        packets = [bytes(packet) for packet in container.demux(video=0) if packet.size]
    head, rest = packets[0].split(frame_start, 1)
    first = head + b"\x00\x00\x01\xb2DivX503b1393p" + frame_start + rest
    pairs = [packets[index] + packets[index + 1] for index in range(1, len(packets), 2)]
    contents = [first, *(part for pair in pairs for part in (pair, frame_start + b"\x5f\xff\x7f"))]
    with av.open(str(packed), "w") as container:
        stream = container.add_stream("mpeg4", rate=25, width=64, height=48, pix_fmt="yuv420p")
        for time, content in enumerate(contents):
            packet = av.Packet(content)
            packet.stream, packet.pts, packet.dts, packet.time_base = stream, time, time, Fraction(1, 25)
            packet.is_keyframe = time == 0
            container.mux(packet)
    info, whole = probe_video(packed), decode_all(plain)
    assert info.frames == len(whole) == 41
    for start in range(36):
        clip = read_frames(packed, info, start=start, count=3, stride=2)
        np.testing.assert_array_equal(clip, whole[start : start + 5 : 2])


def test_only_the_frames_near_a_clip_are_decoded(tmp_path, monkeypatch):
    path = tmp_path / "long.avi"
    write_frames(path, frames_of(0, 40), keyframe_every=8)
    info = probe_video(path)
    decoded = []
    seek = module._seek_frames

    class Counted:
        def __init__(self, container):
            self.seek = container.seek
            self._container = container

        def decode(self, stream):
            for frame in self._container.decode(stream):
                decoded.append(frame.pts)
                yield frame

    monkeypatch.setattr(module, "_seek_frames", lambda container, *rest: seek(Counted(container), *rest))
    read_frames(path, info, start=26, count=4)
    assert decoded == list(range(24, 30))


def test_frames_that_come_before_the_first_keyframe_are_not_trusted():
    class Frame(NamedTuple):
        pts: int
        key_frame: bool

    class Landed(NamedTuple):
        frames: list[Frame]

        def seek(self, time, stream):
            pass

        def decode(self, stream):
            return iter(self.frames)

    def found(*frames):
        container: Any = Landed([Frame(*frame) for frame in frames])
        convert: Any = lambda frame: frame.pts  # noqa: E731
        return module._seek_frames(container, None, range(9), range(4, 6), convert)

    assert found((3, True), (4, False), (5, False)) == [4, 5]
    assert found((4, True), (5, False)) == [4, 5]
    assert found((3, False), (4, False), (5, True)) is None
    assert found((4, True), (6, False)) is None


def test_videos_with_uneven_times_are_read_by_number(tmp_path):
    path, frames = tmp_path / "uneven.mp4", frames_of(1, 24)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=25, options={})
        stream.height, stream.width, stream.codec_context.gop_size = 48, 64, 6
        for index, picture in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts = index + index // 5
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    info, whole = probe_video(path), decode_all(path)
    assert isinstance(info.times, list)
    for start in range(20):
        np.testing.assert_array_equal(read_frames(path, info, start=start, count=4), whole[start : start + 4])
    root = path.parent
    assert index_videos(root, [path.name]) == index_videos(root, [path.name]) == [info]


@pytest.mark.parametrize("shape", [(48, 64), (64, 48)])
def test_frames_are_resized_and_cut_as_pillow_does(tmp_path, shape):
    path = tmp_path / "resized.avi"
    write_frames(path, frames_of(0, 3, *shape), options={"qmin": "1", "qmax": "1"})
    whole = decode_all(path)[0]
    info = probe_video(path)
    height, width = (24, 32) if shape == (48, 64) else (32, 24)
    expected = np.asarray(Image.fromarray(whole).resize((width, height), Image.Resampling.BILINEAR)).astype(int)
    for cut, top, left in ((Cut(24), 0.5, 0.5), (Cut(24, 0.0, 0.0), 0, 0), (Cut(24, 1.0, 1.0), 1, 1)):
        top, left = round(top * (height - 24)), round(left * (width - 24))
        frame = read_frames(path, info, start=0, count=1, cut=cut)[0]
        difference = np.abs(frame - expected[top : top + 24, left : left + 24])
        # The scaler works on brightness and colour before it makes RGB of them, Pillow after.
        assert difference.mean() < 0.8 and difference.max() <= 4
    enlarged = read_frames(path, info, start=0, count=2, cut=Cut(96))
    assert enlarged.shape == (2, 96, 96, 3)


def test_impossible_reads_are_refused(tmp_path):
    path = tmp_path / "short.avi"
    write_frames(path, frames_of(0, 5))
    info = probe_video(path)
    with pytest.raises(ValueError, match=r"needs frames 2 to 8; .*short.avi has 0 to 4"):
        read_frames(path, info, start=2, count=3, stride=3)
    with pytest.raises(ValueError, match=r"`read_frames\(start=-1"):
        read_frames(path, info, start=-1, count=1)
    with pytest.raises(UnreadableExample, match="ends early: 2 of the 4 frames"):
        read_frames(path, info._replace(frames=9, times=None), start=3, count=4)


def test_what_is_no_video_says_why(tmp_path, capfd):
    whole = tmp_path / "whole.avi"
    write_frames(whole, frames_of(0, 20))
    content = whole.read_bytes()
    (tmp_path / "empty.avi").touch()
    (tmp_path / "text.avi").write_text("no video" * 100)
    (tmp_path / "cut.avi").write_bytes(content[:4000])
    write_sound(tmp_path / "sound.avi")
    for name, reason in {
        "empty.avi": r"is empty \(0 bytes\)",
        "text.avi": "cannot be decoded",
        "cut.avi": "cannot be decoded|has no video frames",
        "gone.avi": "is missing",
        "sound.avi": "has no video stream",
    }.items():
        with pytest.raises(UnreadableExample, match=reason):
            probe_video(tmp_path / name)
    assert capfd.readouterr().err == ""  # the codec's own complaints stay out of the user's terminal


def test_a_video_damaged_after_its_first_frames_is_unreadable_there(tmp_path):
    path = tmp_path / "damaged.avi"
    write_frames(path, frames_of(0, 20))
    info = probe_video(path)
    with av.open(str(path)) as container:
        packets = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    content = bytearray(path.read_bytes())
    for position, size in packets[8:]:
        content[position + 8 : position + 8 + size] = bytes(size)
    path.write_bytes(content)
    with pytest.raises(UnreadableExample, match=r"cannot be decoded|ends early"):
        probe_video(path)
    assert read_frames(path, info, start=0, count=6).shape == (6, 48, 64, 3)
    with pytest.raises(UnreadableExample, match=r"cannot be decoded|ends early"):
        read_frames(path, info, start=6, count=6)


def write_sound(path):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        frame.rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())


@pytest.fixture
def folder(tmp_path):
    for name, count in {"a/one.avi": 5, "a/two.avi": 6, "b/three.avi": 7}.items():
        write_frames(tmp_path / name, frames_of(count, count))
    (tmp_path / "b" / "four.avi").touch()
    return tmp_path


NAMES = ["a/one.avi", "a/two.avi", "b/three.avi", "b/four.avi"]


def scan(root, files=NAMES, **options):
    """The index, and how many files were looked into."""
    seen = []
    index: Any = index_videos(root, files, on_progress=lambda done, total: seen.append((done, total)), **options)
    assert seen == [(done, len(seen)) for done in range(1, len(seen) + 1)]
    return index, len(seen)


def test_only_changed_files_are_scanned_again(folder):
    index, looked = scan(folder)
    assert looked == 4
    assert [info.frames for info in index[:3]] == [5, 6, 7] and index[3] == "is empty (0 bytes)"
    assert all(isinstance(info, VideoInfo) and isinstance(info.times, range) for info in index[:3])
    assert scan(folder) == (index, 0)
    write_frames(folder / NAMES[1], frames_of(1, 9))
    again, looked = scan(folder)
    assert looked == 1 and again[1].frames == 9 and again[0] == index[0]
    assert scan(folder, files=NAMES[:1]) == (index[:1], 0)
    assert scan(folder) == (again, 0)  # the entries of files not asked for are kept
    os.utime(folder / NAMES[0], ns=(1, 1))
    assert scan(folder)[1] == 1


def test_a_damaged_index_is_made_anew(folder, caplog):
    index, _ = scan(folder)
    (cache,) = folder.glob(".*.json")
    whole = cache.read_text()
    bad_entry = json.loads(whole)
    del bad_entry["videos"][NAMES[0]]["times"]
    for content in (whole[: len(whole) // 2], "[]", json.dumps(bad_entry)):
        cache.write_text(content)
        caplog.clear()
        assert scan(folder) == (index, 4)
        assert "is damaged" in caplog.text
        assert cache.read_text() == whole
    cache.write_text(json.dumps({"version": 0}))
    caplog.clear()
    assert scan(folder) == (index, 4) and not caplog.text  # of another version, which is no damage
    assert [file.name for file in folder.iterdir() if file.is_file()] == [cache.name]  # nothing unfinished is left


def test_an_interrupted_scan_goes_on_where_it_was(folder):
    def interrupt(done, total):
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        index_videos(folder, NAMES, on_progress=interrupt)
    assert scan(folder)[1] == 2


def test_the_index_of_a_folder_that_cannot_be_written_is_the_users(folder, tmp_path_factory, monkeypatch, caplog):
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("XDG_CACHE_HOME", str(home))
    # Root may write anywhere, so the answer is replaced and not the permission.
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    index, _ = scan(folder)
    assert scan(folder) == (index, 0)
    assert not list(folder.glob(".*.json")) and len(list(home.glob("elt_zoo/videos-*.json"))) == 1
    (home / "file").touch()
    assert scan(folder, cache=home / "file" / "index.json") == (index, 4)
    assert "could not be kept" in caplog.text


@pytest.mark.parametrize("suffix", [".avi", ".mp4", ".gif"])
def test_a_written_video_opens_again(tmp_path, suffix):
    path, frames = tmp_path / f"video{suffix}", frames_of(2, 12)
    write_video(path, frames, rate=12.5)
    if suffix == ".gif":
        with Image.open(path) as image:
            assert sum(1 for _ in ImageSequence.Iterator(image)) == 12 and image.info["duration"] == 80
            pictures = []
            for index in range(12):
                image.seek(index)
                pictures.append(np.asarray(image.convert("RGB")))
        back, limit = np.stack(pictures), 7
    else:
        assert probe_video(path)[:4] == (12, 48, 64, 12.5)
        back, limit = decode_all(path), 3
    assert back.shape == frames.shape
    assert np.abs(back.astype(int) - frames).mean() < limit


def test_impossible_videos_are_not_written(tmp_path):
    frames = frames_of(0, 2, 15, 16)
    with pytest.raises(ValueError, match=r"must end in \.avi, \.mp4 or \.gif"):
        write_video(tmp_path / "video.png", frames)
    with pytest.raises(ValueError, match=r"got 15 × 16 pixels; \.mp4 needs an even height and width"):
        write_video(tmp_path / "video.mp4", frames)
    with pytest.raises(ValueError, match=r"rate=25.0\)` got 0 frames"):
        write_video(tmp_path / "video.avi", frames[:0])
    write_video(tmp_path / "video.gif", frames)
    with pytest.raises(OSError, match=r"nowhere/video\.gif cannot be written: No such file or directory"):
        write_video(tmp_path / "nowhere" / "video.gif", frames)


def test_a_video_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "video.avi"
    write_video(path, frames_of(0, 4))
    before = path.read_bytes()

    def interrupt(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(av.VideoFrame, "from_ndarray", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_video(path, frames_of(1, 4))
    assert path.read_bytes() == before and os.listdir(tmp_path) == [path.name]


def test_a_missing_extra_says_how_to_get_it():
    with pytest.raises(ImportError, match=r"needs no_such_module, .* pip install 'elt_zoo\[data\]'"):
        optional_import("no_such_module")
