import abc
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .._checks import checked
from ..corruption import AbstractNoiseSchedule, alpha_sigma


class DiffusionStep(NamedTuple):
    """What an update needs to know of one sampling step, from a noisier time t to a cleaner time s. Float32.

    The variances are those of q(x_s | x_t, x0): `log_small` is log β̃, right for data without spread, `log_large` is
    log β, right for data of unit variance (2006.11239, section 3.2).
    """

    time: Float[Array, "*steps"]
    """What the network is told: t."""
    log_snr: Float[Array, "*steps"]
    next_log_snr: Float[Array, "*steps"]
    """λ at s; +∞ at the last step, which lands on clean data."""
    log_small: Float[Array, "*steps"]
    log_large: Float[Array, "*steps"]


@checked
def diffusion_steps(schedule: AbstractNoiseSchedule, steps: int) -> DiffusionStep:
    r"""The steps of a sampling run, stacked along a leading axis.

    With $c = 1 - e^{\lambda_t - \lambda_s}$: $\tilde\beta = c\,\sigma_s^2$ and $\beta = c\,\sigma_t^2$ (2107.00630,
    appendix A). At the last step β̃ = 0, and its logarithm is replaced by that of the step before (2102.09672).

    **Arguments:** `schedule`; `steps`: at least 1. **Returns:** a [`DiffusionStep`][elt_zoo.sampling.DiffusionStep] of
    arrays.
    """
    time = jnp.asarray(schedule.sampling_times(steps), jnp.float32)
    log_snr = jax.vmap(schedule.log_snr)(time)
    next_log_snr = jnp.concatenate([log_snr[1:], jnp.full(1, np.inf, jnp.float32)])
    log_c = jnp.log(-jnp.expm1(log_snr - next_log_snr))
    log_large = log_c + jax.nn.log_sigmoid(-log_snr)
    log_small = log_c + jax.nn.log_sigmoid(-next_log_snr)
    log_small = jnp.concatenate([log_small[:-1], log_small[-2:-1] if steps > 1 else log_large])
    return DiffusionStep(time, log_snr, next_log_snr, log_small, log_large)


class AbstractUpdate(eqx.Module):
    """How a diffusion sampler gets from x_t to x_s, once the network has told x0 and ε."""

    stochastic: eqx.AbstractVar[bool]
    """Whether it draws noise."""
    learned_variance: eqx.AbstractVar[bool]
    """Whether it reads the variance channels of the network's output."""

    @abc.abstractmethod
    def __call__(
        self,
        x: Float[Array, "batch *shape"],
        x0: Float[Array, "batch *shape"],
        epsilon: Float[Array, "batch *shape"],
        step: DiffusionStep,
        *,
        variance: Float[Array, "batch *shape"] | None = None,
        noise: Float[Array, "batch *shape"] | None = None,
    ) -> Float[Array, "batch *shape"]:
        """**Arguments:**

        - `x`: x_t. `x0`, `epsilon`: what the network makes of it.
        - `step`: one step.
        - `variance`: the network's variance channels, in [−1, 1]; only read with `learned_variance`.
        - `noise`: standard normal; only read if `stochastic`.

        **Returns:** x_s.

        **Raises:** `ValueError` for missing noise or variance.
        """


