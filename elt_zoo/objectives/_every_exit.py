from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from .._checks import checked
from ._ilsd import PAPERS_CURRICULUM, ILSDLoss
from ._objective import AbstractObjective, DistillationLoss, Exits, GroundTruthLoss


class EveryExitILSDLoss(AbstractObjective):
    r"""Intra-Loop Self Distillation with every early exit as a student in every step: the mean of
    [`ILSDLoss`][elt_zoo.ILSDLoss] over the exits that it samples from.

    $$\mathcal{L} = \mathrm{GT}(F_{L_{max}}, y) + \frac{w}{L_{max} - L_{min}} \sum_{l = L_{min}}^{L_{max} - 1}
      \bigl(\lambda\,\mathrm{GT}(F_l, y) + (1 - \lambda)\,\mathrm{dist}(F_l, \mathrm{sg}(F_{L_{max}}))\bigr)$$

    Its gradient is that of `ILSDLoss` on average, without the noise of the sampled exit. A step costs
    L_max − L_min − 1 more applications of the head and pairs of losses.
    """

    exits: ClassVar[Exits] = Exits.ALL

    ground_truth: GroundTruthLoss
    distillation: DistillationLoss
    max_loops: int = eqx.field(static=True)
    min_loops: int = eqx.field(static=True)
    curriculum: optax.Schedule = eqx.field(static=True)
    student_weight: float = eqx.field(static=True)

    def __init__(
        self,
        ground_truth: GroundTruthLoss,
        distillation: DistillationLoss,
        *,
        max_loops: int,
        min_loops: int = 1,
        curriculum: optax.Schedule | None = None,
        student_weight: float = 1.0,
    ):
        """**Arguments:** as [`ILSDLoss`][elt_zoo.ILSDLoss]; `student_weight`: w, of all students together.

        **Raises:** `ValueError` unless 1 ≤ `min_loops` < `max_loops` and 0 < `student_weight` ≤ 1.
        """
        self.ground_truth = ground_truth
        self.distillation = distillation
        self.max_loops = max_loops
        self.min_loops = min_loops
        self.curriculum = PAPERS_CURRICULUM if curriculum is None else curriculum
        self.student_weight = student_weight
        self._one_student()  # refuses what it cannot take

    def _one_student(self) -> ILSDLoss:
        return ILSDLoss(
            self.ground_truth,
            self.distillation,
            max_loops=self.max_loops,
            min_loops=self.min_loops,
            curriculum=self.curriculum,
            student_weight=self.student_weight,
        )

    def sample_loops(self, key: PRNGKeyArray, batch: int) -> Int[Array, ""]:
        """L_max, whatever the key."""
        return jnp.asarray(self.max_loops, jnp.int32)

    @checked
    def __call__(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, exits: PyTree[Array], *, target: PyTree[Array], progress: Float[Array, ""] | float
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """**Arguments:**

        - `exits`: predictions of one example at exits 1 to L_max, stacked on the first axis.
        - `target`: passed to both losses.
        - `progress`: share of training done, in [0, 1].

        **Returns:** the loss and its terms `teacher`, `student` and `distillation`, the last two as means over the
        students, and `lambda`.
        """
        one = self._one_student()
        students = jax.tree.map(lambda leaf: leaf[self.min_loops - 1 : self.max_loops - 1], exits)
        teacher = jax.tree.map(lambda leaf: leaf[self.max_loops - 1], exits)
        losses, terms = jax.vmap(lambda student: one(student, teacher, target=target, progress=progress))(students)
        return jnp.mean(losses), jax.tree.map(jnp.mean, terms)
