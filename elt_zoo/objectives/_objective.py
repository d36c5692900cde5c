import abc
import enum
from collections.abc import Callable
from typing import Any, ClassVar

import equinox as eqx
import jax
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

GroundTruthLoss = Callable[[PyTree[Array], PyTree[Array]], Float[Array, ""]]
"""Loss of one example: `(prediction, target) -> scalar`."""
DistillationLoss = Callable[[PyTree[Array], PyTree[Array], PyTree[Array]], Float[Array, ""]]
"""Distance of one example: `(student, teacher, target) -> scalar`. The target may hold a mask of where to compare."""


class Exits(enum.Enum):
    """The exits whose predictions an objective asks for, in the order in which it takes them."""

    FINAL = enum.auto()
    """The prediction at L_max."""
    SAMPLED = enum.auto()
    """The prediction at the sampled exit alone."""
    STUDENT_AND_TEACHER = enum.auto()
    """The predictions at the sampled exit and at L_max."""
    ALL = enum.auto()
    """The predictions at exits 1 to L_max, stacked."""


class AbstractObjective(eqx.Module):
    """What a looped model is trained for, as a function of its predictions for one example.

    An objective never sees the model. Its class attribute `exits` says which predictions it takes, `sample_loops`
    samples an exit, and the call turns predictions and target into a loss and its terms.
    """

    exits: ClassVar[Exits]
    max_loops: eqx.AbstractVar[int]

    @abc.abstractmethod
    def sample_loops(self, key: PRNGKeyArray, batch: int) -> Int[Array, "..."]:
        """Samples the loops of the sampled exit: a scalar for the whole batch, or an array (batch,)."""

    @abc.abstractmethod
    def __call__(
        self, *predictions: Any, target: PyTree[Array], progress: Float[Array, ""]
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """Every objective names the predictions that it takes.

        **Arguments:**

        - `predictions`: of one example, as `exits` says.
        - `target`: what the ground-truth loss compares with.
        - `progress`: the share of training that is done, in [0, 1].

        **Returns:** the loss to minimise and every term of it, for logging.
        """


def sample_uniform_loops(key: PRNGKeyArray, batch: int, *, low: int, high: int, per_example: bool) -> Int[Array, "..."]:
    """Samples loop counts uniformly from {`low`, …, `high`}, one for the batch or one per example."""
    return jax.random.randint(key, (batch,) if per_example else (), low, high + 1)
