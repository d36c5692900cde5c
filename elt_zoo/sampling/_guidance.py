import abc
from fractions import Fraction

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from .._checks import checked


class AbstractGuidance(eqx.Module):
    r"""The scale s of classifier-free guidance (2207.12598) at every step of a sampling run.

    One formula everywhere, on logits in masked decoding and on the network's output in diffusion:

    $$\text{guided} = \text{uncond} + s\,(\text{cond} - \text{uncond})$$

    s = 1 is the conditional prediction alone, s = 0 the unconditional one; DiT counts so. Papers that write
    (1 + w)·cond − w·uncond mean s = 1 + w.

    Schedules are functions of progress p = k / K at step k = 0, …, K − 1: the share of the sampling done before that
    step. For the continuous diffusion schedules p is 1 − time. Scales are arrays, so that another value compiles
    nothing again; which steps are guided at all is known before the program.
    """

    @abc.abstractmethod
    def scales(self, steps: int) -> Float[Array, " steps"]:
        """**Arguments:** `steps`: K. **Returns:** the scale at every step, float32."""

    def guided(self, steps: int) -> Bool[np.ndarray, " steps"]:
        """Which steps evaluate the unconditional branch; by default all. The others take the conditional prediction.

        **Arguments:** `steps`: K. **Returns:** a NumPy array, the same for all values of the scales.
        """
        return np.ones(steps, bool)


class ConstantGuidance(AbstractGuidance):
    """One scale for every step."""

    scale: Float[Array, ""]

    def __init__(self, scale: float | Float[Array, ""]):
        """**Arguments:** `scale`: 1 is no guidance (set the sampler's `guidance=None` for that: it halves the work)."""
        self.scale = _as_scale(scale)

    @checked
    def scales(self, steps: int) -> Float[Array, " steps"]:
        return jnp.broadcast_to(self.scale, (steps,))


class LinearGuidance(AbstractGuidance):
    """A scale that changes linearly: start + (stop − start)·p (Muse, 2301.00704, section 2.7)."""

    start: Float[Array, ""]
    stop: Float[Array, ""]

    def __init__(self, start: float | Float[Array, ""], stop: float | Float[Array, ""]):
        """**Arguments:** `start`, `stop`: scale at progress 0 and 1."""
        self.start = _as_scale(start)
        self.stop = _as_scale(stop)

    @checked
    def scales(self, steps: int) -> Float[Array, " steps"]:
        return self.start + (self.stop - self.start) * _progress(steps)


class CosineGuidance(AbstractGuidance):
    r"""A scale that rises slowly, then fast, from 1 (MDT, 2303.14389; 1d-tokenizer).

    $$s(p) = 1 + (s_{max} - 1)\,\frac{1 - \cos(\pi p^{q})}{2}$$
    """

    scale: Float[Array, ""]
    power: Float[Array, ""]

    def __init__(self, scale: float | Float[Array, ""], *, power: float | Float[Array, ""] = 1.0):
        """**Arguments:** `scale`: s at progress 1; `power`: q > 0, later the larger it is; default 1."""
        self.scale = _as_scale(scale)
        self.power = _as_scale(power)

    @checked
    def scales(self, steps: int) -> Float[Array, " steps"]:
        return 1.0 + (self.scale - 1.0) * (1.0 - jnp.cos(jnp.pi * _progress(steps) ** self.power)) / 2


class IntervalGuidance(AbstractGuidance):
    """Guidance within an interval of progress, the conditional prediction alone outside (2404.07724).

    Outside the interval the unconditional branch is not evaluated, so it saves time too.
    """

    guidance: AbstractGuidance
    start: float = eqx.field(static=True)
    stop: float = eqx.field(static=True)

    def __init__(self, guidance: AbstractGuidance, *, start: float, stop: float):
        """**Arguments:**

        - `guidance`: the scale inside the interval.
        - `start`, `stop`: guided is every step with `start` ≤ p < `stop`, in [0, 1]. An interval of times (t_low,
          t_high] of a continuous noise schedule is the one from 1 − t_high to 1 − t_low. The comparison is exact, with
          each bound read as the nearest fraction of a denominator up to 10⁶: 0.6 is 3/5, and so is 1 − 0.4.

        **Raises:** `ValueError` unless 0 ≤ `start` < `stop` ≤ 1.
        """
        if not 0 <= start < stop <= 1:
            raise ValueError(
                f"`IntervalGuidance(start={start}, stop={stop})` needs 0 <= start < stop <= 1: shares of the sampling."
            )
        self.guidance = guidance
        self.start = float(start)
        self.stop = float(stop)

    @checked
    def scales(self, steps: int) -> Float[Array, " steps"]:
        return jnp.where(self.guided(steps), self.guidance.scales(steps), 1.0)

    @checked
    def guided(self, steps: int) -> Bool[np.ndarray, " steps"]:
        start, stop = (Fraction(bound).limit_denominator(10**6) for bound in (self.start, self.stop))
        inside = np.asarray([start <= Fraction(step, steps) < stop for step in range(steps)])
        return inside & self.guidance.guided(steps)


@checked
def apply_guidance(
    conditional: Float[Array, "*shape"],
    unconditional: Float[Array, "*shape"],
    scale: Float[Array, ""],
    *,
    channels: int | None = None,
) -> Float[Array, "*shape"]:
    """Classifier-free guidance: uncond + scale·(cond − uncond), in float32.

    A value of −∞ bans a code in masked decoding, and stays −∞ where either branch has it; at scale 1 the conditional
    branch alone counts.

    **Arguments:**

    - `conditional`, `unconditional`: predictions, channels last.
    - `scale`: s; 1 returns `conditional` exactly.
    - `channels`: guide only the first so many channels; the others keep their conditional values. Default all.

    **Returns:** the guided prediction.
    """
    conditional, unconditional = conditional.astype(jnp.float32), unconditional.astype(jnp.float32)
    # The same formula seen from the other end: exact at scale 1.
    excess = (scale - 1.0) * (conditional - unconditional)
    # There the excess is NaN, or an infinity whose sign depends on the scale.
    banned = jnp.isneginf(conditional) | jnp.isneginf(unconditional)
    if channels is not None:
        guided = jnp.arange(conditional.shape[-1]) < channels
        guided = jnp.expand_dims(guided, tuple(range(excess.ndim - 1)))
        excess, banned = jnp.where(guided, excess, 0.0), banned & guided
    return jnp.where(banned, jnp.where(scale == 1.0, conditional, -jnp.inf), conditional + excess)


def _progress(steps: int) -> np.ndarray:
    """Progress before every step: k / K, rounded correctly to float32."""
    return np.arange(steps, dtype=np.float32) / np.float32(steps)


def _as_scale(scale: float | Float[Array, ""]) -> Float[Array, ""]:
    return jnp.asarray(scale, jnp.float32)
