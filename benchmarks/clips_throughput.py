"""Clips per second from video files, beside a torch DataLoader that decodes with PyAV.

    python benchmarks/clips_throughput.py --csv clips.csv

Both sides read the same files in a random order, draw clips of 16 frames anywhere in them, resize the shorter side to
128, cut the middle and stack batches, in this process alone, without workers. The figures are clips per second of
processor time, that is per core: the wall clock would favour the side whose scaler starts threads of its own.

The DataLoader does what one writes first: decode from the first frame on, stop after the last, convert with
`to_ndarray`, resize with OpenCV. Without `--videos` the files are moving digits at UCF-101's size and length, written
by this script. A third column has our pipeline with a thread for each core, by the wall clock.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from timing import write_csv

from elt_zoo.data import ClipTransform, MovingDigits, VideoSource, training_batches, video_folder, write_ucf101

_FRAMES, _SIZE = 16, 128


class _Wide(MovingDigits):
    """Moving digits with black sides, 240 × 320."""

    def read(self, visit):
        clip = super().read(visit)
        return type(clip)(np.pad(clip.clips, ((0, 0), (0, 0), (40, 40), (0, 0))), clip.labels)


def write_files(root: Path, count: int, frames: int = 180) -> None:
    """Files like those of UCF-101: 320 × 240, 25 frames a second, about seven seconds."""
    digits = _Wide("train", frames=frames, size=240, length=count)
    write_ucf101(root, digits, _Wide("heldout", frames=frames, size=240, length=1))


def baseline_batches(files: list[Path], labels: list[int], batch_size: int) -> Iterator[Any]:
    """The DataLoader's batches, without end."""
    import av
    import cv2
    import torch  # pyright: ignore[reportMissingImports]

    def frames_of(path: Path, start: int) -> Iterator[np.ndarray]:
        with av.open(str(path)) as container:
            container.streams.video[0].codec_context.thread_count = 1
            for index, frame in enumerate(container.decode(video=0)):
                if index >= start:
                    yield frame.to_ndarray(format="rgb24")
                if index == start + _FRAMES - 1:
                    return

    counts = []
    for path in files:
        with av.open(str(path)) as container:
            counts.append(container.streams.video[0].frames)

    class Dataset(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return len(files)

        def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
            start = int(torch.randint(counts[index] - _FRAMES + 1, ()))
            clip = []
            for frame in frames_of(files[index], start):
                height, width = frame.shape[:2]
                factor = _SIZE / min(height, width)
                size = (round(factor * width), round(factor * height))
                frame = cv2.resize(frame, size, interpolation=cv2.INTER_AREA)
                top, left = (size[1] - _SIZE) // 2, (size[0] - _SIZE) // 2
                clip.append(frame[top : top + _SIZE, left : left + _SIZE])
            return torch.from_numpy(np.stack(clip)), labels[index]

    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    loader = torch.utils.data.DataLoader(Dataset(), batch_size, shuffle=True, drop_last=True, num_workers=0)
    while True:
        yield from loader


def rows(videos: Path | None = None, *, batch_size: int = 8, batches: int = 4, rounds: int = 7) -> list[dict[str, Any]]:
    """One row of clips per second and core: medians of interleaved rounds, and the quartiles of their ratio.

    **Arguments:** `videos`: a folder with a folder for each class; by default files are written for the occasion.
    """
    with tempfile.TemporaryDirectory() as scratch:
        if videos is None:
            write_files(Path(scratch), count=48)
            videos = Path(scratch) / "UCF-101"
        # The index is kept apart, so that nothing is written beside the user's data.
        source = video_folder(videos, ClipTransform(_FRAMES, size=_SIZE), cache=Path(scratch) / "index.json")
        return [_row(source, batch_size, batches, rounds)]


def _row(source: VideoSource, batch_size: int, batches: int, rounds: int) -> dict[str, Any]:
    ours = training_batches(source, batch_size=batch_size, seed=0, workers=0)
    files = [Path(source.name(index)) for index in range(len(source))]
    baseline = baseline_batches(files, [source.label(index) for index in range(len(source))], batch_size)
    sides: dict[str, Callable] = {"ours": lambda: next(ours), "torch": lambda: next(baseline)}

    def rate(side: str, clock: Callable[[], float] = time.process_time) -> float:
        start = clock()
        for _ in range(batches):
            sides[side]()
        return batches * batch_size / (clock() - start)

    for side in sides:  # warm caches
        rate(side)
    measured = {side: [] for side in sides}
    for index in range(rounds):
        for side in sorted(sides, reverse=bool(index % 2)):
            measured[side].append(rate(side))
    ratios = sorted(mine / theirs for mine, theirs in zip(measured["ours"], measured["torch"], strict=True))
    # Threads work ahead, and would do so while the other side is timed: they come last, over more batches.
    threaded = training_batches(source, batch_size=batch_size, seed=0)
    sides["threads"] = lambda: next(threaded)
    batches *= rounds
    rate("threads")
    with_threads = rate("threads", time.perf_counter)
    threaded.close()  # or it would read on
    return {
        "clips": len(files),
        "batch_size": batch_size,
        "rounds": rounds,
        "ours_clips_per_core_s": statistics.median(measured["ours"]),
        "torch_clips_per_core_s": statistics.median(measured["torch"]),
        "ratio": statistics.median(ratios),
        "ratio_low": ratios[len(ratios) // 4],
        "ratio_high": ratios[(3 * len(ratios)) // 4],
        "threads": os.cpu_count(),
        "threads_clips_per_s": with_threads,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=Path, help="a folder with a folder of videos for each class")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--csv", type=Path)
    arguments = parser.parse_args()
    measured = rows(arguments.videos, rounds=arguments.rounds)
    for row in measured:
        for name, value in row.items():
            print(f"{name:24}{value:12.2f}" if isinstance(value, float) else f"{name:24}{value:9}")
    write_csv(arguments.csv, measured)


if __name__ == "__main__":
    main()
