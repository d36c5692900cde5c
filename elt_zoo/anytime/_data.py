import dataclasses
from collections.abc import Callable

import jax
import numpy as np
from jaxtyping import Array, PyTree

from ..data import digits_to_pixels, load_digits
from ..generator import Generator
from ..metrics import DigitsEvaluator

Distance = Callable[[np.ndarray, np.ndarray], float]
"""Pixels in [−1, 1] with a leading axis, and the classes that they were asked to be → how bad they are together, such
as a Fréchet distance."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlanningData:
    """What a planner judges samples by.

    **Fields:**

    - `examples`, `labels`: clean examples that the model has not seen, as it takes them (pixels, latents or token ids),
      with one leading axis.
    - `distance`: how bad a set of samples is. It weighs steps against loops: `None` leaves the steps as they are.
    - `measure`: the name of the distance.
    """

    examples: PyTree[Array | np.ndarray]
    labels: Array | np.ndarray
    distance: Distance | None = None
    measure: str = "distance"

    def check(self, generator: Generator) -> None:
        """**Raises:** `ValueError` if the generator does not take such examples."""
        wanted, given = generator.config.example, self.examples
        if (given.shape[1:], given.dtype) != (wanted.shape, wanted.dtype) or len(given) != len(self.labels):
            raise ValueError(
                f"`PlanningData` holds examples of {given.dtype}{list(given.shape[1:])} ({len(given)}, with "
                f"{len(self.labels)} labels), but the model takes {wanted.dtype}{list(wanted.shape)}: give what it was "
                "trained on, encoded by its tokenizer."
            )


def digits_data(generator: Generator) -> PlanningData:
    """The held-out digits as a generator of digits takes them, and the digits Fréchet distance."""
    digits, evaluator = load_digits("heldout"), DigitsEvaluator()
    examples = digits_to_pixels(digits.images)
    if generator.tokenizer is not None:
        examples = np.asarray(jax.jit(jax.vmap(generator.tokenizer.encode))(examples))
    return PlanningData(
        examples=examples,
        labels=digits.labels,
        distance=lambda pixels, labels: evaluator(pixels, labels).frechet_distance,
        measure="digits Fréchet distance (not FID)",
    )
