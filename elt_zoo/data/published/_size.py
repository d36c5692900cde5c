import numpy as np
from jaxtyping import UInt8

from .._source import DataError


def resized(
    images: UInt8[np.ndarray, "examples side side channels"], size: int | None, call: str, *, border: bool = False
) -> UInt8[np.ndarray, "examples size size channels"]:
    """Square images at another size: averaged over blocks of pixels, or with a black border.

    **Arguments:**

    - `images`: bytes.
    - `size`: height and width of the result; `None` for the images as they are.
    - `call`: for messages.
    - `border`: whether a border is allowed, to at most twice the size.

    **Raises:** `DataError` for a size that is not reached so.
    """
    side = images.shape[1]
    if size is None or size == side:
        return images
    if 1 <= size < side and side % size == 0:
        block = side // size
        blocks = images.reshape(len(images), size, block, size, block, images.shape[-1])
        total = blocks.sum((2, 4), dtype=np.uint32)
        return ((total + block**2 // 2) // block**2).astype(np.uint8)
    if border and side < size <= 2 * side:
        before = (size - side) // 2
        after = size - side - before
        return np.pad(images, ((0, 0), (before, after), (before, after), (0, 0)))
    smaller = [divisor for divisor in range(side - 1, 0, -1) if side % divisor == 0]
    larger = f", or up to {2 * side} for a black border" if border else ""
    raise DataError(
        f"{call}: its images have {side} × {side} pixels and cannot have {size} × {size}. Use {side}, a divisor to "
        f"average pixels ({', '.join(map(str, smaller))}){larger}."
    )
