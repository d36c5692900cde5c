import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from .._checks import checked
from ..corruption import AbstractMaskSchedule, CosineMaskSchedule
from ._budgets import Loops, resolve_loops
from ._categorical import categorical
from ._guidance import AbstractGuidance, check_guidance, predict_guided, progress_of
from ._progress import ProgressCallback, report


class MaskedSampler(eqx.Module):
    r"""Masked parallel decoding (MaskGIT, 2202.04200, section 3.2), with the temperature of ELT (2604.09168). Batched.

    From a grid of masks, at step k = 0, …, K − 1 with r = (k + 1) / K:

    1. predict logits for all positions (guided, if there is guidance);
    2. draw every unknown token from softmax(logits / T_k), $T_k = \text{bias} + \text{scale}\,(1 - r)$;
    3. its confidence is $\log p(\text{drawn}) + c\,(1 - r)\,\text{Gumbel}$, with p the model's probability at
       temperature 1, so that the noise weighs the same whatever T_k is; a known token's is +∞;
    4. of N₀ tokens unknown at the start clip(⌊N₀·γ(r)⌋, 1, unknown − 1) stay masked, those of lowest confidence; none
       after the last step.

    The whole run is one compiled program; it is compiled again for another `predict` structure, number of steps, shape
    or Python-int loop count, but not for other temperatures, noise, guidance scales or arrays of loops.

    Departs from MaskGIT in two details that change no distribution: exactly the said number of tokens is masked also
    where confidences tie (by rank; the original cuts at a value), and the last step unmasks what it drew (the original
    carries one mask more, and returns the drawn sequence).
    """

    grid: tuple[int, ...] = eqx.field(static=True)
    codebook_size: int = eqx.field(static=True)
    mask_id: int = eqx.field(static=True)
    null_label: int | None = eqx.field(static=True)
    steps: int = eqx.field(static=True)
    schedule: AbstractMaskSchedule
    temperature_bias: Float[Array, ""]
    temperature_scale: Float[Array, ""]
    confidence_noise: Float[Array, ""]
    guidance: AbstractGuidance | None

    def __init__(
        self,
        *,
        grid: tuple[int, ...],
        codebook_size: int,
        mask_id: int,
        null_label: int | None = None,
        steps: int = 24,
        schedule: AbstractMaskSchedule | None = None,
        temperature_bias: float = 0.5,
        temperature_scale: float = 0.8,
        confidence_noise: float = 4.5,
        guidance: AbstractGuidance | None = None,
    ):
        """**Arguments:**

        - `grid`, `codebook_size`, `mask_id`: the token grid's shape, the number of codes, the id of a masked token (as
          the head's).
        - `null_label`: the label for no class; needed with guidance only.
        - `steps`: K, from 1 to the number of tokens; default the paper's 24.
        - `schedule`: γ, the masked share; default cosine.
        - `temperature_bias`, `temperature_scale`: bias > 0 and scale ≥ 0 of T_k; defaults the paper's. 1 and 0 draw
          from the model.
        - `confidence_noise`: c ≥ 0. 0 reveals the surest tokens first, a large value random ones. The paper does not
          state it; default MaskGIT's 4.5.
        - `guidance`: classifier-free guidance; default none, which never evaluates the unconditional branch.

        **Raises:** `ValueError` for values outside these ranges.
        """
        num_tokens = math.prod(grid)
        if min(grid, default=0) < 1 or codebook_size < 1:
            raise ValueError(f"`MaskedSampler(grid={grid}, codebook_size={codebook_size})` needs sizes of at least 1.")
        if 0 <= mask_id < codebook_size:
            raise ValueError(
                f"`MaskedSampler(mask_id={mask_id})` is one of the {codebook_size} codes; use the head's mask id, "
                f"{codebook_size} for `MaskGITHead`."
            )
        if steps < 1:
            raise ValueError(f"`MaskedSampler(steps={steps})` draws nothing: use at least one step.")
        if steps > num_tokens:
            raise ValueError(
                f"`MaskedSampler(steps={steps})` cannot reveal {num_tokens} tokens: every step reveals at least one. "
                f"Use at most {num_tokens} steps."
            )
        if not (temperature_bias > 0 and temperature_scale >= 0):
            raise ValueError(
                f"`MaskedSampler(temperature_bias={temperature_bias}, temperature_scale={temperature_scale})` "
                "needs bias > 0 and scale >= 0, or some temperature is not positive. Use a small bias to draw "
                "the likeliest token."
            )
        if not confidence_noise >= 0:
            raise ValueError(f"`MaskedSampler(confidence_noise={confidence_noise})` must not be negative.")
        check_guidance("MaskedSampler", guidance, null_label)
        self.grid = tuple(grid)
        self.codebook_size = codebook_size
        self.mask_id = mask_id
        self.null_label = null_label
        self.steps = steps
        self.schedule = CosineMaskSchedule() if schedule is None else schedule
        self.temperature_bias = jnp.asarray(temperature_bias, jnp.float32)
        self.temperature_scale = jnp.asarray(temperature_scale, jnp.float32)
        self.confidence_noise = jnp.asarray(confidence_noise, jnp.float32)
        self.guidance = guidance

    @checked
    def __call__(
        self,
        predict: Callable[..., Any],
        labels: Int[Array, " batch"],
        *,
        loops: Loops,
        key: PRNGKeyArray,
        initial_ids: Int[Array, "batch *grid"] | None = None,
        callback: ProgressCallback | None = None,
    ) -> Int[Array, "batch *grid"]:
        """Draws one grid of ids per label.

        **Arguments:**

        - `predict`: `predict(ids, labels, loops=…) -> logits`, all with a batch axis: a function, or a module such as
          `BatchedPredict(model)`. With guidance the batch that it sees is twice as large.
        - `labels`: the classes.
        - `loops`: a Python int, an integer scalar array, an integer array with one count per step, or a
          [`LoopBudget`][elt_zoo.sampling.LoopBudget] with one of these for each branch. `predict` gets a Python int, or
          else a traced scalar.
        - `key`: PRNG key; the same key gives the same ids.
        - `initial_ids`: what is known already, `mask_id` elsewhere; known tokens stay as they are. With fewer unknown
          tokens than steps, the last steps find nothing to do. Default: nothing is known.
        - `callback`: called on the host as `callback(step, steps)` after every step; without it the program holds no
          callback.

        **Returns:** ids in [0, codebook_size).

        **Raises:** `ValueError`/`TypeError` for wrong loops, ids or logits; runtime errors for traced values out of
        range.
        """
        return self._run(predict, labels, loops, key, initial_ids, callback, keep=False)[0]

    @checked
    def trajectory(
        self,
        predict: Callable[..., Any],
        labels: Int[Array, " batch"],
        *,
        loops: Loops,
        key: PRNGKeyArray,
        initial_ids: Int[Array, "batch *grid"] | None = None,
        callback: ProgressCallback | None = None,
    ) -> Int[Array, "steps batch *grid"]:
        """The ids after every step, those still masked as `mask_id`; the last entry is what `__call__` returns.

        **Arguments**, **Raises:** as `__call__`.
        """
        return self._run(predict, labels, loops, key, initial_ids, callback, keep=True)[1][1:]

    @checked
    def step_inputs(
        self,
        predict: Callable[..., Any],
        labels: Int[Array, " batch"],
        *,
        loops: Loops,
        key: PRNGKeyArray,
        initial_ids: Int[Array, "batch *grid"] | None = None,
    ) -> tuple[Int[Array, "steps batch *grid"]]:
        """What the network is asked at every step, to ask it again afterwards: ids, those still masked as `mask_id`.

        **Arguments**, **Raises:** as `__call__`. **Returns:** the inputs of `predict` before the labels, here one.
        """
        return (self._run(predict, labels, loops, key, initial_ids, None, keep=True)[1][:-1],)

    def _run(self, predict, labels, loops, key, initial_ids, callback, *, keep: bool) -> tuple[Any, Any]:
        resolved = resolve_loops(loops, steps=self.steps, guided=self.guidance is not None)
        if initial_ids is None:
            initial_ids = jnp.full((labels.shape[0], *self.grid), self.mask_id, jnp.int32)
        return _sample(
            self,
            predict,
            labels,
            self._checked_ids(initial_ids),
            resolved,
            resolved[0] is resolved[1],
            key,
            callback,
            keep,
        )

    def _checked_ids(self, ids: Int[Array, "batch *grid"]) -> Int[Array, "batch *grid"]:
        if ids.shape[1:] != self.grid:
            raise ValueError(
                f"`initial_ids` has shape {ids.shape}, but this sampler's grid is {self.grid}, after a batch axis."
            )
        message = (
            f"`initial_ids` holds an id that is neither a code (0 to {self.codebook_size - 1}) nor the mask "
            f"({self.mask_id})."
        )
        if isinstance(ids, Tracer):
            return eqx.error_if(ids, ((ids < 0) | (ids >= self.codebook_size)) & (ids != self.mask_id), message)
        values = np.asarray(ids)
        if np.any(((values < 0) | (values >= self.codebook_size)) & (values != self.mask_id)):
            raise ValueError(message)
        return ids

    def _reveal(
        self,
        ids: Int[Array, "batch tokens"],
        logits: Float[Array, "batch tokens codebook"],
        num_initial: Int[Array, " batch"],
        step: Int[Array, ""],
        key: PRNGKeyArray,
    ) -> Int[Array, "batch tokens"]:
        """Steps 2 to 4 of the class's docstring."""
        draw_key, noise_key = jax.random.split(key)
        ratio = (step + 1).astype(jnp.float32) / self.steps
        unknown = ids == self.mask_id
        temperature = self.temperature_bias + self.temperature_scale * (1.0 - ratio)
        drawn = categorical(draw_key, logits / temperature).astype(ids.dtype)
        log_prob = jnp.take_along_axis(logits, drawn[:, :, None], axis=2)[:, :, 0] - jax.nn.logsumexp(logits, axis=2)
        noise = self.confidence_noise * (1.0 - ratio) * jax.random.gumbel(noise_key, ids.shape, jnp.float32)
        confidence = jnp.where(unknown, log_prob + noise, jnp.inf)
        num_masked = num_to_mask(self.schedule(ratio), num_initial, jnp.sum(unknown, axis=1))
        num_masked = jnp.where(step + 1 == self.steps, 0, num_masked)
        masked = jax.vmap(lowest)(confidence, num_masked)
        return jnp.where(masked, jnp.asarray(self.mask_id, ids.dtype), jnp.where(unknown, drawn, ids))


