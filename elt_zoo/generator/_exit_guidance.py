from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from .._checks import checked
from ..looped import LoopCount
from ..models import ElasticModel

Guide = Callable[[Array, Array, Float[Array, ""]], Array]
"""Called with a batch of better predictions, of worse ones, and the scale."""


class ExitGuidance(eqx.Module):
    r"""Guidance by an early exit: away from what the model says after a few loops
    (internal guidance, [2512.24176](https://arxiv.org/abs/2512.24176); after autoguidance,
    [2406.02507](https://arxiv.org/abs/2406.02507)).

    $$\text{guided} = \text{early} + s\,(\text{late} - \text{early})$$

    Both predictions come from the same pass, so all that it costs is one more reading of the head a step. It adds to
    classifier-free guidance, each branch of which is guided so. A model whose exits agree, as ILSD trains them, is
    guided little. At as many loops as the early exit has, nothing changes.
    """

    scale: Float[Array, ""]
    exit: Int[Array, ""]
    start: Float[Array, ""]
    stop: Float[Array, ""]

    def __init__(self, scale: float, *, exit: int = 1, levels: tuple[float, float] = (0.0, 1.0)):
        """**Arguments:**

        - `scale`: s; 1 is no guidance.
        - `exit`: loops of the early exit, at least 1.
        - `levels`: guide where the share of an example that is still hidden (the family's
          [`level`][elt_zoo.families.ModelConfig.level]) lies between these, both included; default everywhere.

        **Raises:** `ValueError` for an exit below 1, a scale that is not finite, or levels that are not
        0 ≤ first ≤ second ≤ 1.
        """
        if exit < 1 or not -1e6 < scale < 1e6 or not 0.0 <= levels[0] <= levels[1] <= 1.0:
            raise ValueError(
                f"`ExitGuidance({scale}, exit={exit}, levels={levels})` needs a finite scale, an exit of at least one "
                "loop, and levels from 0 to 1, the lower one first."
            )
        self.scale = jnp.asarray(scale, jnp.float32)
        self.exit = jnp.asarray(exit, jnp.int32)
        self.start, self.stop = (jnp.asarray(level, jnp.float32) for level in levels)


class ExitGuidedPredict(eqx.Module):
    """A model as the `predict` function that samplers call, guided by one of its early exits.

    **Fields:** `model`; `guidance`; `level`: of one example's inputs, `None` where the family has none; `guide`: how
    two predictions are combined, usually the sampler's.
    """

    model: ElasticModel
    guidance: ExitGuidance
    level: Callable[..., Float[Array, ""] | None]
    guide: Guide

    @checked
    def __call__(self, *inputs: Any, loops: LoopCount) -> PyTree[Array]:
        """**Arguments:** the model's inputs with a batch axis each, and the loop count. **Returns:** batched
        predictions.
        """
        early = jnp.minimum(self.guidance.exit, loops)

        def one(*example: Any) -> Array:
            worse, better = self.model.student_and_teacher(*example, student_loops=early, max_loops=loops)
            return self.guide(better[None], worse[None], self._scale(*example))[0]

        return jax.vmap(one)(*inputs)

    def _scale(self, *example: Any) -> Float[Array, ""]:
        level = self.level(*example)
        if level is None:
            return self.guidance.scale
        inside = (level >= self.guidance.start) & (level <= self.guidance.stop)
        return jnp.where(inside, self.guidance.scale, 1.0)
