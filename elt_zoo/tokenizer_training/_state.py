import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PRNGKeyArray

from ..tokenizers import VQ3D, MaskGITVQGAN
from ..training import TrainState
from ._adversary import Adversary
from ._codebook_rules import AbstractCodebookRule, CodeStatistics
from ._discriminator import Discriminator

VQTokenizer = MaskGITVQGAN | VQ3D
"""The tokenizers that can be trained: an encoder, a codebook and a decoder."""


class TokenizerModel(eqx.Module):
    """What training changes: the `model` of a tokenizer's [`TrainState`][elt_zoo.training.TrainState], whose `ema` is a
    tokenizer alone.
    """

    tokenizer: VQTokenizer
    statistics: CodeStatistics
    discriminator: Discriminator | None
    mean_logits: Float[Array, "2"] | None
    """Moving averages of the discriminator's logits of real examples and of reconstructions."""


def create_tokenizer_state(
    tokenizer: VQTokenizer,
    optimizer: optax.GradientTransformation,
    codebook: AbstractCodebookRule,
    *,
    codes_initialised: bool = False,
    adversary: Adversary | None = None,
    discriminator: Discriminator | None = None,
    key: PRNGKeyArray,
) -> TrainState:
    """The state before the first step.

    **Arguments:**

    - `tokenizer`: where to start.
    - `optimizer`, `codebook`, `adversary`: those of [`make_tokenizer_step`][
      elt_zoo.tokenizer_training.make_tokenizer_step].
    - `codes_initialised`: whether the tokenizer's codes are worth keeping, as after
      [`inflate`][elt_zoo.tokenizers.inflate]. Otherwise the first batch replaces them.
    - `discriminator`: exactly if there is an adversary.
    - `key`: PRNG key.

    **Raises:** `ValueError` for one of `adversary` and `discriminator` without the other.
    """
    if (adversary is None) != (discriminator is None):
        raise ValueError("`create_tokenizer_state` needs an adversary and a discriminator, or neither.")
    model = TokenizerModel(
        tokenizer=tokenizer,
        statistics=codebook.start(tokenizer.codebook, codes_initialised=codes_initialised),
        discriminator=discriminator,
        mean_logits=None if adversary is None else jnp.zeros(2, jnp.float32),
    )
    # Copies: a step donates its buffers, and none may be in two places or belong to the caller.
    model, ema = (
        jax.tree.map(lambda leaf: jnp.array(leaf) if eqx.is_array(leaf) else leaf, tree) for tree in (model, tokenizer)
    )
    return TrainState(
        model=model,
        ema=ema,
        optimizer_state=(
            optimizer.init(eqx.filter(tokenizer, eqx.is_inexact_array)),
            None if adversary is None else adversary.optimizer.init(eqx.filter(discriminator, eqx.is_inexact_array)),
        ),
        step=jnp.zeros((), jnp.int32),
        skipped=jnp.zeros((), jnp.int32),
        key=key,
    )
