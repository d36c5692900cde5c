import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import PyTree


@dataclasses.dataclass(frozen=True)
class Precision:
    """The dtypes of a run: parameters, averages and losses stay float32; the networks compute in `compute`.

    bfloat16 suits accelerators. float16 is refused: its range needs loss scaling, which is not here.
    """

    compute: DTypeLike = jnp.float32

    def __post_init__(self):
        if jnp.dtype(self.compute) not in (jnp.dtype(jnp.float32), jnp.dtype(jnp.bfloat16)):
            raise ValueError(f"`Precision(compute={self.compute!r})` must be float32 or bfloat16.")

    def cast(self, tree: PyTree) -> PyTree:
        """Casts the floating-point arrays of a tree to the compute dtype."""
        dtype = jnp.dtype(self.compute)
        return jax.tree.map(lambda leaf: leaf.astype(dtype) if eqx.is_inexact_array(leaf) else leaf, tree)
