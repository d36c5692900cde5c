import abc
from typing import Any

import equinox as eqx
from jaxtyping import Array, Float, PyTree


class AbstractLoss(eqx.Module):
    """The two losses of one example that belong together: against the ground truth, and against a teacher."""

    @abc.abstractmethod
    def __call__(self, prediction: Any, target: PyTree[Array]) -> Float[Array, ""]:
        """The ground-truth loss: a prediction against the target."""

    @abc.abstractmethod
    def distillation(self, student: Any, teacher: Any, target: PyTree[Array]) -> Float[Array, ""]:
        """The distillation loss: a student's prediction against the teacher's, where the target says to compare."""
