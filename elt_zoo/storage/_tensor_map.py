"""Tables that say where every tensor of a published file goes in one of our modules."""

import dataclasses
from collections.abc import Iterable

import numpy as np
from einops import rearrange

LINEAR = "inputs outputs -> outputs inputs"
"""Layout of Flax's linear kernels; PyTorch's are ours."""
CONV_2D = "outputs inputs height width -> height width inputs outputs"
"""Layout of PyTorch's two-dimensional convolutions; Flax's are ours."""

CONV_3D = "outputs inputs time height width -> time height width inputs outputs"
"""Layout of PyTorch's three-dimensional convolutions; Flax's are ours."""


@dataclasses.dataclass(frozen=True)
class Placement:
    """One tensor of a file and the place in our tree that it fills.

    **Fields:**

    - `source`: the tensor's name in the file.
    - `target`: attribute path of a leaf, such as `encoder.norm_out.weight`.
    - `layout`: how its axes become ours, in einops' notation; empty if they are the same.
    - `region`: the part of the leaf that it fills, as indices and slices of the leading axes; empty for all of it. The
      layers of a trunk are stacked, so those of layer i fill the region `(i,)`.
    - `sizes`: sizes that `layout` cannot tell by itself, such as `(("heads", 16),)`.
    """

    source: str
    target: str
    layout: str = ""
    region: tuple[int | slice, ...] = ()
    sizes: tuple[tuple[str, int], ...] = ()

    def arranged(self, tensor: np.ndarray) -> np.ndarray:
        """The file's tensor with our axes; a view where that is possible."""
        return rearrange(tensor, self.layout, **dict(self.sizes)) if self.layout else tensor

    def source_shape(self, region_shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape that the file's tensor must have to fill a region of the given shape."""
        if not self.layout:
            return region_shape
        before, after = self.layout.split(" -> ")
        # No memory behind it: only its shape is wanted.
        target = np.broadcast_to(np.zeros((), np.int8), region_shape)
        return rearrange(target, f"{after} -> {before}", **dict(self.sizes)).shape


def prefixed(rows: Iterable[Placement], source: str, target: str) -> list[Placement]:
    """The rows of a part, put in their place: both names get a prefix (given with its separator)."""
    return [dataclasses.replace(row, source=source + row.source, target=target + row.target) for row in rows]
