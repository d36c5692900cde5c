import copy
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from .._batches import Clips
from .._messages import some
from .._source import AbstractSource, DataError, UnreadableExample, Visit
from ._decode import Cut, read_frames
from ._index import index_videos
from ._transform import ClipTransform


class VideoSource(AbstractSource):
    """A source of [`Clips`][elt_zoo.data.Clips] from video files: one clip per file and epoch.

    [`ucf101`][elt_zoo.data.ucf101] and [`video_folder`][elt_zoo.data.video_folder] make one from a folder.
    """

    def __init__(
        self,
        root: str | os.PathLike,
        files: Sequence[str],
        labels: Sequence[int],
        class_names: Sequence[str],
        transform: ClipTransform | None = None,
        *,
        cache: str | os.PathLike | None = None,
        on_progress: Callable[[int, int], None] | None = None,
    ):
        """**Arguments:**

        - `root`, `files`: a folder, and paths of videos below it.
        - `labels`, `class_names`: the class of each file, and the names of the classes.
        - `transform`: how clips are taken and cropped, by default `ClipTransform()`.
        - `cache`: the file that keeps the lengths of the videos. Default: `.elt_zoo_videos.json` in `root`, or in the
          user's cache folder (`$XDG_CACHE_HOME/elt_zoo`) if `root` cannot be written to.
        - `on_progress`: called during the first scan with the number of videos read, and of those to read.

        **Raises:** `DataError` if there are no files or some are missing. `ValueError` if there is not one label per
        file.
        """
        if len(files) != len(labels):
            raise ValueError(f"`VideoSource` got {len(files)} files and {len(labels)} labels; it needs one label each.")
        self.root = Path(root)
        if not files:
            raise DataError(f"There are no videos to read from {self.root}: the list of files is empty.")
        missing = [file for file in files if not os.path.isfile(self.root / file)]
        if missing:
            raise DataError(
                f"{len(missing)} of the {len(files)} videos wanted are not in {self.root}: {some(missing)}. Complete "
                "the data, or leave them out of the list."
            )
        self.files = tuple(files)
        self.class_names = tuple(class_names)
        self.transform = ClipTransform() if transform is None else transform
        self._labels = np.asarray(labels, np.int32)
        self._index = index_videos(root, files, cache=cache, on_progress=on_progress)

    def __len__(self) -> int:
        return len(self.files)

    def with_transform(self, transform: ClipTransform) -> "VideoSource":
        """Returns the same videos with another transform."""
        other = copy.copy(self)
        other.transform = transform
        return other

    def label(self, index: int) -> int:
        """Returns the label of a video, without reading it."""
        return int(self._labels[index])

    def name(self, index: int) -> str:
        """Returns the path of a video."""
        return str(self.root / self.files[index])

    def read(self, visit: Visit) -> Clips:
        """Returns one clip, decided by the visit alone. **Raises:** `UnreadableExample`."""
        info, transform = self._index[visit.index], self.transform
        if isinstance(info, str):
            raise UnreadableExample(info)
        if info.frames < transform.span:
            raise UnreadableExample(
                f"has {info.frames} frames; a clip of {transform.frames} at stride {transform.stride} needs "
                f"{transform.span}"
            )
        # All is drawn, used or not: switching one choice on then leaves the others as they were.
        start, top, left, mirrored = visit.rng().random(4)
        starts = info.frames - transform.span + 1
        clip = read_frames(
            self.root / self.files[visit.index],
            info,
            start=int(start * starts) if transform.random_start else starts // 2,
            count=transform.frames,
            stride=transform.stride,
            cut=Cut(transform.size, top, left) if transform.random_crop else Cut(transform.size),
        )
        if transform.flip and mirrored < 0.5:
            clip = np.ascontiguousarray(clip[:, :, ::-1])
        return Clips(clip, self._labels[visit.index])
