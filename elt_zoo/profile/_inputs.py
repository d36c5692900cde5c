import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from ..families import DiTConfig, MaskGITConfig, ModelConfig


def example_inputs(config: ModelConfig, dtype: DTypeLike) -> tuple[jax.ShapeDtypeStruct, ...]:
    """The shapes of what the config's model takes for one example: ids or a noisy array and its time, and a label."""
    label = jax.ShapeDtypeStruct((), jnp.int32)
    match config:
        case MaskGITConfig():
            return jax.ShapeDtypeStruct(config.grid, jnp.int32), label
        case DiTConfig():
            return jax.ShapeDtypeStruct(config.shape, dtype), jax.ShapeDtypeStruct((), jnp.float32), label
    raise TypeError(f"`profile` knows MaskGITConfig and DiTConfig, not {type(config).__name__}.")
