import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree

from ..tokenizers import nearest_codes
from ..training import Precision, TrainState, TrainStep, update_ema
from ._adversary import Adversary
from ._codebook_rules import AbstractCodebookRule, straight_through
from ._discriminator import Discriminator
from ._gan_losses import discriminator_loss, generator_loss, lecam_penalty, r1_penalty
from ._quality import perplexity, psnr
from ._reconstruction_loss import ReconstructionLoss
from ._state import TokenizerModel, VQTokenizer

Metrics = dict[str, Float[Array, ""]]


class Pass(NamedTuple):
    """What the tokenizer made of a batch."""

    latents: Float[Array, "latents dim"]
    ids: Int[Array, " latents"]
    output: Float[Array, "batch *grid 3"]
    terms: Metrics


def make_tokenizer_step(
    optimizer: optax.GradientTransformation,
    codebook: AbstractCodebookRule,
    *,
    loss: ReconstructionLoss | None = None,
    adversary: Adversary | None = None,
    ema_decay: float = 0.999,
    precision: Precision | None = None,
    prepare: Callable[[Any, PRNGKeyArray], Any] | None = None,
) -> TrainStep:
    """The training step of a tokenizer as a pure function of state and batch; wrap it in
    [`jit_step`][elt_zoo.training.jit_step] and give it to [`fit`][elt_zoo.training.fit].

    As in [`make_train_step`][elt_zoo.training.make_train_step], every random number of step t comes from the state's
    key folded with t. If the update of either network is not finite, neither is applied, and the step is counted in
    `state.skipped`.

    **Arguments:**

    - `optimizer`: the tokenizer's, an optax transformation.
    - `codebook`: [`GradientCodebook`][elt_zoo.tokenizer_training.GradientCodebook] or
      [`EMACodebook`][elt_zoo.tokenizer_training.EMACodebook].
    - `loss`: of reconstructions; default the mean squared error.
    - `adversary`: trains a discriminator beside it, on the same reconstructions; default none.
    - `ema_decay`: of the average of the parameters, in [0, 1). Replaced codes are replaced in the average too.
    - `precision`: compute dtype of the networks; default float32. Latents meet the codes in float32.
    - `prepare`: `(batch, key) -> batch`, the first part of the compiled step, such as turning bytes into pixels.

    **Returns:** `train_step(state, batch) -> (state, metrics)`, for states from [`create_tokenizer_state`][
    elt_zoo.tokenizer_training.create_tokenizer_state] and batches whose `examples` are pixels in [−1, 1]. Metrics are
    float32 scalars: `loss` and its weighted terms, `psnr`, `usage` (share of the codes that this batch chose),
    `perplexity` (of the moving averages), `revived` (codes replaced), `gradient_norm` and, with an adversary,
    `discriminator` and the mean logits.
    """
    return _TokenizerStep(
        optimizer=optimizer,
        codebook=codebook,
        loss=ReconstructionLoss() if loss is None else loss,
        adversary=adversary,
        ema_decay=ema_decay,
        precision=Precision() if precision is None else precision,
        prepare=prepare,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class _TokenizerStep:
    """The step; the fields are the arguments of `make_tokenizer_step`."""

    optimizer: optax.GradientTransformation
    codebook: AbstractCodebookRule
    loss: ReconstructionLoss
    adversary: Adversary | None
    ema_decay: float
    precision: Precision
    prepare: Callable[[Any, PRNGKeyArray], Any] | None

    def __call__(self, state: TrainState, batch: Any) -> tuple[TrainState, Metrics]:
        revive_key, prepare_key = jax.random.split(jax.random.fold_in(state.key, state.step))
        if self.prepare is not None:
            batch = self.prepare(batch, prepare_key)
        pixels = (batch.examples + 1.0) / 2.0
        old, (optimizer_state, adversary_state) = state.model, state.optimizer_state
        adversary = self.adversary
        active = jnp.ones((), jnp.float32) if adversary is None else adversary.active(state.step)

        graded = eqx.filter_value_and_grad(self._reconstruct, has_aux=True)
        (total, made), gradient = graded(old.tokenizer, old.discriminator, pixels, active)
        norm = optax.tree.norm(gradient)
        finite = jnp.isfinite(total) & jnp.isfinite(norm)

        tokenizer, optimizer_state = _apply(self.optimizer, gradient, optimizer_state, old.tokenizer)
        codes = self.codebook.update(tokenizer.codebook, old.statistics, made.latents, made.ids, key=revive_key)
        tokenizer = _with_codebook(tokenizer, codes.codebook)
        ema = update_ema(state.ema, tokenizer, state.step, self.ema_decay)
        ema = _with_codebook(ema, jnp.where(codes.revived[:, None], codes.codebook, ema.codebook))
        metrics = {
            "loss": total,
            **made.terms,
            "psnr": jnp.mean(psnr(pixels, made.output)),
            "usage": jnp.mean((jnp.bincount(made.ids, length=tokenizer.codebook_size) > 0).astype(jnp.float32)),
            "perplexity": perplexity(codes.statistics.counts),
            "revived": jnp.sum(codes.revived.astype(jnp.float32)),
            "gradient_norm": norm,
        }
        discriminator, mean_logits = old.discriminator, old.mean_logits
        if adversary is not None:
            turn = _judge_and_learn(adversary, old, adversary_state, pixels, made.output, active)
            discriminator, adversary_state, mean_logits = turn.discriminator, turn.optimizer_state, turn.mean_logits
            metrics |= turn.metrics
            finite &= turn.finite

        new = (
            TokenizerModel(tokenizer, codes.statistics, discriminator, mean_logits),
            ema,
            (optimizer_state, adversary_state),
        )
        model, ema, optimizer_state = _choose(finite, new, (old, state.ema, state.optimizer_state))
        skipped = state.skipped + jnp.where(finite, 0, 1)
        return TrainState(model, ema, optimizer_state, state.step + 1, skipped, state.key), metrics

    def _reconstruct(
        self, tokenizer: VQTokenizer, discriminator: Discriminator | None, pixels: Array, active: Array
    ) -> tuple[Array, Pass]:
        """The tokenizer's loss, and what it made of the pixels."""
        compute = self.precision.cast(tokenizer)
        latents = jax.vmap(compute.latents)(pixels).astype(jnp.float32)
        ids = nearest_codes(latents, tokenizer.codebook)
        codes = tokenizer.codebook[ids]
        inputs = self.precision.cast(straight_through(latents, codes))
        output = jax.vmap(compute.decoder)(inputs).astype(jnp.float32)
        terms = self.loss(pixels, output) | {"codebook": self.codebook.loss(latents, codes)}
        if self.adversary is not None:
            terms["adversarial"] = active * self.adversary.weight * generator_loss(_logits(discriminator, output))
        flat = jnp.reshape(latents, (-1, latents.shape[-1]))
        total = jnp.sum(jnp.stack(list(terms.values())))
        return total, Pass(jax.lax.stop_gradient(flat), jnp.ravel(ids), jax.lax.stop_gradient(output), terms)


class _Turn(NamedTuple):
    """The discriminator after its turn."""

    discriminator: Discriminator
    optimizer_state: PyTree
    mean_logits: Float[Array, "2"]
    metrics: Metrics
    finite: Bool[Array, ""]


def _judge_and_learn(
    adversary: Adversary, model: TokenizerModel, optimizer_state: PyTree, pixels: Array, output: Array, active: Array
) -> _Turn:
    """Trains the discriminator by one step on pixels and their reconstructions, if it is active."""
    assert model.discriminator is not None and model.mean_logits is not None
    graded = eqx.filter_value_and_grad(_judge, has_aux=True)
    (total, logits), gradient = graded(model.discriminator, adversary, model.mean_logits, pixels, output)
    discriminator, fresh_state = _apply(adversary.optimizer, gradient, optimizer_state, model.discriminator)
    moved = adversary.lecam_decay * model.mean_logits + (1.0 - adversary.lecam_decay) * logits
    discriminator, fresh_state, moved = _choose(
        active > 0.0, (discriminator, fresh_state, moved), (model.discriminator, optimizer_state, model.mean_logits)
    )
    metrics = {"discriminator": total, "real_logit": logits[0], "fake_logit": logits[1]}
    return _Turn(discriminator, fresh_state, moved, metrics, jnp.isfinite(optax.tree.norm(gradient)))


def _judge(
    discriminator: Discriminator, adversary: Adversary, mean_logits: Float[Array, "2"], pixels: Array, output: Array
) -> tuple[Array, Array]:
    """The discriminator's loss, and its mean logits of pixels and of reconstructions."""
    real, fake = _logits(discriminator, pixels), _logits(discriminator, output)
    total = discriminator_loss(real, fake)
    if adversary.r1 > 0.0:
        total += adversary.r1 * r1_penalty(discriminator, pixels)
    if adversary.lecam > 0.0:
        mean_real, mean_fake = mean_logits
        total += adversary.lecam * lecam_penalty(real, fake, mean_real=mean_real, mean_fake=mean_fake)
    return total, jnp.stack([jnp.mean(real), jnp.mean(fake)])


def _logits(discriminator: Any, pixels: Float[Array, "batch *grid 3"]) -> Float[Array, " batch"]:
    return jax.vmap(discriminator)(pixels)


def _with_codebook(tokenizer: VQTokenizer, codebook: Float[Array, "codes dim"]) -> VQTokenizer:
    return eqx.tree_at(lambda tokenizer: tokenizer.codebook, tokenizer, codebook)


def _apply(optimizer: optax.GradientTransformation, gradient: PyTree, state: PyTree, network: PyTree):
    """The network and the optimiser's state after an update."""
    # Optax's counters rely on implicit promotion, which a caller may have made strict.
    with jax.numpy_dtype_promotion("standard"):
        updates, state = optimizer.update(gradient, state, eqx.filter(network, eqx.is_inexact_array))
    return eqx.apply_updates(network, updates), state


def _choose(condition: Array, new: PyTree, old: PyTree) -> PyTree:
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b) if eqx.is_array(a) else a, new, old)
