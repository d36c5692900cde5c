import dataclasses


@dataclasses.dataclass(frozen=True)
class ClipTransform:
    """Which frames of a video make a clip, and how they are cropped. The default sizes are the paper's, 16 × 128 × 128.

    Nothing is random by default: the clip comes from the middle of the video, cropped at the centre. Train with
    `ClipTransform(random_start=True)`. Each choice draws its own numbers, so that turning one on or off leaves the
    others unchanged.

    **Arguments:**

    - `frames`: frames of the clip.
    - `stride`: 1 for consecutive frames, 2 for every other one, and so on.
    - `size`: height and width in pixels. The shorter side of the video is resized to it and the longer one is cropped.
    - `random_start`: begin the clip at a random frame, drawn again in every epoch.
    - `random_crop`: crop at a random position.
    - `flip`: mirror half of the clips. Some actions have a left and a right, and published video metrics compare with
      the data as it is.

    **Raises:** `ValueError` if a number is less than 1.
    """

    frames: int = 16
    stride: int = 1
    size: int = 128
    _: dataclasses.KW_ONLY
    random_start: bool = False
    random_crop: bool = False
    flip: bool = False

    def __post_init__(self):
        if min(self.frames, self.stride, self.size) < 1:
            raise ValueError(
                f"`ClipTransform(frames={self.frames}, stride={self.stride}, size={self.size})` must all be at least 1."
            )

    @property
    def span(self) -> int:
        """Number of frames of the video between the first and the last of the clip, both included."""
        return (self.frames - 1) * self.stride + 1
