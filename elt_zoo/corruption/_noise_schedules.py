import abc
import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .._checks import checked


class AbstractNoiseSchedule(eqx.Module):
    r"""How noisy diffusion is at time t, from 0 (clean) to 1 (noise): x_t = α·x0 + σ·ε with α² + σ² = 1.

    A schedule is its log signal-to-noise ratio $\lambda(t) = \log(\alpha^2 / \sigma^2)$, falling with t (2107.00630).
    Everything is float32.
    """

    @abc.abstractmethod
    def log_snr(self, time: Float[Array, ""]) -> Float[Array, ""]:
        """λ at `time` in [0, 1]."""

    @abc.abstractmethod
    def log_snr_rate(self, time: Float[Array, ""]) -> Float[Array, ""]:
        """−dλ/dt > 0 at `time` in [0, 1]."""

    @abc.abstractmethod
    def sampling_times(self, steps: int) -> Float[np.ndarray, " steps"]:
        """The falling times at which a sampler of `steps` steps asks the network."""

    @checked
    def alpha_sigma(self, time: Float[Array, ""]) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """α = √sigmoid(λ) and σ = √sigmoid(−λ) at `time`: how much signal and how much noise x_t holds."""
        return alpha_sigma(self.log_snr(time))


def alpha_sigma(log_snr: Float[Array, ""]) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """α and σ at a log signal-to-noise ratio, +∞ (no noise) included."""
    return jnp.sqrt(jax.nn.sigmoid(log_snr)), jnp.sqrt(jax.nn.sigmoid(-log_snr))


class ShiftedCosineSchedule(AbstractNoiseSchedule):
    r"""The shifted cosine schedule (simple diffusion, 2301.11093, section 3.1), truncated.

    $$\lambda(t) = -2\log\tan(\theta(t)) + 2\log(\text{shift}),$$

    with θ linear in t, between the two angles that make λ(0) = `log_snr_max` and λ(1) = `log_snr_min`.

    Departs from the published code, which truncates before it shifts, so that its ends move with the shift.
    """

    shift: float = eqx.field(static=True)
    log_snr_min: float = eqx.field(static=True)
    log_snr_max: float = eqx.field(static=True)

    def __init__(self, shift: float = 1.0, *, log_snr_min: float = -10.0, log_snr_max: float = 10.0):
        """**Arguments:**

        - `shift`: resolution at which the noise is defined over resolution of the images (64 / 256 in the paper's
          example), > 0. Below 1 there is more noise at each time; default 1, the plain cosine schedule.
        - `log_snr_min`, `log_snr_max`: λ at times 1 and 0.

        **Raises:** `ValueError` for a shift that is not positive or ends in the wrong order.
        """
        if not shift > 0:
            raise ValueError(
                f"`ShiftedCosineSchedule(shift={shift})` must be positive; 1 is the plain cosine schedule."
            )
        if not log_snr_min < log_snr_max:
            raise ValueError(
                f"`ShiftedCosineSchedule(log_snr_min={log_snr_min}, log_snr_max={log_snr_max})` needs min < max: "
                "time 0 is clean (max), time 1 is noise (min)."
            )
        self.shift = float(shift)
        self.log_snr_min = float(log_snr_min)
        self.log_snr_max = float(log_snr_max)

    @checked
    def log_snr(self, time: Float[Array, ""]) -> Float[Array, ""]:
        """λ at `time` in [0, 1]."""
        angle, complement = self._angles(time)
        return 2 * math.log(self.shift) - 2 * (jnp.log(jnp.sin(angle)) - jnp.log(jnp.sin(complement)))

    @checked
    def log_snr_rate(self, time: Float[Array, ""]) -> Float[Array, ""]:
        """−dλ/dt at `time` in [0, 1]: 2θ' / (sin θ · cos θ)."""
        angle, complement = self._angles(time)
        start, stop = self._ends
        return 2 * (stop - start) / (jnp.sin(angle) * jnp.sin(complement))

    def sampling_times(self, steps: int) -> Float[np.ndarray, " steps"]:
        """1 − k / `steps` for k = 0, …, `steps` − 1."""
        return 1.0 - np.arange(_checked_steps(steps)) / steps

    @property
    def _ends(self) -> tuple[float, float]:
        def angle(log_snr: float) -> float:
            return math.atan(math.exp(math.log(self.shift) - log_snr / 2))

        return angle(self.log_snr_max), angle(self.log_snr_min)

    def _angles(self, time: Float[Array, ""]) -> tuple[Float[Array, ""], Float[Array, ""]]:
        # θ and π/2 − θ, each from its own end: in float32 the difference would lose four digits near pure noise.
        start, stop = self._ends
        time = time.astype(jnp.float32)
        return start + (stop - start) * time, (math.pi / 2 - stop) + (stop - start) * (1.0 - time)


