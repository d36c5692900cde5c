import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from ..corruption import AbstractNoiseSchedule, Prediction, ShiftedCosineSchedule, alpha_sigma
from ._guidance import AbstractGuidance, apply_guidance
from ._sampler import AbstractSampler
from ._updates import DDPM, AbstractUpdate, DiffusionStep, diffusion_steps


class DiffusionSampler(AbstractSampler):
    """Samples a diffusion model: from Gaussian noise to clean arrays in a number of steps. Batched.

    At each step the network says what the noisy array holds (x0, v or ε, guided if there is guidance), and an
    [`AbstractUpdate`][elt_zoo.sampling.AbstractUpdate] moves to the next, cleaner time; the last step lands on the
    predicted x0. Continuous schedules are asked at the times 1, 1 − 1/K, …, 1/K, discrete ones at evenly respaced
    indices of their chain.

    `predict(x, time, labels, loops=…)` returns an array with the channels of x, or with twice as many, of which the
    second half is the variance. `initial` is x at the first time; default standard normal noise. The run computes in
    float32. NaN in a prediction stays NaN in the sample.
    """

    shape: tuple[int, ...] = eqx.field(static=True)
    prediction: Prediction = eqx.field(static=True)
    null_label: int | None = eqx.field(static=True)
    steps: int = eqx.field(static=True)
    schedule: AbstractNoiseSchedule
    update: AbstractUpdate
    clip_x0: float | None = eqx.field(static=True)
    guidance: AbstractGuidance | None
    guidance_channels: int | None = eqx.field(static=True)

    def __init__(
        self,
        *,
        shape: tuple[int, ...],
        prediction: Prediction,
        null_label: int | None = None,
        steps: int = 512,
        schedule: AbstractNoiseSchedule | None = None,
        update: AbstractUpdate | None = None,
        clip_x0: float | None = None,
        guidance: AbstractGuidance | None = None,
        guidance_channels: int | None = None,
    ):
        """**Arguments:**

        - `shape`: of one example, channels last.
        - `prediction`: what the network predicts.
        - `null_label`: the label for no class; needed with guidance only.
        - `steps`: K; default the paper's 512. At most the length of the chain for a discrete schedule.
        - `schedule`: the noise schedule of the training; default `ShiftedCosineSchedule()`.
        - `update`: default [`DDPM()`][elt_zoo.sampling.DDPM], or [`DDIM()`][elt_zoo.sampling.DDIM].
        - `clip_x0`: clip the predicted x0 to [−clip_x0, clip_x0] before the update (and make ε agree with it); for data
          of known range such as pixels. Default none, as DiT does for latents.
        - `guidance`: classifier-free guidance; default none, which never evaluates the unconditional branch.
        - `guidance_channels`: guide only the first so many channels (DiT: 3 of 4); default all. Variance channels are
          never guided.

        **Raises:** `ValueError` for values outside these ranges.
        """
        if len(shape) == 0 or min(shape) < 1:
            raise ValueError(f"`DiffusionSampler(shape={shape})` needs the shape of one example, channels last.")
        if clip_x0 is not None and not clip_x0 > 0:
            raise ValueError(f"`DiffusionSampler(clip_x0={clip_x0})` must be positive, or None for no clipping.")
        if guidance_channels is not None and not 1 <= guidance_channels <= shape[-1]:
            raise ValueError(
                f"`DiffusionSampler(guidance_channels={guidance_channels})` must be from 1 to the {shape[-1]} channels "
                f"of the shape {shape}, or None for all of them."
            )
        self.shape = tuple(shape)
        self.prediction = Prediction(prediction)
        self.null_label = null_label
        self.steps = steps
        self.schedule = ShiftedCosineSchedule() if schedule is None else schedule
        self.update = DDPM() if update is None else update
        self.clip_x0 = clip_x0
        self.guidance = guidance
        self.guidance_channels = guidance_channels
        self.schedule.sampling_times(steps)  # Raises for a number of steps that the schedule cannot do.

    def check_initial(self, initial: Array, labels: Int[Array, " batch"]) -> None:
        expected = (*labels.shape, *self.shape)
        if initial.shape != expected or not jnp.issubdtype(initial.dtype, jnp.floating):
            raise ValueError(
                f"`initial` has shape {initial.shape} and dtype {initial.dtype}, but this sampler starts from noise in "
                f"floating point of shape {expected}."
            )

    def table(self) -> DiffusionStep:
        return diffusion_steps(self.schedule, self.steps)

    def init(
        self, labels: Int[Array, " batch"], key: PRNGKeyArray, initial: Float[Array, "batch *shape"] | None
    ) -> Float[Array, "batch *shape"]:
        if initial is None:
            return jax.random.normal(key, (*labels.shape, *self.shape), jnp.float32)
        return initial.astype(jnp.float32)

    def inputs(
        self, state: Float[Array, "batch *shape"], now: DiffusionStep
    ) -> tuple[Float[Array, "batch *shape"], Float[Array, " batch"]]:
        return state, jnp.broadcast_to(now.time, len(state))

    def guide(
        self,
        conditional: Float[Array, "batch *out"],
        unconditional: Float[Array, "batch *out"],
        scale: Float[Array, ""],
    ) -> Float[Array, "batch *out"]:
        # The variance channels keep their conditional values.
        channels = self.shape[-1] if self.guidance_channels is None else self.guidance_channels
        return apply_guidance(conditional, unconditional, scale, channels=channels)

    def step(
        self,
        state: Float[Array, "batch *shape"],
        prediction: Float[Array, "batch *out"],
        now: DiffusionStep,
        key: PRNGKeyArray,
    ) -> Float[Array, "batch *shape"]:
        prediction, variance = self._split(prediction)
        x0, epsilon = self._clean_and_noise(prediction, state, now)
        noise = jax.random.normal(key, state.shape, jnp.float32) if self.update.stochastic else None
        return self.update(state, x0, epsilon, now, variance=variance, noise=noise)

    def finish(
        self,
        state: Float[Array, "batch *shape"],
        prediction: Float[Array, "batch *out"],
        now: DiffusionStep,
        key: PRNGKeyArray,
    ) -> Float[Array, "batch *shape"]:
        """The clean data that the prediction holds."""
        return self._clean_and_noise(self._split(prediction)[0], state, now)[0]

    def output(self, state: Float[Array, "batch *shape"]) -> Float[Array, "batch *shape"]:
        return state

    def _split(
        self, output: Float[Array, "batch *out"]
    ) -> tuple[Float[Array, "batch *shape"], Float[Array, "batch *shape"] | None]:
        """The network's output as prediction and, if it has one, variance."""
        channels = self.shape[-1]
        leading = (output.shape[0], *self.shape[:-1])
        if output.shape not in ((*leading, channels), (*leading, 2 * channels)):
            raise ValueError(
                f"`predict` returned shape {output.shape}; `DiffusionSampler` expects {(*leading, channels)}, or "
                f"{(*leading, 2 * channels)} from a model with learned variance."
            )
        variance = output[..., channels:] if output.shape[-1] == 2 * channels else None
        if self.update.learned_variance and variance is None:
            raise ValueError(
                "`DDPM(learned_variance=True)` needs variance channels, but `predict` returned none. Use `DDPM()`, or "
                "a model with learned variance."
            )
        return output[..., :channels], variance

    def _clean_and_noise(
        self, prediction: Float[Array, "batch *shape"], x: Float[Array, "batch *shape"], step: DiffusionStep
    ) -> tuple[Float[Array, "batch *shape"], Float[Array, "batch *shape"]]:
        alpha, sigma = alpha_sigma(step.log_snr)
        x0 = self.prediction.to_x0(prediction, x, alpha, sigma)
        if self.clip_x0 is None:
            return x0, self.prediction.to_epsilon(prediction, x, alpha, sigma)
        x0 = jnp.clip(x0, -self.clip_x0, self.clip_x0)
        return x0, Prediction.X0.to_epsilon(x0, x, alpha, sigma)
