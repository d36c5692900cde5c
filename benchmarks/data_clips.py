"""Clips from video files, beside PyAV: the section `clips` of `data.py`.

Both sides draw clips of 16 frames anywhere in a file, resize the shorter side to 128, cut the middle and stack batches.
The DataLoader decodes from the first frame of the file on, as one writes it first, or from the keyframe before the
clip, as we do; it stops after the last frame, converts with `to_ndarray` and resizes with OpenCV.
"""

import itertools
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import torch  # pyright: ignore[reportMissingImports]
from throughput import compare_streams, endless

from elt_zoo.data import ClipTransform, MovingDigits, VideoSource, training_batches, video_folder, write_ucf101

FRAMES, SIZE = 16, 128
BATCH = 8


class WideDigits(MovingDigits):
    """Moving digits with black sides, 240 × 320."""

    def read(self, visit):
        clip = super().read(visit)
        return type(clip)(np.pad(clip.clips, ((0, 0), (0, 0), (40, 40), (0, 0))), clip.labels)


def make_videos(root: Path, count: int = 48, frames: int = 180) -> Path:
    """Files like those of UCF-101: 320 × 240, 25 frames a second, about seven seconds."""
    digits = WideDigits("train", frames=frames, size=240, length=count)
    write_ucf101(root, digits, WideDigits("heldout", frames=frames, size=240, length=1))
    return root / "UCF-101"


class PyAVClips(torch.utils.data.Dataset):
    """The same files, read as PyTorch's users read them."""

    def __init__(self, source: VideoSource, *, seek: bool):
        self.seek = seek
        self.paths = [source.name(index) for index in range(len(source))]
        self.labels = [source.label(index) for index in range(len(source))]
        self.counts = []
        for path in self.paths:
            with av.open(path) as container:
                self.counts.append(container.streams.video[0].frames)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        start = int(torch.randint(self.counts[index] - FRAMES + 1, ()))
        frames = [_resize_and_cut(frame) for frame in _clip(self.paths[index], start, self.seek)]
        return torch.from_numpy(np.stack(frames)), self.labels[index]


def _clip(path: str, start: int, seek: bool) -> Iterator[np.ndarray]:
    with av.open(path) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        frames, skip = container.decode(stream), start
        if seek:
            # For a constant frame rate, which UCF-101 and the files made here have.
            assert stream.average_rate is not None and stream.time_base is not None
            ticks, begin = 1 / (stream.average_rate * stream.time_base), stream.start_time or 0
            container.seek(round(begin + start * ticks), stream=stream)
            keyframe = next(frames)
            assert keyframe.pts is not None
            frames, skip = itertools.chain([keyframe], frames), start - round((keyframe.pts - begin) / ticks)
        for frame in itertools.islice(frames, skip, skip + FRAMES):
            yield frame.to_ndarray(format="rgb24")


def _resize_and_cut(frame: np.ndarray) -> np.ndarray:
    height, width = frame.shape[:2]
    factor = SIZE / min(height, width)
    size = (round(factor * width), round(factor * height))
    frame = cv2.resize(frame, size, interpolation=cv2.INTER_AREA)
    top, left = (size[1] - SIZE) // 2, (size[0] - SIZE) // 2
    return frame[top : top + SIZE, left : left + SIZE]


def rows(root: Path | None = None, *, batches: int = 4, rounds: int) -> list[dict[str, Any]]:
    """A row for each way to decode. **Arguments:** `root`: a folder of class folders; by default videos are made."""
    with tempfile.TemporaryDirectory() as scratch:
        root = make_videos(Path(scratch)) if root is None else root
        # The index is kept apart, so that nothing is written beside the user's data.
        source = video_folder(
            root, ClipTransform(FRAMES, size=SIZE, random_start=True), cache=Path(scratch) / "index.json"
        )
        return [_row(source, seek, batches, rounds) for seek in (False, True)]


def _row(source: VideoSource, seek: bool, batches: int, rounds: int) -> dict[str, Any]:
    loader = torch.utils.data.DataLoader(PyAVClips(source, seek=seek), BATCH, shuffle=True, drop_last=True)
    ours = training_batches(source, batch_size=BATCH, seed=0, workers=0)
    case = f"clips, {FRAMES} × {SIZE} × {SIZE}{', DataLoader seeks' if seek else ''}"
    return compare_streams(case, ours, endless(loader), batches=batches, batch_size=BATCH, rounds=rounds)
