from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from .._checks import checked
from ..looped import LoopCount
from ..models import ElasticModel

_BATCH = "examples of a batch"
"""The name of the axis over which signals are averaged."""
ExitSignal = Callable[[Array, Array], Float[Array, ""]]
"""Called with the predictions of one example at two exits in a row: how much is still happening, at least 0."""


@checked
def relative_change(previous: Float[Array, "..."], prediction: Float[Array, "..."]) -> Float[Array, ""]:
    """How far a loop moves the prediction, relative to its norm. For diffusion."""
    moved = jnp.sum(jnp.square(prediction - previous))
    return jnp.sqrt(moved / jnp.maximum(jnp.sum(jnp.square(prediction)), 1e-12))


@checked
def divergence(previous: Float[Array, "*grid codes"], prediction: Float[Array, "*grid codes"]) -> Float[Array, ""]:
    """KL(p ‖ p') from an exit's distribution over the codes to that of the exit before, in nats, mean over the tokens.
    For logits.
    """
    log_p, log_q = jax.nn.log_softmax(prediction), jax.nn.log_softmax(previous)
    return jnp.mean(jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1))


@checked
def flips(previous: Float[Array, "*grid codes"], prediction: Float[Array, "*grid codes"]) -> Float[Array, ""]:
    """Share of tokens whose most likely code a loop changes. For logits."""
    return jnp.mean(jnp.argmax(prediction, axis=-1) != jnp.argmax(previous, axis=-1), dtype=jnp.float32)


@checked
def doubt(previous: Float[Array, "*grid codes"], prediction: Float[Array, "*grid codes"]) -> Float[Array, ""]:
    """What the most likely code lacks of a sure lead: one minus the difference of the two largest probabilities, mean
    over the tokens. For logits; the exit before does not matter.
    """
    first, second = jnp.moveaxis(jax.lax.top_k(jax.nn.softmax(prediction), 2)[0], -1, 0)
    return 1.0 - jnp.mean(first - second)


class SettledExit(eqx.Module):
    """A rule that ends the loops of an example once its prediction has settled.

    It is called with the predictions of two exits in a row, and says whether the signal has come down to the threshold.
    [`calibrate_exit`][elt_zoo.anytime.calibrate_exit] finds a threshold that keeps a promise.

    **Fields:** `signal`; `threshold`: an array, so that one program serves all; `together`.
    """

    signal: ExitSignal = eqx.field(static=True)
    threshold: Float[Array, ""]
    together: bool = eqx.field(static=True)

    def __init__(self, signal: ExitSignal, threshold: float, *, together: bool = False):
        """**Arguments:** `signal`: such as [`relative_change`][elt_zoo.generator.relative_change] for diffusion and
        [`divergence`][elt_zoo.generator.divergence] for masked generation; `threshold`: the largest signal of a settled
        prediction, at least 0; `together`: the examples of a batch leave together, once the mean of their signals has
        come down to the threshold. Default each by itself.

        **Raises:** `ValueError` for a threshold that is negative or not finite.
        """
        if not 0.0 <= threshold < float("inf"):
            raise ValueError(f"`SettledExit(threshold={threshold})` must be a finite number, 0 or more.")
        self.signal = signal
        self.threshold = jnp.asarray(threshold, jnp.float32)
        self.together = together

    def __call__(self, previous: PyTree[Array], prediction: PyTree[Array]) -> Bool[Array, ""]:
        """Whether `prediction` is the result. Of an example by itself."""
        return self.signal(previous, prediction) <= self.threshold


class EarlyExitPredict(eqx.Module):
    """A model as the `predict` function that samplers call, where the examples of a batch leave the loops by a rule.

    Two exits must be there to be compared, so that every example runs at least two loops, and at most L_max.

    **Fields:** `model`; `rule`.
    """

    model: ElasticModel
    rule: SettledExit

    @checked
    def __call__(self, *inputs: Any, loops: LoopCount) -> PyTree[Array]:
        """**Arguments:** the model's inputs with a batch axis each; `loops` is not used, the rule decides. **Returns:**
        batched predictions.
        """
        return self.exits(*inputs)[0]

    @checked
    def exits(self, *inputs: Any) -> tuple[PyTree[Array], Int[Array, " batch"]]:
        """Batched predictions, and the loops that each example took."""
        most, together = self.model.max_loops, self.rule.together

        def settled(previous: PyTree[Array], prediction: PyTree[Array]) -> Bool[Array, ""]:
            if not together:
                return self.rule(previous, prediction)
            return jax.lax.pmean(self.rule.signal(previous, prediction), _BATCH) <= self.rule.threshold

        def one(*example: Any) -> tuple[PyTree[Array], Int[Array, ""]]:
            return self.model.early_exit(
                *example, rule=settled, max_loops=most, min_loops=min(2, most), together=together
            )

        return jax.vmap(one, axis_name=_BATCH)(*inputs)
