import dataclasses

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Adversary:
    """How a tokenizer is trained against a discriminator.

    **Fields:**

    - `optimizer`: the discriminator's, an optax transformation.
    - `weight`: of the generator's term in the tokenizer's loss.
    - `start`: step at which adversarial training starts. Before it the discriminator does not learn and the tokenizer
      gets no gradient from it: early reconstructions are blurred, and a discriminator would learn little else.
    - `r1`, `lecam`: weights of the two penalties. A penalty of weight 0 is not computed.
    - `lecam_decay`: of the moving averages of the logits, in [0, 1).

    **Raises:** `ValueError` for weights or a start below 0, or a decay outside [0, 1).
    """

    optimizer: optax.GradientTransformation
    weight: float = 0.1
    start: int = 0
    r1: float = 0.0
    lecam: float = 0.001
    lecam_decay: float = 0.999

    def __post_init__(self):
        if min(self.weight, self.start, self.r1, self.lecam) < 0 or not 0.0 <= self.lecam_decay < 1.0:
            raise ValueError(
                f"`Adversary(weight={self.weight}, start={self.start}, r1={self.r1}, lecam={self.lecam}, "
                f"lecam_decay={self.lecam_decay})`: weights and the start must be at least 0, the decay in [0, 1)."
            )

    def active(self, step: Int[Array, ""]) -> Float[Array, ""]:
        """1 from step `start` on, 0 before."""
        return (step >= self.start).astype(jnp.float32)
