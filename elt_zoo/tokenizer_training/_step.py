from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from ..tokenizers import nearest_codes
from ..training import Precision, TrainState, update_ema
from ._adversary import Adversary
from ._codebook_rules import AbstractCodebookRule, straight_through
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
) -> Callable[[TrainState, Any], tuple[TrainState, Metrics]]:
    """The training step of a tokenizer as a pure function of state and batch; wrap it in
    [`jit_step`][elt_zoo.training.jit_step] and give it to [`fit`][elt_zoo.training.fit].

    As in [`make_train_step`][elt_zoo.training.make_train_step], every random number of step t comes from the state's
    key folded with t, and an update that is not finite, of either player, is not applied and counted.

    **Arguments:**

    - `optimizer`: an optax transformation, the tokenizer's.
    - `codebook`: [`GradientCodebook`][elt_zoo.tokenizer_training.GradientCodebook] or
      [`EMACodebook`][elt_zoo.tokenizer_training.EMACodebook].
    - `loss`: of reconstructions; default the mean squared error.
    - `adversary`: trains a discriminator beside it, on the same reconstructions; default none.
    - `ema_decay`: of the average of the parameters. Codes that were replaced are replaced in the average too.
    - `precision`: compute dtype of the networks; default float32. Latents meet the codes in float32.
    - `prepare`: `(batch, key) -> batch`, what is left to do on the device, such as turning bytes into pixels.

    **Returns:** `train_step(state, batch) -> (state, metrics)`, for states from [`create_tokenizer_state`][
    elt_zoo.tokenizer_training.create_tokenizer_state] and batches whose `examples` are pixels in [−1, 1]. Metrics are
    float32 scalars: `loss` and its weighted terms, `psnr`, `usage` (share of the codes that this batch chose),
    `perplexity` (of the moving averages), `revived` (codes replaced), `gradient_norm` and, with an adversary,
    `discriminator` and the mean logits.
    """
    loss = ReconstructionLoss() if loss is None else loss
    precision = Precision() if precision is None else precision

    def run(tokenizer: VQTokenizer, model: TokenizerModel, pixels: Array, active: Array) -> tuple[Array, Pass]:
        compute = precision.cast(tokenizer)
        latents = jax.vmap(compute.latents)(pixels).astype(jnp.float32)
        ids = nearest_codes(latents, tokenizer.codebook)
        codes = tokenizer.codebook[ids]
        output = jax.vmap(compute.decoder)(precision.cast(straight_through(latents, codes))).astype(jnp.float32)
        terms = loss(pixels, output) | {"codebook": codebook.loss(latents, codes)}
        if adversary is not None:
            terms["adversarial"] = active * adversary.weight * generator_loss(_logits(model.discriminator, output))
        flat = jnp.reshape(latents, (-1, latents.shape[-1]))
        total = jnp.sum(jnp.stack(list(terms.values())))
        return total, Pass(jax.lax.stop_gradient(flat), jnp.ravel(ids), jax.lax.stop_gradient(output), terms)

    def judge(discriminator: Any, model: TokenizerModel, pixels: Array, output: Array) -> tuple[Array, Array]:
        """The discriminator's loss, and its mean logits."""
        assert adversary is not None and model.mean_logits is not None
        real, fake = _logits(discriminator, pixels), _logits(discriminator, output)
        total = discriminator_loss(real, fake)
        if adversary.r1 > 0.0:
            total += adversary.r1 * r1_penalty(discriminator, pixels)
        if adversary.lecam > 0.0:
            mean_real, mean_fake = model.mean_logits
            total += adversary.lecam * lecam_penalty(real, fake, mean_real=mean_real, mean_fake=mean_fake)
        return total, jnp.stack([jnp.mean(real), jnp.mean(fake)])

    def play(model: TokenizerModel, optimizer_state: PyTree, pixels: Array, output: Array, active: Array):
        """The discriminator's turn: its part of the new model, its optimiser's state, metrics and gradient's norm."""
        assert adversary is not None and model.mean_logits is not None
        graded = eqx.filter_value_and_grad(judge, has_aux=True)
        (total, logits), gradient = graded(model.discriminator, model, pixels, output)
        discriminator, fresh_state = _apply(adversary.optimizer, gradient, optimizer_state, model.discriminator)
        moved = adversary.lecam_decay * model.mean_logits + (1.0 - adversary.lecam_decay) * logits
        new = _choose(
            active > 0.0, (discriminator, fresh_state, moved), (model.discriminator, optimizer_state, model.mean_logits)
        )
        metrics = {"discriminator": total, "real_logit": logits[0], "fake_logit": logits[1]}
        return new, metrics, optax.tree.norm(gradient)

    def train_step(state: TrainState, batch: Any) -> tuple[TrainState, Metrics]:
        revive_key, prepare_key = jax.random.split(jax.random.fold_in(state.key, state.step))
        if prepare is not None:
            batch = prepare(batch, prepare_key)
        pixels = (batch.examples + 1.0) / 2.0
        model, (optimizer_state, adversary_state) = state.model, state.optimizer_state
        active = jnp.ones((), jnp.float32) if adversary is None else adversary.active(state.step)

        graded = eqx.filter_value_and_grad(run, has_aux=True)
        (total, made), gradient = graded(model.tokenizer, model, pixels, active)
        norm = optax.tree.norm(gradient)
        finite = jnp.isfinite(total) & jnp.isfinite(norm)

        tokenizer, optimizer_state = _apply(optimizer, gradient, optimizer_state, model.tokenizer)
        changed = codebook.update(tokenizer.codebook, model.statistics, made.latents, made.ids, key=revive_key)
        tokenizer = _with_codebook(tokenizer, changed.codebook)
        ema = update_ema(state.ema, tokenizer, state.step, ema_decay)
        ema = _with_codebook(ema, jnp.where(changed.revived[:, None], changed.codebook, ema.codebook))
        metrics = {
            "loss": total,
            **made.terms,
            "psnr": jnp.mean(psnr(pixels, made.output)),
            "usage": jnp.mean((jnp.bincount(made.ids, length=tokenizer.codebook_size) > 0).astype(jnp.float32)),
            "perplexity": perplexity(changed.statistics.counts),
            "revived": jnp.sum(changed.revived.astype(jnp.float32)),
            "gradient_norm": norm,
        }
        discriminator, mean_logits = model.discriminator, model.mean_logits
        if adversary is not None:
            new, played, its_norm = play(model, adversary_state, pixels, made.output, active)
            discriminator, adversary_state, mean_logits = new
            metrics |= played
            finite &= jnp.isfinite(its_norm)

        new = (
            TokenizerModel(tokenizer, changed.statistics, discriminator, mean_logits),
            ema,
            (optimizer_state, adversary_state),
        )
        model, ema, optimizer_state = _choose(finite, new, (model, state.ema, state.optimizer_state))
        skipped = state.skipped + jnp.where(finite, 0, 1)
        return TrainState(model, ema, optimizer_state, state.step + 1, skipped, state.key), metrics

    return train_step


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