def num_to_mask(
    share: Float[Array, ""], num_initial: Int[Array, " batch"], num_unknown: Int[Array, " batch"]
) -> Int[Array, " batch"]:
    """How many tokens of each example stay masked: clip(⌊num_initial · share⌋, 1, num_unknown − 1)."""
    # In float32 a product that should be whole (256·cos(π/3), 10·(1 − 0.3)) may come out just below.
    wanted = jnp.floor(num_initial.astype(jnp.float32) * (share + 5e-7)).astype(num_unknown.dtype)
    return jnp.minimum(jnp.maximum(wanted, 1), num_unknown - 1)


def lowest(values: Float[Array, " tokens"], count: Int[Array, ""]) -> Bool[Array, " tokens"]:
    """Marks the `count` lowest values; of equal ones the first."""
    ranks = jnp.argsort(jnp.argsort(values, stable=True))
    return ranks < count


@eqx.filter_jit
def _sample(
    sampler: MaskedSampler,
    predict: Callable[..., Any],
    labels: Int[Array, " batch"],
    initial_ids: Int[Array, "batch *grid"],
    loops: tuple[int | Int[Array, " steps"], int | Int[Array, " steps"]],
    shared: bool,
    key: PRNGKeyArray,
    callback: ProgressCallback | None,
    keep: bool,
) -> tuple[Int[Array, "batch *grid"], Int[Array, "states batch *grid"] | None]:
    """The ids at the end and, if `keep`, before every step and after the last."""
    batch, tokens, steps = labels.shape[0], math.prod(sampler.grid), sampler.steps
    num_initial = jnp.sum(jnp.reshape(initial_ids, (batch, tokens)) == sampler.mask_id, axis=1)
    traced_loops, static_loops = eqx.partition(loops, eqx.is_array)

    def one_step(carry, x):
        ids, reported = carry
        step, step_key, step_loops = x
        logits = predict_guided(
            predict,
            (ids,),
            labels,
            loops=eqx.combine(static_loops, step_loops),
            shared=shared,
            guidance=sampler.guidance,
            null_label=sampler.null_label,
            progress=progress_of(step, steps),
        )
        expected = (*ids.shape, sampler.codebook_size)
        if logits.shape != expected:
            raise ValueError(f"`predict` returned logits of shape {logits.shape}; `MaskedSampler` expects {expected}.")
        flat = sampler._reveal(
            jnp.reshape(ids, (batch, tokens)), jnp.reshape(logits, (batch, tokens, -1)), num_initial, step, step_key
        )
        ids = jnp.reshape(flat, ids.shape)
        return (ids, report(callback, step, steps, reported, ids)), ids if keep else None

    xs = (jnp.arange(steps), jax.random.split(key, steps), traced_loops)
    (ids, _), after = jax.lax.scan(one_step, (initial_ids, jnp.zeros((), jnp.int32)), xs)
    return ids, None if after is None else jnp.concatenate([initial_ids[None], after])
