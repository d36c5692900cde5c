import enum
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from .._checks import checked
from ._objective import AbstractObjective, Exits, GroundTruthLoss, sample_uniform_loops


class VanillaLoss(AbstractObjective):
    """Plain looping, the paper's baseline: the ground-truth loss at L_max and nothing at the other exits."""

    exits: ClassVar[Exits] = Exits.FINAL

    ground_truth: GroundTruthLoss
    max_loops: int = eqx.field(static=True)

    def __init__(self, ground_truth: GroundTruthLoss, *, max_loops: int):
        """**Arguments:** `ground_truth`: loss of one example, `(prediction, target) -> scalar`; `max_loops`: L_max ≥
        1.
        """
        self.ground_truth = ground_truth
        self.max_loops = _checked_max_loops("VanillaLoss", max_loops)

    def sample_loops(self, key: PRNGKeyArray, batch: int) -> Int[Array, ""]:
        """L_max, whatever the key."""
        return jnp.asarray(self.max_loops, jnp.int32)

    @checked
    def __call__(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, final: PyTree[Array], *, target: PyTree[Array], progress: Float[Array, ""] | float
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """Returns the loss at L_max, also as the term `final`. `progress` is not used."""
        loss = self.ground_truth(final, target)
        return loss, {"final": loss}


class RandomDepthLoss(AbstractObjective):
    """The ground-truth loss at one exit, sampled uniformly from {L_min, …, L_max}. Recurrent-depth models are
    trained like this.
    """

    exits: ClassVar[Exits] = Exits.SAMPLED

    ground_truth: GroundTruthLoss
    max_loops: int = eqx.field(static=True)
    min_loops: int = eqx.field(static=True)
    per_example: bool = eqx.field(static=True)

    def __init__(self, ground_truth: GroundTruthLoss, *, max_loops: int, min_loops: int = 1, per_example: bool = False):
        """**Arguments:** as [`ILSDLoss`][elt_zoo.ILSDLoss].

        **Raises:** `ValueError` unless 1 ≤ `min_loops` ≤ `max_loops`.
        """
        if not 1 <= min_loops <= max_loops:
            raise ValueError(
                f"`RandomDepthLoss(min_loops={min_loops}, max_loops={max_loops})` needs 1 <= min_loops <= max_loops."
            )
        self.ground_truth = ground_truth
        self.max_loops = max_loops
        self.min_loops = min_loops
        self.per_example = per_example

    @checked
    def sample_loops(self, key: PRNGKeyArray, batch: int) -> Int[Array, "..."]:
        """Samples the exit uniformly from {`min_loops`, …, `max_loops`}: a scalar, or (batch,) if `per_example`."""
        return sample_uniform_loops(key, batch, low=self.min_loops, high=self.max_loops, per_example=self.per_example)

    @checked
    def __call__(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, sampled: PyTree[Array], *, target: PyTree[Array], progress: Float[Array, ""] | float
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """Returns the loss at the sampled exit, also as the term `sampled`. `progress` is not used."""
        loss = self.ground_truth(sampled, target)
        return loss, {"sampled": loss}


class ExitWeighting(enum.StrEnum):
    """How deep supervision weighs exits 1 to L before the weights are scaled to sum to 2 (Looped-DiT, 2609.40305)."""

    FINAL_PLUS_MEAN = "final_plus_mean"
    """1 for the last exit, and 1 shared evenly among the earlier ones: Looped-DiT's choice."""
    EXPONENTIAL = "exponential"
    """Each exit half of the one after it."""
    UNIFORM = "uniform"
    """All the same."""

    def weights(self, loops: int) -> np.ndarray:
        """The weights of exits 1 to `loops`, float32, with sum 2. **Raises:** `ValueError` if `loops` < 2."""
        if loops < 2:
            raise ValueError(f"Deep supervision over {loops} loop(s) has no early exit; use at least 2 loops.")
        match self:
            case ExitWeighting.FINAL_PLUS_MEAN:
                raw = np.append(np.full(loops - 1, 1.0 / (loops - 1)), 1.0)
            case ExitWeighting.EXPONENTIAL:
                raw = 0.5 ** np.arange(loops - 1, -1, -1)
            case ExitWeighting.UNIFORM:
                raw = np.ones(loops)
        return (2.0 * raw / raw.sum()).astype(np.float32)


class DeepSupervisionLoss(AbstractObjective):
    """The ground-truth loss at every exit, weighted as in Looped-DiT (2609.40305)."""

    exits: ClassVar[Exits] = Exits.ALL

    ground_truth: GroundTruthLoss
    max_loops: int = eqx.field(static=True)
    weighting: ExitWeighting = eqx.field(static=True)

    def __init__(
        self,
        ground_truth: GroundTruthLoss,
        *,
        max_loops: int,
        weighting: ExitWeighting = ExitWeighting.FINAL_PLUS_MEAN,
    ):
        """**Arguments:** `ground_truth`: loss of one example; `max_loops`: L_max ≥ 2; `weighting`: of the exits.

        **Raises:** `ValueError` if `max_loops` < 2.
        """
        ExitWeighting(weighting).weights(max_loops)
        self.ground_truth = ground_truth
        self.max_loops = max_loops
        self.weighting = ExitWeighting(weighting)

    def sample_loops(self, key: PRNGKeyArray, batch: int) -> Int[Array, ""]:
        """L_max, whatever the key."""
        return jnp.asarray(self.max_loops, jnp.int32)

    @checked
    def __call__(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, exits: PyTree[Array], *, target: PyTree[Array], progress: Float[Array, ""] | float
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """**Arguments:** `exits`: predictions of one example at every exit, stacked on the first axis.

        **Returns:** the weighted loss and the unweighted terms `exit_1` to `exit_L`.
        """
        losses = jax.vmap(lambda prediction: self.ground_truth(prediction, target))(exits)
        weights = jnp.asarray(self.weighting.weights(self.max_loops))
        return jnp.sum(weights * losses), {f"exit_{i + 1}": losses[i] for i in range(self.max_loops)}


def _checked_max_loops(name: str, max_loops: int) -> int:
    if max_loops < 1:
        raise ValueError(f"`{name}(max_loops={max_loops})` needs at least one loop.")
    return max_loops
