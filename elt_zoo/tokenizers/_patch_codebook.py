import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from .._checks import checked
from ..nn import look_up
from ._base import AbstractTokenizer, check_ids, check_shape


class PatchCodebook(AbstractTokenizer):
    """A codebook over the patches of small images or clips, fitted by k-means: the smallest useful relative of a VQGAN.

    `encode` takes the nearest code of each patch (squared Euclidean distance, the lowest id of equals), `decode` puts
    the codes side by side.
    """

    codebook: Float[Array, "codes values"]
    shape: tuple[int, ...] = eqx.field(static=True)
    patch_size: int = eqx.field(static=True)
    patch_frames: int = eqx.field(static=True)

    def __init__(
        self, codebook: Float[Array, "codes values"], shape: tuple[int, ...], patch_size: int, *, patch_frames: int = 1
    ):
        """**Arguments:**

        - `codebook`: one flat patch ([frames,] rows, columns, channels) per code, pixels in [−1, 1].
        - `shape`: height, width and channels of the images, or frames, height, width and channels of the clips.
        - `patch_size`: pixels along height and width.
        - `patch_frames`: of clips, the frames of a patch.

        See [`fit`][elt_zoo.tokenizers.PatchCodebook.fit] to get the codes from images.

        **Raises:** `ValueError` if patches do not divide the images or a code is not one patch.
        """
        patch = _patch(shape, patch_size, patch_frames)
        sizes = (*patch, shape[-1])
        if not _divides(patch, shape) or codebook.shape[1] != np.prod(sizes):
            raise ValueError(
                f"`PatchCodebook` got codes of {codebook.shape[1]} values for patches of "
                f"{' × '.join(map(str, sizes))} of images of shape {shape}: a code is one patch, and patches must "
                "divide the image."
            )
        self.codebook = codebook
        self.shape = shape
        self.patch_size = patch_size
        self.patch_frames = patch_frames

    @property
    def codebook_size(self) -> int:
        """K, the number of codes."""
        return self.codebook.shape[0]

    @property
    def grid(self) -> tuple[int, ...]:
        """Patches along height and width, of clips along time before."""
        patch = _patch(self.shape, self.patch_size, self.patch_frames)
        return tuple(size // part for size, part in zip(self.shape[:-1], patch, strict=True))

    @classmethod
    @checked
    def fit(
        cls,
        images: Float[np.ndarray, "examples *pixels channels"],
        *,
        codebook_size: int = 128,
        patch_size: int = 2,
        patch_frames: int = 1,
        seed: int = 0,
    ) -> "PatchCodebook":
        """Fits the codes to all patches of `images` by k-means (scikit-learn), the same for the same seed.

        **Arguments:** `images`: images or clips, pixels in [−1, 1]; `codebook_size`: K; `patch_size`, `patch_frames`:
        as for the class; `seed`.

        **Raises:** `ValueError` if patches do not divide the images or there are fewer patches than codes.
        """
        from sklearn.cluster import KMeans

        shape = images.shape[1:]
        patch = _patch(shape, patch_size, patch_frames)
        if not _divides(patch, shape):
            raise ValueError(
                f"`PatchCodebook.fit(patch_size={patch_size})`: patches of {' × '.join(map(str, patch))} do not divide "
                f"images of {' × '.join(map(str, shape[:-1]))}."
            )
        patches = _split(np.asarray(images, np.float64), patch)
        patches = patches.reshape(-1, patches.shape[-1])
        if not 1 <= codebook_size <= len(patches):
            raise ValueError(
                f"`PatchCodebook.fit(codebook_size={codebook_size})` needs 1 to {len(patches)} codes, as many as there "
                "are patches. Use fewer codes or more images."
            )
        codes = KMeans(codebook_size, n_init="auto", random_state=seed).fit(patches).cluster_centers_
        return cls(jnp.asarray(codes, jnp.float32), shape, patch_size, patch_frames=patch_frames)

    @checked
    def encode(self, image: Float[Array, "*pixels channels"]) -> Int[Array, "*grid"]:
        """**Arguments:** `image`: an image or a clip, pixels in [−1, 1]. **Returns:** ids in [0, K).

        **Raises:** `ValueError` for another shape.
        """
        check_shape("PatchCodebook.encode", "an image", image.shape, self.shape)
        patches = _split(image.astype(jnp.float32), _patch(self.shape, self.patch_size, self.patch_frames))
        # Differences and not a matrix product, which accelerators may round enough to prefer another code.
        flat = jnp.reshape(patches, (-1, patches.shape[-1]))
        distances = jnp.sum(jnp.square(flat[:, None, :] - self.codebook[None, :, :]), axis=-1)
        return jnp.reshape(jnp.argmin(distances, axis=-1).astype(jnp.int32), self.grid)

    @checked
    def decode(self, ids: Int[Array, "*grid"]) -> Float[Array, "*pixels channels"]:
        """**Arguments:** `ids` in [0, K). **Returns:** the image or clip.

        **Raises:** `ValueError` for another grid or an id out of range; where ids are traced, NaN stands for what
        they would have shown.
        """
        check_shape("PatchCodebook.decode", "ids", ids.shape, self.grid)
        check_ids("PatchCodebook.decode", ids, self.codebook_size)
        patch = _patch(self.shape, self.patch_size, self.patch_frames)
        axes = len(patch)
        codes = jnp.reshape(look_up(self.codebook, ids), (*self.grid, *patch, self.shape[-1]))
        pairs = [axis for pair in zip(range(axes), range(axes, 2 * axes), strict=True) for axis in pair]
        return jnp.reshape(jnp.transpose(codes, (*pairs, 2 * axes)), self.shape)


def _patch(shape: tuple[int, ...], size: int, frames: int) -> tuple[int, ...]:
    """A patch of images or clips of this shape, along each axis but the channels."""
    return (frames, size, size) if len(shape) == 4 else (size, size)


def _divides(patch: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    sizes = shape[:-1]
    if len(patch) != len(sizes):
        return False
    return all(part >= 1 and not size % part for part, size in zip(patch, sizes, strict=True))


def _split(images: Array | np.ndarray, patch: tuple[int, ...]) -> Array | np.ndarray:
    """Pixels (…, *sizes, channels) → patches (…, *grid, values)."""
    axes = len(patch)
    before, sizes, channels = images.shape[: -axes - 1], images.shape[-axes - 1 : -1], images.shape[-1]
    grid = tuple(size // part for size, part in zip(sizes, patch, strict=True))
    parts = images.reshape(*before, *(n for pair in zip(grid, patch, strict=True) for n in pair), channels)
    first = len(before)
    order = [*range(first), *range(first, first + 2 * axes, 2), *range(first + 1, first + 2 * axes, 2)]
    return parts.transpose(*order, first + 2 * axes).reshape(*before, *grid, -1)