class DDPM(AbstractUpdate):
    r"""Ancestral sampling (2006.11239): x_s ~ q(x_s | x_t, x0), without noise at the last step.

    $$\text{mean} = \alpha_s\,(1 - c)\,x_t / \alpha_t + \alpha_s\,c\,x_0, \qquad c = 1 - e^{\lambda_t - \lambda_s}$$

    On a discrete schedule this is the posterior of the respaced chain, as in DiT; on a continuous one that of
    2107.00630.
    """

    variance: float = eqx.field(static=True)
    learned_variance: bool = eqx.field(static=True)
    stochastic: bool = eqx.field(static=True)

    def __init__(self, *, variance: float = 0.0, learned_variance: bool = False):
        """**Arguments:**

        - `variance`: log-variance on the line from log β̃ (0, "small", the default: the posterior's own) to log β (1,
          "large"); between 0 and 1 it is interpolated (2301.11093 uses 0.3 or less).
        - `learned_variance`: take it for each entry from the network's variance channels v instead, at (v + 1) / 2
          (2102.09672); for models with `learned_variance`.

        **Raises:** `ValueError` outside [0, 1], or when both are set.
        """
        if not 0 <= variance <= 1:
            raise ValueError(f"`DDPM(variance={variance})` must be in [0, 1]: 0 is the posterior's, 1 is beta.")
        if learned_variance and variance != 0.0:
            raise ValueError(f"`DDPM(variance={variance}, learned_variance=True)` sets the variance twice: drop one.")
        self.variance = float(variance)
        self.learned_variance = learned_variance
        self.stochastic = True

    @checked
    def posterior(
        self,
        x: Float[Array, "batch *shape"],
        x0: Float[Array, "batch *shape"],
        step: DiffusionStep,
        *,
        variance: Float[Array, "batch *shape"] | None = None,
    ) -> tuple[Float[Array, "batch *shape"], Float[Array, "..."]]:
        """Mean and log-variance of x_s given x_t and x0; the latter a scalar unless learned. Arguments as a call's."""
        keep = jnp.exp(step.log_snr - step.next_log_snr)
        (alpha, _), (next_alpha, _) = alpha_sigma(step.log_snr), alpha_sigma(step.next_log_snr)
        # 1 − keep with all its digits, where neighbouring steps are close.
        forget = -jnp.expm1(step.log_snr - step.next_log_snr)
        mean = (next_alpha * keep / alpha) * x + (next_alpha * forget) * x0
        fraction: Float[Array, "..."] | float = self.variance
        if self.learned_variance:
            if variance is None:
                raise ValueError(
                    "`DDPM(learned_variance=True)` needs the network's variance channels: pass `variance`."
                )
            fraction = (variance + 1.0) / 2
        return mean, step.log_small + (step.log_large - step.log_small) * fraction

    @checked
    def __call__(
        self,
        x: Float[Array, "batch *shape"],
        x0: Float[Array, "batch *shape"],
        epsilon: Float[Array, "batch *shape"],
        step: DiffusionStep,
        *,
        variance: Float[Array, "batch *shape"] | None = None,
        noise: Float[Array, "batch *shape"] | None = None,
    ) -> Float[Array, "batch *shape"]:
        noise = _given(noise, "DDPM")
        mean, log_variance = self.posterior(x, x0, step, variance=variance)
        deviation = jnp.where(jnp.isinf(step.next_log_snr), 0.0, jnp.exp(0.5 * log_variance))
        return mean + deviation * noise


class DDIM(AbstractUpdate):
    r"""DDIM (2010.02502, equation 12).

    $$x_s = \alpha_s x_0 + \sqrt{\sigma_s^2 - \varsigma^2}\,\varepsilon + \varsigma z$$

    $\varsigma = \eta\,\sigma_s\sqrt{1 - e^{\lambda_t - \lambda_s}}$; η = 0 is deterministic given the first
    noise, η = 1 is ancestral sampling with the posterior's variance.
    """

    eta: float = eqx.field(static=True)
    learned_variance: bool = eqx.field(static=True)
    stochastic: bool = eqx.field(static=True)

    def __init__(self, *, eta: float = 0.0):
        """**Arguments:** `eta`: η in [0, 1]; default 0. **Raises:** `ValueError` otherwise."""
        if not 0 <= eta <= 1:
            raise ValueError(f"`DDIM(eta={eta})` must be in [0, 1]: 0 is deterministic, 1 as noisy as DDPM.")
        self.eta = float(eta)
        self.learned_variance = False
        self.stochastic = self.eta > 0

    @checked
    def __call__(
        self,
        x: Float[Array, "batch *shape"],
        x0: Float[Array, "batch *shape"],
        epsilon: Float[Array, "batch *shape"],
        step: DiffusionStep,
        *,
        variance: Float[Array, "batch *shape"] | None = None,
        noise: Float[Array, "batch *shape"] | None = None,
    ) -> Float[Array, "batch *shape"]:
        next_alpha, next_sigma = alpha_sigma(step.next_log_snr)
        if not self.stochastic:
            return next_alpha * x0 + next_sigma * epsilon
        noise = _given(noise, "DDIM")
        share = -(self.eta**2) * jnp.expm1(step.log_snr - step.next_log_snr)
        return next_alpha * x0 + next_sigma * (jnp.sqrt(1.0 - share) * epsilon + jnp.sqrt(share) * noise)


def _given(noise: Array | None, update: str) -> Array:
    if noise is None:
        raise ValueError(f"`{update}` is stochastic: pass `noise`, standard normal numbers of the shape of `x`.")
    return noise
