import abc
from collections.abc import Callable
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from .._checks import checked


class AbstractGuidance(eqx.Module):
    r"""The scale s of classifier-free guidance (2207.12598) over a sampling run.

    One formula everywhere, on logits in masked decoding and on the network's output in diffusion:

    $$\text{guided} = \text{uncond} + s\,(\text{cond} - \text{uncond})$$

    s = 1 is the conditional prediction alone, s = 0 the unconditional one; DiT counts so. Papers that write
    (1 + w)·cond − w·uncond mean s = 1 + w: see [`scale_from_weight`][elt_zoo.sampling.scale_from_weight].

    A schedule is a function of progress p = k / K at step k = 0, …, K − 1: the share of the sampling done before
    that step. For the continuous diffusion schedules p is 1 − time. Scales are arrays, so that another value compiles
    nothing anew.
    """

    skips: ClassVar[bool] = False
    """Whether the unconditional branch is left out where the scale is 1, at the price of a larger program."""

    @abc.abstractmethod
    def __call__(self, progress: Float[Array, ""]) -> Float[Array, ""]:
        """**Arguments:** `progress`: in [0, 1]. **Returns:** the scale, float32."""


class ConstantGuidance(AbstractGuidance):
    """One scale for every step."""

    scale: Float[Array, ""]

    def __init__(self, scale: float | Float[Array, ""]):
        """**Arguments:** `scale`: 1 is no guidance (set the sampler's `guidance=None` for that: it halves the work)."""
        self.scale = _as_scale(scale)

    @checked
    def __call__(self, progress: Float[Array, ""]) -> Float[Array, ""]:
        return self.scale


class LinearGuidance(AbstractGuidance):
    """A scale that changes linearly: start + (stop − start)·p (Muse, 2301.00704, section 2.7)."""

    start: Float[Array, ""]
    stop: Float[Array, ""]

    def __init__(self, start: float | Float[Array, ""], stop: float | Float[Array, ""]):
        """**Arguments:** `start`, `stop`: scale at progress 0 and 1."""
        self.start = _as_scale(start)
        self.stop = _as_scale(stop)

    @checked
    def __call__(self, progress: Float[Array, ""]) -> Float[Array, ""]:
        return self.start + (self.stop - self.start) * progress


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
    def __call__(self, progress: Float[Array, ""]) -> Float[Array, ""]:
        return 1.0 + (self.scale - 1.0) * (1.0 - jnp.cos(jnp.pi * progress**self.power)) / 2


class IntervalGuidance(AbstractGuidance):
    """Guidance within an interval of progress, the conditional prediction alone outside (2404.07724).

    Outside the interval the unconditional branch is not evaluated, so it saves time too.
    """

    skips: ClassVar[bool] = True

    guidance: AbstractGuidance
    start: float = eqx.field(static=True)
    stop: float = eqx.field(static=True)

    def __init__(self, guidance: AbstractGuidance, *, start: float, stop: float):
        """**Arguments:**

        - `guidance`: the scale inside the interval.
        - `start`, `stop`: guided is every step with `start` ≤ p < `stop`, in [0, 1]. An interval of times (t_low,
          t_high] of a continuous noise schedule is the one from 1 − t_high to 1 − t_low.

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
    def __call__(self, progress: Float[Array, ""]) -> Float[Array, ""]:
        inside = (progress >= self.start) & (progress < self.stop)
        return jnp.where(inside, self.guidance(progress), 1.0)


def scale_from_weight(weight: float) -> float:
    """The scale s = 1 + w of guidance written (1 + w)·cond − w·uncond."""
    return 1.0 + weight


def weight_from_scale(scale: float) -> float:
    """The weight w = s − 1 in (1 + w)·cond − w·uncond of our scale s."""
    return scale - 1.0


@checked
def apply_guidance(
    conditional: Float[Array, "*shape"],
    unconditional: Float[Array, "*shape"],
    scale: Float[Array, ""],
    *,
    channels: int | None = None,
) -> Float[Array, "*shape"]:
    """Classifier-free guidance: uncond + scale·(cond − uncond), in float32.

    **Arguments:**

    - `conditional`, `unconditional`: predictions, channels last.
    - `scale`: s; 1 returns `conditional` exactly.
    - `channels`: guide only the first so many channels; the others keep their conditional values. Default all.

    **Returns:** the guided prediction.
    """
    conditional = conditional.astype(jnp.float32)
    # The same formula seen from the other end: exact at scale 1.
    excess = (scale - 1.0) * (conditional - unconditional.astype(jnp.float32))
    if channels is not None:
        guided = jnp.arange(conditional.shape[-1]) < channels
        excess = jnp.where(jnp.expand_dims(guided, tuple(range(excess.ndim - 1))), excess, 0.0)
    return conditional + excess


def progress_of(step: Int[Array, ""], steps: int) -> Float[Array, ""]:
    """Progress before step k of K: k / K."""
    return step.astype(jnp.float32) / steps


def guided_steps(guidance: AbstractGuidance, steps: int) -> np.ndarray:
    """Which steps evaluate the unconditional branch."""
    if not guidance.skips:
        return np.ones(steps, bool)
    return np.asarray([float(guidance(progress_of(jnp.asarray(step), steps))) != 1.0 for step in range(steps)])


def predict_guided(
    predict: Callable[..., Any],
    inputs: tuple[Array, ...],
    labels: Int[Array, " batch"],
    *,
    loops: tuple[int | Int[Array, ""], int | Int[Array, ""]],
    shared: bool,
    guidance: AbstractGuidance | None,
    null_label: int | None,
    progress: Float[Array, ""],
    channels: int | None = None,
) -> Float[Array, "batch *out"]:
    """The prediction of one sampling step, guided if there is guidance, in float32. Batched.

    `loops` are those of the conditional and of the unconditional branch; `shared` says that they are the same, and then
    one call on the doubled batch serves both.
    """

    def conditional() -> Array:
        return predict(*inputs, labels, loops=loops[0]).astype(jnp.float32)

    if guidance is None:
        return conditional()
    assert null_label is not None
    nulls = jnp.full_like(labels, null_label)
    scale = guidance(progress)

    def guided() -> Array:
        if shared:
            doubled = [jnp.concatenate([each, each]) for each in inputs]
            both = predict(*doubled, jnp.concatenate([labels, nulls]), loops=loops[0])
            cond, uncond = jnp.split(both, 2)
        else:
            cond = predict(*inputs, labels, loops=loops[0])
            uncond = predict(*inputs, nulls, loops=loops[1])
        return apply_guidance(cond, uncond, scale, channels=channels)

    if guidance.skips:
        return jax.lax.cond(scale == 1.0, conditional, guided)
    return guided()


def check_guidance(name: str, guidance: AbstractGuidance | None, null_label: int | None) -> None:
    if guidance is not None and null_label is None:
        raise ValueError(
            f"`{name}(guidance=...)` also needs `null_label`, the label that the model was trained to take for no "
            "class (`head.null_label`)."
        )


def _as_scale(scale: float | Float[Array, ""]) -> Float[Array, ""]:
    return jnp.asarray(scale, jnp.float32)
