from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from .._checks import checked
from ..corruption import AbstractNoiseSchedule, Prediction, ShiftedCosineSchedule, alpha_sigma
from ._budgets import Loops, resolve_loops
from ._guidance import AbstractGuidance, check_guidance, predict_guided, progress_of
from ._progress import ProgressCallback, report
from ._updates import DDPM, AbstractUpdate, DiffusionStep, diffusion_steps


class DiffusionSampler(eqx.Module):
    """Draws from a diffusion model: from Gaussian noise to clean arrays in a number of steps. Batched.

    At each step the network says what the noisy array holds (x0, v or ε, guided if there is guidance), and an
    [`AbstractUpdate`][elt_zoo.sampling.AbstractUpdate] moves to the next, cleaner time; the last step lands on the
    predicted x0. Continuous schedules are asked at the times 1, 1 − 1/K, …, 1/K, discrete ones at evenly respaced
    indices of their chain.

    The whole run is one compiled program in float32; it is compiled again for another `predict` structure, number of
    steps, shape or Python-int loop count, but not for other guidance scales or arrays of loops.
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
        check_guidance("DiffusionSampler", guidance, null_label)
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

    @checked
    def __call__(
        self,
        predict: Callable[..., Any],
        labels: Int[Array, " batch"],
        *,
        loops: Loops,
        key: PRNGKeyArray,
        initial_noise: Float[Array, "batch *shape"] | None = None,
        callback: ProgressCallback | None = None,
    ) -> Float[Array, "batch *shape"]:
        """Draws one array per label.

        **Arguments:**

        - `predict`: `predict(x, time, labels, loops=…) -> output`, all with a batch axis: a function, or a module such
          as `BatchedPredict(model)`. The output has the channels of x, or twice as many, the second half being the
          variance. With guidance the batch that it sees is twice as large.
        - `labels`: the classes.
        - `loops`: a Python int, an integer scalar array, an integer array with one count per step, or a
          [`LoopBudget`][elt_zoo.sampling.LoopBudget] with one of these for each branch. `predict` gets a Python int, or
          else a traced scalar.
        - `key`: PRNG key; the same key gives the same arrays.
        - `initial_noise`: x at the first time; default drawn from the standard normal distribution.
        - `callback`: called on the host as `callback(step, steps)` after every step; without it the program holds no
          callback.

        **Returns:** the arrays in float32.

        **Raises:** `ValueError`/`TypeError` for wrong loops, noise or outputs; runtime errors for traced values out of
        range.
        """
        return self._run(predict, labels, loops, key, initial_noise, callback, keep=False)[0]

    @checked
    def trajectory(
        self,
        predict: Callable[..., Any],
        labels: Int[Array, " batch"],
        *,
        loops: Loops,
        key: PRNGKeyArray,
        initial_noise: Float[Array, "batch *shape"] | None = None,
        callback: ProgressCallback | None = None,
    ) -> Float[Array, "steps batch *shape"]:
        """The arrays after every step; the last entry is what `__call__` returns.

        **Arguments**, **Raises:** as `__call__`.
        """
        return self._run(predict, labels, loops, key, initial_noise, callback, keep=True)[1][1:]

    @checked
    def step_inputs(
        self,
        predict: Callable[..., Any],
        labels: Int[Array, " batch"],
        *,
        loops: Loops,
        key: PRNGKeyArray,
        initial_noise: Float[Array, "batch *shape"] | None = None,
    ) -> tuple[Float[Array, "steps batch *shape"], Float[Array, "steps batch"]]:
        """What the network is asked at every step, to ask it again afterwards: the noisy arrays and their times.

        **Arguments**, **Raises:** as `__call__`. **Returns:** the inputs of `predict` before the labels.
        """
        x = self._run(predict, labels, loops, key, initial_noise, None, keep=True)[1][:-1]
        times = diffusion_steps(self.schedule, self.steps).time
        return x, jnp.broadcast_to(times[:, None], x.shape[:2])

    def _run(self, predict, labels, loops, key, initial_noise, callback, *, keep: bool) -> tuple[Any, Any]:
        if initial_noise is not None and initial_noise.shape[1:] != self.shape:
            raise ValueError(
                f"`initial_noise` has shape {initial_noise.shape}, but this sampler's is {self.shape}, after "
                "a batch axis."
            )
        resolved = resolve_loops(loops, steps=self.steps, guided=self.guidance is not None)
        return _sample(
            self,
            predict,
            labels,
            initial_noise,
            resolved,
            resolved[0] is resolved[1],
            key,
            callback,
            keep,
        )

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


@eqx.filter_jit
def _sample(
    sampler: DiffusionSampler,
    predict: Callable[..., Any],
    labels: Int[Array, " batch"],
    initial_noise: Float[Array, "batch *shape"] | None,
    loops: tuple[int | Int[Array, " steps"], int | Int[Array, " steps"]],
    shared: bool,
    key: PRNGKeyArray,
    callback: ProgressCallback | None,
    keep: bool,
) -> tuple[Float[Array, "batch *shape"], Float[Array, "times batch *shape"] | None]:
    """The arrays at the end and, if `keep`, at all K + 1 times, the first noise included."""
    batch, steps = labels.shape[0], sampler.steps
    first_key, noise_key = jax.random.split(key)
    if initial_noise is None:
        initial_noise = jax.random.normal(first_key, (batch, *sampler.shape), jnp.float32)
    # Guidance acts on the prediction only; the variance channels keep their conditional values.
    channels = sampler.shape[-1] if sampler.guidance_channels is None else sampler.guidance_channels
    traced_loops, static_loops = eqx.partition(loops, eqx.is_array)

    def one_step(carry, xs):
        x, reported = carry
        index, step, step_key, step_loops = xs
        output = predict_guided(
            predict,
            (x, jnp.broadcast_to(step.time, (batch,))),
            labels,
            loops=eqx.combine(static_loops, step_loops),
            shared=shared,
            guidance=sampler.guidance,
            null_label=sampler.null_label,
            progress=progress_of(index, steps),
            channels=channels,
        )
        prediction, variance = sampler._split(output)
        x0, epsilon = sampler._clean_and_noise(prediction, x, step)
        noise = jax.random.normal(step_key, x.shape, jnp.float32) if sampler.update.stochastic else None
        x = sampler.update(x, x0, epsilon, step, variance=variance, noise=noise)
        return (x, report(callback, index, steps, reported, x)), x if keep else None

    xs = (
        jnp.arange(steps),
        diffusion_steps(sampler.schedule, steps),
        jax.random.split(noise_key, steps),
        traced_loops,
    )
    start = initial_noise.astype(jnp.float32)
    (x, _), after = jax.lax.scan(one_step, (start, jnp.zeros((), jnp.int32)), xs)
    return x, None if after is None else jnp.concatenate([start[None], after])
