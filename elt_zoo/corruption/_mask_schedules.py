import abc

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._checks import checked


class AbstractMaskSchedule(eqx.Module):
    r"""The share of masked tokens γ(r), falling from γ(0) = 1 to γ(1) = 0 (MaskGIT, 2202.04200, section 3.3).

    In training r is drawn at random; in sampling it is the share of the steps that are done. Computed in float32.
    """

    @abc.abstractmethod
    def __call__(self, ratio: Float[Array, ""]) -> Float[Array, ""]:
        """**Arguments:** `ratio`: r in [0, 1]. **Returns:** γ(r) in [0, 1], float32."""


class CosineMaskSchedule(AbstractMaskSchedule):
    r"""$\gamma(r) = \cos(\pi r / 2)$: few tokens in the first steps, many in the last. MaskGIT's and the paper's."""

    @checked
    def __call__(self, ratio: Float[Array, ""]) -> Float[Array, ""]:
        # In float32 cos(π/2) is a little below zero.
        return jnp.clip(jnp.cos(ratio.astype(jnp.float32) * (jnp.pi / 2)), 0.0, 1.0)


class ArccosMaskSchedule(AbstractMaskSchedule):
    r"""$\gamma(r) = \frac{2}{\pi}\arccos(r)$, the inverse of cosine; of Halton-MaskGIT and 1d-tokenizer."""

    @checked
    def __call__(self, ratio: Float[Array, ""]) -> Float[Array, ""]:
        return jnp.clip(jnp.arccos(ratio.astype(jnp.float32)) / (jnp.pi / 2), 0.0, 1.0)


class LinearMaskSchedule(AbstractMaskSchedule):
    r"""$\gamma(r) = 1 - r$: as many tokens in every step. MaskGIT calls it "uniform"."""

    @checked
    def __call__(self, ratio: Float[Array, ""]) -> Float[Array, ""]:
        return 1.0 - ratio.astype(jnp.float32)


class PowerMaskSchedule(AbstractMaskSchedule):
    r"""$\gamma(r) = 1 - r^p$: for p > 1 few tokens in the first steps, for p < 1 many. MaskGIT's "pow" schedules."""

    exponent: float = eqx.field(static=True)

    def __init__(self, exponent: float = 2.0):
        """**Arguments:** `exponent`: p > 0; default 2. **Raises:** `ValueError` otherwise."""
        if not exponent > 0:
            raise ValueError(
                f"`PowerMaskSchedule(exponent={exponent})` must be positive: 1 is linear, 2 is near cosine."
            )
        self.exponent = float(exponent)

    @checked
    def __call__(self, ratio: Float[Array, ""]) -> Float[Array, ""]:
        return 1.0 - ratio.astype(jnp.float32) ** self.exponent
