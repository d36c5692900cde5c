import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import PyTree

from ..looped import LoopedTransformer


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
        """Casts the floating-point arrays of a tree, such as a model, to the compute dtype, except a trunk's.

        A [`LoopedTransformer`][elt_zoo.LoopedTransformer] computes in the dtype of its tokens and casts its layers
        inside the loop, so that the gradients of the layers are summed over the loops in float32.
        """
        return self._cast(tree, least_axes=0)

    def cast_inputs(self, inputs: PyTree) -> PyTree:
        """Casts the floating-point inputs of a batch to the compute dtype, except numbers of whole examples, (batch,).

        Such a number, like the time of diffusion, costs nothing in float32, and bfloat16 would round it to one of 128
        between 0.5 and 1. Samplers pass times in float32 too.
        """
        return self._cast(inputs, least_axes=2)

    def _cast(self, tree: PyTree, *, least_axes: int) -> PyTree:
        dtype = jnp.dtype(self.compute)

        def cast(leaf):
            return leaf.astype(dtype) if eqx.is_inexact_array(leaf) and leaf.ndim >= least_axes else leaf

        return jax.tree.map(cast, tree, is_leaf=lambda node: isinstance(node, LoopedTransformer))
