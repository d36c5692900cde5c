import math
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, Shaped

from ..corruption import AbstractMaskSchedule, CosineMaskSchedule
from ._categorical import categorical
from ._guidance import AbstractGuidance
from ._sampler import AbstractSampler

_SORTED_FROM = 512
"""From this number of tokens on, sorting them is faster on a CPU than comparing each with all others."""


class MaskedState(NamedTuple):
    """How far the decoding of a batch is."""

    ids: Int[Array, "batch *grid"]
    num_initial: Int[Array, " batch"]
    """Tokens that were unknown at the start."""


class MaskedSampler(AbstractSampler):
    r"""Masked parallel decoding (MaskGIT, 2202.04200, section 3.2), with the temperature of ELT (2604.09168). Batched.

    From a grid of masks, at step k = 0, …, K − 1 with r = (k + 1) / K:

    1. predict logits for all positions (guided, if there is guidance);
    2. draw every unknown token from softmax(logits / T_k), $T_k = \text{bias} + \text{scale}\,(1 - r)$;
    3. its confidence is $\log p(\text{drawn}) + c\,(1 - r)\,\text{Gumbel}$, with p the model's probability at
       temperature 1, so that the noise weighs the same whatever T_k is; a known token's is +∞;
    4. of N₀ tokens unknown at the start clip(⌊N₀·γ(r)⌋, 1, unknown − 1) stay masked, those of lowest confidence; none
       after the last step.

    `predict(ids, labels, loops=…)` returns logits of shape (batch, \*grid, codebook_size). A logit of −∞ bans a code;
    under guidance, in either branch. Logits that are no distribution (NaN or +∞ among them, or −∞ for every code) leave
    their token masked: the result holds `mask_id` there. A call waits for its result and raises `FloatingPointError`
    for such a token; a call that the caller traces cannot.

    `initial` holds the ids that are known, and `mask_id` elsewhere; default nothing is known. Known tokens stay as they
    are. With fewer unknown tokens than steps, the last steps find nothing to do.

    Temperatures and noise are arrays: other values compile nothing again.

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

    def check_initial(self, initial: Array, labels: Int[Array, " batch"]) -> None:
        expected = (*labels.shape, *self.grid)
        if initial.shape != expected or not jnp.issubdtype(initial.dtype, jnp.integer):
            raise ValueError(
                f"`initial` has shape {initial.shape} and dtype {initial.dtype}, but this sampler starts from integer "
                f"ids of shape {expected}."
            )
        if isinstance(initial, Tracer):
            return  # An id out of range stays in the result.
        if jnp.any(~self._is_code(initial) & (initial != self.mask_id)):
            raise ValueError(
                f"`initial` holds an id that is neither a code (0 to {self.codebook_size - 1}) nor the mask "
                f"({self.mask_id})."
            )

    def split_key(self, key: PRNGKeyArray) -> tuple[PRNGKeyArray, Shaped[Array, "steps ..."]]:
        return key, jax.random.split(key, self.steps)  # Nothing at the start is random.

    def init(
        self, labels: Int[Array, " batch"], key: PRNGKeyArray, initial: Int[Array, "batch *grid"] | None
    ) -> MaskedState:
        ids = jnp.full((*labels.shape, *self.grid), self.mask_id, jnp.int32) if initial is None else initial
        return MaskedState(ids, jnp.sum(self._flat(ids) == self.mask_id, axis=1))

    def inputs(self, state: MaskedState, now: Int[Array, ""]) -> tuple[Int[Array, "batch *grid"]]:
        return (state.ids,)

    def step(
        self, state: MaskedState, prediction: Float[Array, "batch *out"], now: Int[Array, ""], key: PRNGKeyArray
    ) -> MaskedState:
        ids = self._reveal(state, prediction, now, key, last=now + 1 == self.steps)
        return MaskedState(ids, state.num_initial)

    def finish(
        self, state: MaskedState, prediction: Float[Array, "batch *out"], now: Int[Array, ""], key: PRNGKeyArray
    ) -> Int[Array, "batch *grid"]:
        """The ids with all that are masked drawn at once, at this step's temperature."""
        return self._reveal(state, prediction, now, key, last=jnp.asarray(True))

    def output(self, state: MaskedState) -> Int[Array, "batch *grid"]:
        return state.ids

    def check_samples(self, samples: Int[Array, "batch *grid"]) -> None:
        bad = int(jnp.sum(~self._is_code(samples)))
        if bad:
            raise FloatingPointError(
                f"`MaskedSampler` could not sample {bad} of {samples.size} tokens: the logits there hold NaN or "
                "+inf, or ban every code with -inf. Look for non-finite weights or activations in `predict`."
            )

    def _is_code(self, ids: Int[Array, "batch *grid"]) -> Bool[Array, "batch *grid"]:
        return (ids >= 0) & (ids < self.codebook_size)

    def _flat(self, ids: Int[Array, "batch *grid"]) -> Int[Array, "batch tokens"]:
        return jnp.reshape(ids, (len(ids), math.prod(self.grid)))

    def _reveal(
        self,
        state: MaskedState,
        prediction: Float[Array, "batch *out"],
        step: Int[Array, ""],
        key: PRNGKeyArray,
        *,
        last: Bool[Array, ""],
    ) -> Int[Array, "batch *grid"]:
        """Steps 2 to 4 of the class's docstring; the last step leaves no mask."""
        expected = (*state.ids.shape, self.codebook_size)
        if prediction.shape != expected:
            raise ValueError(
                f"`predict` returned logits of shape {prediction.shape}; `MaskedSampler` expects {expected}."
            )
        ids, logits = self._flat(state.ids), jnp.reshape(prediction, (len(prediction), -1, self.codebook_size))
        draw_key, noise_key = jax.random.split(key)
        ratio = (step + 1).astype(jnp.float32) / self.steps
        unknown = ids == self.mask_id
        temperature = self.temperature_bias + self.temperature_scale * (1.0 - ratio)
        drawn, log_prob = categorical(draw_key, logits, temperature)
        drawn, valid = drawn.astype(ids.dtype), drawn >= 0
        noise = self.confidence_noise * (1.0 - ratio) * jax.random.gumbel(noise_key, ids.shape, jnp.float32)
        confidence = jnp.where(unknown, jnp.where(valid, log_prob + noise, -jnp.inf), jnp.inf)
        num_masked = num_to_mask(self.schedule(ratio), state.num_initial, jnp.sum(unknown, axis=1))
        num_masked = jnp.where(last, 0, num_masked)
        masked = jax.vmap(lowest)(confidence, num_masked) | (unknown & ~valid)
        ids = jnp.where(masked, jnp.asarray(self.mask_id, ids.dtype), jnp.where(unknown, drawn, ids))
        return jnp.reshape(ids, state.ids.shape)


def num_to_mask(
    share: Float[Array, ""], num_initial: Int[Array, " batch"], num_unknown: Int[Array, " batch"]
) -> Int[Array, " batch"]:
    """How many tokens of each example stay masked: clip(⌊num_initial · share⌋, 1, num_unknown − 1)."""
    # In float32 a product that should be whole (256·cos(π/3), 10·(1 − 0.3)) may come out just below.
    wanted = jnp.floor(num_initial.astype(jnp.float32) * (share + 5e-7)).astype(num_unknown.dtype)
    return jnp.minimum(jnp.maximum(wanted, 1), num_unknown - 1)


def lowest(values: Float[Array, " tokens"], count: Int[Array, ""]) -> Bool[Array, " tokens"]:
    """Marks the `count` lowest values; of equal ones the first. No value is NaN."""
    tokens = len(values)
    if tokens >= _SORTED_FROM:
        return jnp.argsort(jnp.argsort(values, stable=True)) < count
    first, second = jnp.broadcast_to(values, (tokens, tokens)), jnp.broadcast_to(values[:, None], (tokens, tokens))
    earlier = jnp.tri(tokens, k=-1, dtype=bool)
    return jnp.sum((first < second) | ((first == second) & earlier), axis=1) < count
