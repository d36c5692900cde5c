from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
from jaxtyping import Array, Int, PRNGKeyArray, PyTree

from .._checks import checked
from ..heads import Head
from ..looped import LoopedTransformer


class ElasticModel(eqx.Module):
    """A trunk and a head put together: one model, any number of loops.

    Every method takes the inputs of the head's `embed` for one example (`ids, label` for
    [`MaskGITHead`][elt_zoo.MaskGITHead], `x, time, label` for [`DiTHead`][elt_zoo.DiTHead]) and returns predictions;
    the loop counts are those of [`LoopedTransformer`][elt_zoo.LoopedTransformer]'s method of the same name.
    """

    head: Head
    trunk: LoopedTransformer
    max_loops: int = eqx.field(static=True)

    def __init__(self, head: Head, trunk: LoopedTransformer, *, max_loops: int):
        """**Arguments:** `head` and `trunk`, of one width; `max_loops`: L_max, the loops that the model is trained for.

        **Raises:** `ValueError` if `max_loops` < 1.
        """
        if max_loops < 1:
            raise ValueError(f"`ElasticModel(max_loops={max_loops})` needs at least one loop.")
        self.head = head
        self.trunk = trunk
        self.max_loops = max_loops

    @checked
    def __call__(self, *inputs: Any, loops: int | Int[Array, ""], key: PRNGKeyArray | None = None) -> PyTree[Array]:
        """The prediction after `loops` loops, a Python int or (inference only) a traced integer. `key` turns dropout
        on.
        """
        embed_key, trunk_key = _split(key)
        tokens, conditioning = self.head.embed(*inputs, key=embed_key)
        return self.head(self.trunk(tokens, conditioning, loops=loops, key=trunk_key), conditioning)

    @checked
    def at_exit(
        self, *inputs: Any, loops: Int[Array, ""], max_loops: int, key: PRNGKeyArray | None = None
    ) -> PyTree[Array]:
        """The prediction after a traced number of loops, differentiable, at the cost of `max_loops`."""
        embed_key, trunk_key = _split(key)
        tokens, conditioning = self.head.embed(*inputs, key=embed_key)
        state = self.trunk.at_exit(tokens, conditioning, loops=loops, max_loops=max_loops, key=trunk_key)
        return self.head(state, conditioning)

    @checked
    def trajectory(self, *inputs: Any, loops: int, key: PRNGKeyArray | None = None) -> PyTree[Array]:
        """The predictions of exits 1 to `loops`, stacked along a new leading axis."""
        embed_key, trunk_key = _split(key)
        tokens, conditioning = self.head.embed(*inputs, key=embed_key)
        states = self.trunk.trajectory(tokens, conditioning, loops=loops, key=trunk_key)
        return jax.vmap(lambda state: self.head(state, conditioning))(states)

    @checked
    def student_and_teacher(
        self, *inputs: Any, student_loops: Int[Array, ""], max_loops: int, key: PRNGKeyArray | None = None
    ) -> tuple[PyTree[Array], PyTree[Array]]:
        """The predictions after `student_loops` (traced) and after `max_loops` loops, from one forward pass."""
        embed_key, trunk_key = _split(key)
        tokens, conditioning = self.head.embed(*inputs, key=embed_key)
        student, teacher = self.trunk.student_and_teacher(
            tokens, conditioning, student_loops=student_loops, max_loops=max_loops, key=trunk_key
        )
        return self.head(student, conditioning), self.head(teacher, conditioning)

    def unstacked(self) -> "ElasticModel":
        """The same model for inference with many unique layers, see
        [`LoopedTransformer.unstacked`][elt_zoo.LoopedTransformer.unstacked].
        """
        return ElasticModel(self.head, self.trunk.unstacked(), max_loops=self.max_loops)


class BatchedPredict(eqx.Module):
    """A model as the `predict` function that samplers call: a leading batch axis on every input, one loop count for
    all.
    """

    model: Callable[..., PyTree[Array]]

    @checked
    def __call__(self, *inputs: Any, loops: int | Int[Array, ""]) -> PyTree[Array]:
        """**Arguments:** the model's inputs with a batch axis each, and the loop count. **Returns:** batched
        predictions.
        """
        return jax.vmap(lambda *example: self.model(*example, loops=loops))(*inputs)


def _split(key: PRNGKeyArray | None):
    return (None, None) if key is None else jax.random.split(key)
