import os
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from ..._checks import checked
from ..._optional import optional_import
from ...storage import atomic_write
from .._batches import Clips
from .._source import AbstractSource, Visit
from ._ucf101 import LIST_FOLDER, VIDEO_FOLDER

_CODECS = {".avi": ("mpeg4", {"qmin": "1", "qmax": "3"}), ".mp4": ("libx264", {"crf": "15"})}
_CLIPS_PER_GROUP = 7  # as in UCF-101, whose groups are cut from one video each


@checked
def write_video(
    path: str | os.PathLike, frames: UInt8[np.ndarray, "frames height width 3"], *, rate: float = 25.0
) -> None:
    """Writes RGB frames as a video, with little loss.

    **Arguments:**

    - `path`: ends in `.mp4` (H.264), `.avi` (MPEG-4) or `.gif`.
    - `frames`: bytes 0 to 255.
    - `rate`: frames per second. GIF rounds the time of a frame to hundredths of a second, and merges equal frames.

    **Raises:** `ValueError` for another ending, no frames, or an odd height or width, which only GIF can store.
    `OSError` in one line if the file cannot be written.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in (*_CODECS, ".gif"):
        raise ValueError(f"`write_video({str(path)!r})`: the name must end in {', '.join(_CODECS)} or .gif.")
    if not len(frames) or rate <= 0:
        raise ValueError(f"`write_video(rate={rate})` got {len(frames)} frames; it needs some, and a positive rate.")
    height, width = frames.shape[1:3]
    if suffix != ".gif" and (height % 2 or width % 2):
        raise ValueError(f"`write_video` got {height} × {width} pixels; {suffix} needs an even height and width.")
    with atomic_write(path) as file:
        if suffix == ".gif":
            _write_gif(file, frames, rate)
        else:
            _write_stream(file, frames, rate, *_CODECS[suffix])


def write_ucf101(
    root: str | os.PathLike, train: AbstractSource, test: AbstractSource, *, rate: float = 25.0, seed: int = 0
) -> None:
    """Writes the clips of two sources in the layout of UCF-101, with the lists of one fold, so that
    [`ucf101`][elt_zoo.data.ucf101] can read them.

    **Arguments:**

    - `root`: a folder, created if missing.
    - `train`, `test`: sources of [`Clips`][elt_zoo.data.Clips], such as [`MovingDigits`][elt_zoo.data.MovingDigits].
    - `rate`: frames per second.
    - `seed`: of the sources' visits.

    **Raises:** `ValueError` if the sources have different classes, or names that the lists cannot hold.
    """
    if train.class_names != test.class_names:
        raise ValueError(
            f"`write_ucf101` got sources of different classes: {train.class_names[:3]}… and {test.class_names[:3]}…."
        )
    names = train.class_names
    unfit = [name for name in names if "/" in name or len(name.split()) != 1]
    if unfit:
        raise ValueError(f"`write_ucf101` got classes named {unfit[:3]}; the names must be words without '/'.")
    root = Path(root)
    lists = root / LIST_FOLDER
    lists.mkdir(parents=True, exist_ok=True)
    (lists / "classInd.txt").write_text("".join(f"{number} {name}\n" for number, name in enumerate(names, start=1)))
    counts = [0] * len(names)
    trained = [f"{file} {label + 1}\n" for file, label in _write_clips(root, train, counts, rate, seed)]
    tested = [f"{file}\n" for file, _ in _write_clips(root, test, counts, rate, seed)]
    (lists / "trainlist01.txt").write_text("".join(trained))
    (lists / "testlist01.txt").write_text("".join(tested))


def _write_clips(
    root: Path, source: AbstractSource, counts: list[int], rate: float, seed: int
) -> Iterator[tuple[str, int]]:
    """Writes one clip after the other and yields its file and label. `counts`: the clips of each class so far."""
    for index in range(len(source)):
        example: Clips = source.read(Visit(index, seed=seed))
        label = int(example.labels)
        name = source.class_names[label]
        group, member = divmod(counts[label], _CLIPS_PER_GROUP)
        counts[label] += 1
        file = f"{name}/v_{name}_g{group + 1:02}_c{member + 1:02}.avi"
        (root / VIDEO_FOLDER / name).mkdir(parents=True, exist_ok=True)
        write_video(root / VIDEO_FOLDER / file, np.asarray(example.clips), rate=rate)
        yield file, label


def _write_stream(path: Path, frames: np.ndarray, rate: float, codec: str, options: dict[str, Any]) -> None:
    av = optional_import("av")
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=Fraction(rate).limit_denominator(1001), options=options)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        container.mux(stream.encode())


def _write_gif(path: Path, frames: np.ndarray, rate: float) -> None:
    image = optional_import("PIL.Image")
    first, *rest = [image.fromarray(frame).quantize(256, dither=image.Dither.NONE) for frame in frames]
    first.save(path, save_all=True, append_images=rest, duration=max(10, 10 * round(100 / rate)), loop=0)
