"""Small videos that tests write, with every kind of frame order that files have."""

from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.reformatter import Interpolation


def frames_of(seed: int, count: int, height: int = 48, width: int = 64) -> np.ndarray:
    """Smooth pictures of which no two are alike."""
    phase = np.random.default_rng(seed).uniform(0, 6, size=3)
    y, x = np.mgrid[:height, :width] / 16
    t = np.arange(count)[:, None, None, None]
    waves = np.sin(x[..., None] + phase + 0.3 * t) * np.cos(y[..., None] - 0.2 * t)
    return (127.5 + 110 * waves).astype(np.uint8)


def write_frames(
    path: Path,
    frames: np.ndarray,
    codec: str = "mpeg4",
    keyframe_every: int = 8,
    between: int = 0,
    options: dict[str, str] | None = None,
) -> None:
    """Writes a video with that many frames from keyframe to keyframe, and between those that others refer to."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, rate=25, options=options or {})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.gop_size = keyframe_every
        stream.codec_context.max_b_frames = between
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def decode_all(path: Path) -> np.ndarray:
    """Every frame from the first on, by PyAV alone."""
    flags = Interpolation.BILINEAR | Interpolation.FULL_CHR_H_INT | Interpolation.ACCURATE_RND
    with av.open(str(path)) as container:
        frames = [frame.reformat(format="rgb24", interpolation=flags) for frame in container.decode(video=0)]
    return np.stack([frame.to_ndarray() for frame in frames])
