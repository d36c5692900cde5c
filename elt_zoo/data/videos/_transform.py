import dataclasses


@dataclasses.dataclass(frozen=True)
class ClipTransform:
    """How a clip is taken from a video. The defaults are those of the paper's setting, 16 × 128 × 128.

    **Arguments:**

    - `frames`: of the clip.
    - `stride`: between two of them.
    - `size`: pixels of a side. The shorter side of the video is resized to it and the longer one is cut.
    - `random_start`: whether the clip begins anywhere, drawn anew each epoch, or lies in the middle of the video.
    - `random_crop`: whether the cut is drawn too, or lies in the middle.
    - `flip`: whether half of the clips are mirrored. Off by default: some actions have a side, and figures for video
      are compared with the data as it is.

    **Raises:** `ValueError` if a number is less than 1.
    """

    frames: int = 16
    stride: int = 1
    size: int = 128
    random_start: bool = True
    random_crop: bool = False
    flip: bool = False

    def __post_init__(self):
        if min(self.frames, self.stride, self.size) < 1:
            raise ValueError(
                f"`ClipTransform(frames={self.frames}, stride={self.stride}, size={self.size})` must all be at least 1."
            )

    @property
    def span(self) -> int:
        """Frames of the video from the first to the last of the clip."""
        return (self.frames - 1) * self.stride + 1