class LinearBetaSchedule(AbstractNoiseSchedule):
    r"""The linear-β schedule of DDPM (2006.11239), used by DiT: a chain of `num_steps` noise levels.

    $$\bar\alpha_i = \prod_{j \le i} (1 - \beta_j), \qquad \lambda_i = \log\bar\alpha_i - \log(1 - \bar\alpha_i),$$

    with β_j evenly spaced. Index i is time i / `num_steps`; between two indices λ is interpolated linearly and beyond
    the last one continued, so that a model may also be trained at continuous times. The table is made in float64.
    """

    num_steps: int = eqx.field(static=True)
    beta_start: float = eqx.field(static=True)
    beta_end: float = eqx.field(static=True)

    def __init__(self, num_steps: int = 1000, *, beta_start: float = 1e-4, beta_end: float = 0.02):
        """**Arguments:** `num_steps`: length of the chain, at least 2; `beta_start`, `beta_end`: first and last β, in
        (0, 1).

        **Raises:** `ValueError` for values outside these ranges.
        """
        if num_steps < 2:
            raise ValueError(f"`LinearBetaSchedule(num_steps={num_steps})` needs a chain of at least 2 noise levels.")
        if not (0 < beta_start < 1 and 0 < beta_end < 1):
            raise ValueError(
                f"`LinearBetaSchedule(beta_start={beta_start}, beta_end={beta_end})` must both be in (0, 1)."
            )
        self.num_steps = num_steps
        self.beta_start = float(beta_start)
        self.beta_end = float(beta_end)

    @checked
    def log_snr(self, time: Float[Array, ""]) -> Float[Array, ""]:
        """λ at `time` in [0, 1]."""
        table = self._table()
        position, index = self._position(time)
        slopes = jnp.asarray(np.diff(table), jnp.float32)
        return jnp.asarray(table, jnp.float32)[index] + slopes[index] * (position - index.astype(jnp.float32))

    @checked
    def log_snr_rate(self, time: Float[Array, ""]) -> Float[Array, ""]:
        """−dλ/dt at `time` in [0, 1], constant between two indices."""
        _, index = self._position(time)
        return jnp.asarray(-self.num_steps * np.diff(self._table()), jnp.float32)[index]

    def sampling_times(self, steps: int) -> Float[np.ndarray, " steps"]:
        """Evenly respaced indices of the chain, both ends included, over `num_steps`, as DiT and improved diffusion
        (2102.09672).

        The network gets the index of the original chain. One step starts from the noisiest index.

        **Raises:** `ValueError` for more steps than the chain has.
        """
        _checked_steps(steps)
        if steps > self.num_steps:
            raise ValueError(
                f"{steps} sampling steps are more than the {self.num_steps} noise levels of `LinearBetaSchedule"
                f"(num_steps={self.num_steps})`. Use at most {self.num_steps} steps, or a continuous schedule."
            )
        if steps == 1:
            return np.asarray([(self.num_steps - 1) / self.num_steps])
        stride = (self.num_steps - 1) / (steps - 1)
        # Added up as the original does: where a position ends in .5 its rounding decides.
        positions = np.cumsum([0.0] + [stride] * (steps - 1))
        return np.rint(positions)[::-1] / self.num_steps

    def _table(self) -> Float[np.ndarray, " num_steps"]:
        betas = np.linspace(self.beta_start, self.beta_end, self.num_steps, dtype=np.float64)
        log_signal = np.cumsum(np.log1p(-betas))
        return log_signal - np.log(-np.expm1(log_signal))

    def _position(self, time: Float[Array, ""]):
        position = time.astype(jnp.float32) * self.num_steps
        return position, jnp.clip(jnp.floor(position), 0, self.num_steps - 2).astype(jnp.int32)


def _checked_steps(steps: int) -> int:
    if steps < 1:
        raise ValueError(f"A sampler of {steps} steps draws nothing: use at least one step.")
    return steps
