import contextlib
import itertools
import os
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8

from ..._checks import checked
from ..._optional import optional_import
from .._source import UnreadableExample


class VideoInfo(NamedTuple):
    """Properties of a video that are needed to read frames by number."""

    frames: int
    height: int
    width: int
    rate: float
    times: Sequence[int] | None
    """Time of each frame in ticks of the stream; `None` if the file does not say it reliably."""


class Cut(NamedTuple):
    """A square crop of `size` pixels, after the shorter side of the frame is resized to `size`.

    `top` and `left` are its position, as fractions of the possible offsets.
    """

    size: int
    top: float = 0.5
    left: float = 0.5


def probe_video(path: str | os.PathLike) -> VideoInfo:
    """Decodes a video once, to learn how many frames it has and when each is shown.

    Headers and packets do not tell: some packets hold no frame and others two, and AVI stores no times.

    **Raises:** `UnreadableExample` if the file is not a video or is damaged anywhere.
    """
    with _open(path) as (container, stream):
        times = [frame.pts for frame in container.decode(stream)]
        if not times:
            raise UnreadableExample("has no video frames")
        # MPEG's own containers time packets and not frames; what follows a seek there is guessed.
        exact = not container.format.flags & optional_import("av.format").Flags.ts_discont.value
        codec, rate = stream.codec_context, float(stream.average_rate or 0)
        return VideoInfo(len(times), codec.height, codec.width, rate, _trusted(times) if exact else None)


@checked
def read_frames(
    path: str | os.PathLike, info: VideoInfo, *, start: int, count: int, stride: int = 1, cut: Cut | None = None
) -> UInt8[np.ndarray, "count height width 3"]:
    """Reads the frames `start`, `start + stride`, … of a video as RGB.

    Decoding begins at the last keyframe before them if the file says where that is, else at the first frame, and ends
    with the last of them. Only frames that are kept are converted and resized.

    **Arguments:** `path`; `info`: from `probe_video`; `start`, `count`, `stride`; `cut`: the crop, by default none.

    **Raises:** `UnreadableExample` if the frames cannot be decoded. `ValueError` if the video is not that long.
    """
    wanted = range(start, start + count * stride, stride)
    if start < 0 or count < 1 or stride < 1 or wanted[-1] >= info.frames:
        raise ValueError(
            f"`read_frames(start={start}, count={count}, stride={stride})` needs frames {start} to "
            f"{start + (count - 1) * stride}; {os.fspath(path)} has 0 to {info.frames - 1}."
        )
    with _open(path) as (container, stream):
        convert = _Converter(info, cut)
        frames = _seek_frames(container, stream, info.times, wanted, convert) if start and info.times else None
    if frames is None:
        with _open(path) as (container, stream):
            frames = _first_frames(container, stream, wanted, convert)
    return np.stack(frames)


def _trusted(times: list[int | None]) -> Sequence[int] | None:
    """Returns the times if they increase, else `None`: AVI may give reordered frames times that do not."""
    known = [time for time in times if time is not None]
    if len(known) < len(times) or any(later <= earlier for earlier, later in itertools.pairwise(known)):
        return None
    even = range(known[0], known[-1] + 1, max(1, (known[-1] - known[0]) // max(1, len(known) - 1)))
    return even if list(even) == known else known


@contextlib.contextmanager
def _open(path: str | os.PathLike) -> Iterator[tuple[Any, Any]]:
    """Opens a container and its first video stream. Errors of the codec become `UnreadableExample`."""
    av = optional_import("av")
    try:
        with av.open(os.fspath(path)) as container:
            if not container.streams.video:
                raise UnreadableExample("has no video stream")
            stream = container.streams.video[0]
            # The pipeline reads several files at once, which wastes nothing; threads within a small frame do.
            stream.codec_context.thread_count = 1
            yield container, stream
    except (av.FFmpegError, OSError) as error:
        raise UnreadableExample(_reason(path, error)) from error


def _reason(path: str | os.PathLike, error: Exception) -> str:
    """Says what is wrong with a file in plain words, where that is known."""
    if not os.path.exists(path):
        return "is missing"
    if os.path.getsize(path) == 0:
        return "is empty (0 bytes)"
    return f"cannot be decoded ({getattr(error, 'strerror', None) or error})"


class _Converter:
    """Converts decoded frames to RGB, resized and cropped. Keeps the scaler's tables between frames."""

    def __init__(self, info: VideoInfo, cut: Cut | None):
        scaling = optional_import("av.video.reformatter")
        self._scaler = scaling.VideoReformatter()
        # The bilinear filter of swscale widens when it shrinks, so nothing aliases. Without the other two flags all
        # pixels come out up to two levels of 255 too dark.
        flags = scaling.Interpolation
        self._filter = flags.BILINEAR | flags.FULL_CHR_H_INT | flags.ACCURATE_RND
        height, width = info.height, info.width
        if cut is not None:
            factor = cut.size / min(height, width)
            height, width = max(cut.size, round(factor * height)), max(cut.size, round(factor * width))
        self._height, self._width = height, width
        top, left = (
            (0, 0) if cut is None else (round(cut.top * (height - cut.size)), round(cut.left * (width - cut.size)))
        )
        size = (height, width) if cut is None else (cut.size, cut.size)
        self._window = (slice(top, top + size[0]), slice(left, left + size[1]))

    def __call__(self, frame: Any) -> np.ndarray:
        frame = self._scaler.reformat(frame, self._width, self._height, "rgb24", interpolation=self._filter, threads=1)
        return frame.to_ndarray()[self._window]


def _seek_frames(container: Any, stream: Any, times: Sequence[int], wanted: range, convert: _Converter) -> list | None:
    """Reads frames from the keyframe before them on. Returns `None` if one of them is not met."""
    container.seek(times[wanted[0]], stream=stream)
    expected = [times[index] for index in wanted]
    frames: list[np.ndarray] = []
    whole = False
    for frame in container.decode(stream):
        # Frames that are shown before the first keyframe refer to some that were never read.
        whole = whole or frame.key_frame
        if frame.pts is None or frame.pts > expected[len(frames)]:
            return None
        if whole and frame.pts == expected[len(frames)]:
            frames.append(convert(frame))
            if len(frames) == len(wanted):
                return frames
    return None


def _first_frames(container: Any, stream: Any, wanted: range, convert: _Converter) -> list:
    """Reads frames by counting from the first."""
    frames = []
    for index, frame in enumerate(container.decode(stream)):
        if index in wanted:
            frames.append(convert(frame))
            if len(frames) == len(wanted):
                return frames
    raise UnreadableExample(f"ends early: {len(frames)} of the {len(wanted)} frames of a clip could be decoded")
