import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def resize_half_pixel(
    image: Float[Array, "*frames height width channels"], size: int
) -> Float[Array, "*frames size size channels"]:
    """Bilinear between pixel centres, no low-pass filter: `torch.nn.functional.interpolate(align_corners=False)`."""
    return jax.image.resize(image, (*image.shape[:-3], size, size, image.shape[-1]), "bilinear", antialias=False)


def resize_corner(
    image: Float[Array, "*frames height width channels"], size: int
) -> Float[Array, "*frames size size channels"]:
    """Bilinear as TensorFlow 1 did it, where output pixel i looks at input position i · old / new: half a pixel away
    from where `resize_half_pixel` looks. No low-pass filter either.
    """
    return _along(_along(image, -2, size), -3, size)


def _along(image: Float[Array, "..."], axis: int, size: int) -> Float[Array, "..."]:
    length = image.shape[axis]
    position = jnp.arange(size, dtype=jnp.float32) * (length / size)
    low = jnp.floor(position).astype(jnp.int32)
    fraction = jnp.expand_dims(position - low.astype(jnp.float32), tuple(range(1, -axis)))
    before = jnp.take(image, low, axis)
    after = jnp.take(image, jnp.minimum(low + 1, length - 1), axis)
    return before + (after - before) * jnp.broadcast_to(fraction, before.shape)
