from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from .._checks import checked
from ._objective import AbstractObjective, DistillationLoss, Exits, GroundTruthLoss, sample_uniform_loops


class ILSDLoss(AbstractObjective):
    r"""Intra-Loop Self Distillation (2604.09168, section 3.2).

    $$\mathcal{L} = \mathrm{GT}(F_{L_{max}}, y) + w\,\bigl(\lambda\,\mathrm{GT}(F_{L_{int}}, y)
      + (1 - \lambda)\,\mathrm{dist}(F_{L_{int}}, \mathrm{sg}(F_{L_{max}}))\bigr)$$

    The paper has w = 1. A smaller weight of the student moves the balance from the early exits to the last one.

    The student is an early exit of the forward pass that makes the teacher, so the extra cost is one kept state, one
    more application of the head and two loss terms. The distillation term has no gradient through the teacher's
    prediction (sg), only through the student's.

    Measure both losses of your own in the same units. Where `distillation` is several times as large as `ground_truth`
    for the same error, its gradient wins, and all exits learn to agree instead of to predict (`examples/forecast.py`).
    """

    exits: ClassVar[Exits] = Exits.STUDENT_AND_TEACHER

    ground_truth: GroundTruthLoss
    distillation: DistillationLoss
    max_loops: int = eqx.field(static=True)
    min_loops: int = eqx.field(static=True)
    curriculum: optax.Schedule = eqx.field(static=True)
    per_example: bool = eqx.field(static=True)
    student_weight: float = eqx.field(static=True)

    def __init__(
        self,
        ground_truth: GroundTruthLoss,
        distillation: DistillationLoss,
        *,
        max_loops: int,
        min_loops: int = 1,
        curriculum: optax.Schedule | None = None,
        per_example: bool = False,
        student_weight: float = 1.0,
    ):
        """**Arguments:**

        - `ground_truth`: loss of one example, `(prediction, target) -> scalar`.
        - `distillation`: distance of one example, `(student, teacher, target) -> scalar`.
        - `max_loops`: L_max, the teacher's exit.
        - `min_loops`: L_min, the earliest exit of the student.
        - `curriculum`: λ as an optax schedule of training progress, so that its length is 1 and not a number of steps;
          default the paper's, `optax.linear_schedule(1.0, 0.0, transition_steps=1)`.
        - `per_example`: sample the student's exit for each example; the paper, and the default, once per batch.
        - `student_weight`: w, the weight of the student's two terms against the teacher's; default the paper's 1.

        **Raises:** `ValueError` unless 1 ≤ `min_loops` < `max_loops` and 0 < `student_weight` ≤ 1.
        """
        if not 1 <= min_loops < max_loops:
            raise ValueError(
                f"`ILSDLoss(min_loops={min_loops}, max_loops={max_loops})` leaves no exit for the student, "
                "which takes at least `min_loops` and fewer than `max_loops` loops. Use 1 <= min_loops < max_loops, or "
                "`VanillaLoss` for a single exit."
            )
        if not 0.0 < student_weight <= 1.0:
            raise ValueError(
                f"`ILSDLoss(student_weight={student_weight})` must be above 0 and at most 1. For 0, which leaves the "
                "last exit alone, use `VanillaLoss`."
            )
        self.ground_truth = ground_truth
        self.distillation = distillation
        self.max_loops = max_loops
        self.min_loops = min_loops
        self.curriculum = optax.linear_schedule(1.0, 0.0, transition_steps=1) if curriculum is None else curriculum
        self.per_example = per_example
        self.student_weight = student_weight

    @checked
    def sample_loops(self, key: PRNGKeyArray, batch: int) -> Int[Array, "..."]:
        """Samples L_int uniformly from {`min_loops`, …, `max_loops` − 1}: a scalar, or (batch,) if `per_example`."""
        return sample_uniform_loops(
            key, batch, low=self.min_loops, high=self.max_loops - 1, per_example=self.per_example
        )

    @checked
    def __call__(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        student: PyTree[Array],
        teacher: PyTree[Array],
        *,
        target: PyTree[Array],
        progress: Float[Array, ""] | float,
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """**Arguments:**

        - `student`, `teacher`: predictions of one example at L_int and at L_max.
        - `target`: passed to both losses.
        - `progress`: share of training done, in [0, 1].

        **Returns:** the loss and its terms `teacher`, `student`, `distillation` and `lambda`.
        """
        weight = jnp.asarray(self.curriculum(progress), jnp.float32)
        terms = {
            "teacher": self.ground_truth(teacher, target),
            "student": self.ground_truth(student, target),
            "distillation": self.distillation(student, jax.lax.stop_gradient(teacher), target),
        }
        truth, imitation = self.student_weight * weight, self.student_weight * (1.0 - weight)
        loss = terms["teacher"] + truth * terms["student"] + imitation * terms["distillation"]
        return loss, terms | {"lambda": weight}
