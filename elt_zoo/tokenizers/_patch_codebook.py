import equinox as eqx
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Array, Float, Int

from .._checks import checked
from ..nn import look_up
from ._base import AbstractTokenizer, check_ids, check_shape


class PatchCodebook(AbstractTokenizer):
    """A codebook over the patches of small images, fitted by k-means: the smallest useful relative of a VQGAN.

    `encode` takes the nearest code of each patch (squared Euclidean distance, the lowest id of equals), `decode` puts
    the codes side by side.
    """

    codebook: Float[Array, "codes values"]
    shape: tuple[int, int, int] = eqx.field(static=True)
    patch_size: int = eqx.field(static=True)

    def __init__(self, codebook: Float[Array, "codes values"], shape: tuple[int, int, int], patch_size: int):
        """**Arguments:** `codebook`: one flat patch (rows, columns, channels) per code, pixels in [−1, 1]; `shape`:
        height, width and channels of the images; `patch_size`: pixels along both axes. See
        [`fit`][elt_zoo.tokenizers.PatchCodebook.fit] to get the codes from images.

        **Raises:** `ValueError` if patches do not divide the images or a code is not one patch.
        """
        height, width, channels = shape
        p = patch_size
        if p < 1 or height % p or width % p or codebook.shape[1] != p * p * channels:
            raise ValueError(
                f"`PatchCodebook` got codes of {codebook.shape[1]} values for patches of {p} × {p} × {channels} of "
                f"images of shape {shape}: a code is one patch, and patches must divide the image."
            )
        self.codebook = codebook
        self.shape = shape
        self.patch_size = patch_size

    @property
    def codebook_size(self) -> int:
        """K, the number of codes."""
        return self.codebook.shape[0]

    @property
    def grid(self) -> tuple[int, ...]:
        """Patches along height and width."""
        return (self.shape[0] // self.patch_size, self.shape[1] // self.patch_size)

    @classmethod
    @checked
    def fit(
        cls,
        images: Float[np.ndarray, "examples height width channels"],
        *,
        codebook_size: int = 128,
        patch_size: int = 2,
        seed: int = 0,
    ) -> "PatchCodebook":
        """Fits the codes to all patches of `images` by k-means (scikit-learn), the same for the same seed.

        **Arguments:** `images`: pixels in [−1, 1]; `codebook_size`: K; `patch_size`: pixels along both axes; `seed`.

        **Raises:** `ValueError` if patches do not divide the images or there are fewer patches than codes.
        """
        from sklearn.cluster import KMeans

        height, width = images.shape[1:3]
        if patch_size < 1 or height % patch_size or width % patch_size:
            raise ValueError(
                f"`PatchCodebook.fit(patch_size={patch_size})`: such patches do not divide images of {height} × "
                f"{width}."
            )
        patches = rearrange(
            np.asarray(images, np.float64), "n (h p) (w q) c -> (n h w) (p q c)", p=patch_size, q=patch_size
        )
        if not 1 <= codebook_size <= len(patches):
            raise ValueError(
                f"`PatchCodebook.fit(codebook_size={codebook_size})` needs 1 to {len(patches)} codes, as many as there "
                "are patches. Use fewer codes or more images."
            )
        codes = KMeans(codebook_size, n_init="auto", random_state=seed).fit(patches).cluster_centers_
        return cls(jnp.asarray(codes, jnp.float32), images.shape[1:], patch_size)

    @checked
    def encode(self, image: Float[Array, "height width channels"]) -> Int[Array, "rows columns"]:
        """**Arguments:** `image`: pixels in [−1, 1]. **Returns:** ids in [0, K). **Raises:** `ValueError` for another
        shape.
        """
        check_shape("PatchCodebook.encode", "an image", image.shape, self.shape)
        p = self.patch_size
        patches = rearrange(image.astype(jnp.float32), "(h p) (w q) c -> h w (p q c)", p=p, q=p)
        # Differences and not a matrix product, which accelerators may round enough to prefer another code.
        distances = jnp.sum(jnp.square(patches[:, :, None, :] - self.codebook[None, None, :, :]), axis=-1)
        return jnp.argmin(distances, axis=-1).astype(jnp.int32)

    @checked
    def decode(self, ids: Int[Array, "rows columns"]) -> Float[Array, "height width channels"]:
        """**Arguments:** `ids` in [0, K). **Returns:** the image.

        **Raises:** `ValueError` for another grid or an id out of range; where ids are traced, NaN stands for what
        they would have shown.
        """
        check_shape("PatchCodebook.decode", "ids", ids.shape, self.grid)
        check_ids("PatchCodebook.decode", ids, self.codebook_size)
        p = self.patch_size
        return rearrange(look_up(self.codebook, ids), "h w (p q c) -> (h p) (w q) c", p=p, q=p)
