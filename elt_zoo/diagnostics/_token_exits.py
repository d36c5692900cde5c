from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from .._checks import checked
from ..corruption import MaskedCorruption, MaskedTarget
from ._exits import AbstractExits, ExitColumn
from ._protocols import HasExits
from ._sums import total


class TokenExits(AbstractExits):
    r"""The answers of a masked model's exits at the same masked tokens, and what each loop changes.

    The answer of an exit is its most likely code. From exit l to exit l + 1 an answer may **flip**. A flip from wrong
    to right is a **self-correction**, a flip from right to wrong is **overthinking**
    ([1810.07052](https://arxiv.org/abs/1810.07052)), and

    $$\text{accuracy}_{l+1} - \text{accuracy}_l = \text{self-correction}_l - \text{overthinking}_l$$

    Entry l − 1 of an axis `loops` belongs to exit l, entry l − 1 of an axis `transitions` to the step from exit l to
    exit l + 1. All rates are shares of the masked tokens.

    **Fields:**

    - `num_tokens`: masked tokens.
    - `num_same`: tokens for which exits i and j give the same answer.
    - `num_right`: tokens for which the exit is right.
    - `num_ever_right`: tokens for which the exit or an earlier one is right.
    - `num_corrected`, `num_overthought`: tokens that turn from wrong to right, and from right to wrong.
    - `total_divergence`: sum of KL(p_{l+1} ‖ p_l) in nats.
    """

    share_of: ClassVar[str] = "masked tokens"

    num_tokens: Int[Array, ""]
    num_same: Int[Array, "loops loops"]
    num_right: Int[Array, " loops"]
    num_ever_right: Int[Array, " loops"]
    num_corrected: Int[Array, " transitions"]
    num_overthought: Int[Array, " transitions"]
    total_divergence: Float[Array, " transitions"]

    @property
    def agreement(self) -> Float[Array, "loops loops"]:
        """Share of tokens for which two exits give the same answer, for all pairs of exits."""
        return self.num_same / self.num_tokens

    @property
    def flips(self) -> Float[Array, " transitions"]:
        """Share of tokens whose answer changes: 1 − the agreement of neighbouring exits."""
        return 1.0 - jnp.diagonal(self.agreement, offset=1)

    @property
    def accuracy(self) -> Float[Array, " loops"]:
        """Share of tokens for which the exit is right."""
        return self.num_right / self.num_tokens

    @property
    def self_correction(self) -> Float[Array, " transitions"]:
        """Share of tokens that turn from wrong to right."""
        return self.num_corrected / self.num_tokens

    @property
    def overthinking(self) -> Float[Array, " transitions"]:
        """Share of tokens that turn from right to wrong."""
        return self.num_overthought / self.num_tokens

    @property
    def forgotten(self) -> Float[Array, " loops"]:
        """Share of tokens for which the exit is wrong although an earlier exit is right: the most that a perfect
        stopping rule could gain over this exit.
        """
        return (self.num_ever_right - self.num_right) / self.num_tokens

    @property
    def divergence(self) -> Float[Array, " transitions"]:
        """Mean KL(p_{l+1} ‖ p_l) in nats per token: how far a loop moves the whole distribution."""
        return self.total_divergence / self.num_tokens.astype(jnp.float32)

    def columns(self) -> list[ExitColumn]:
        return [
            ExitColumn("accuracy", "accuracy", self.accuracy, ".1%"),
            ExitColumn("forgotten", "forgotten", self.forgotten, ".1%"),
            ExitColumn("same_as_last", "same as last", self.agreement[:, -1], ".1%"),
            ExitColumn("flips", "flips", self.flips, ".1%", "answer changes (flips)"),
            ExitColumn("self_correction", "corrected", self.self_correction, ".1%", "wrong → right (self-correction)"),
            ExitColumn("overthinking", "overthought", self.overthinking, ".1%", "right → wrong (overthinking)"),
            ExitColumn("kl", "KL (nats)", self.divergence, ".4f"),
        ]


@checked
def compare_token_exits(logits: Float[Array, "loops *grid codebook"], target: MaskedTarget) -> TokenExits:
    """Compares the exits of one example, given their predictions.

    **Arguments:** `logits`: of every exit; `target`: the true ids and the masked positions.

    **Returns:** [`TokenExits`][elt_zoo.diagnostics.TokenExits] of this example.
    """
    grid = tuple(range(1, logits.ndim - 1))
    answers = jnp.argmax(logits, axis=-1)
    right = (answers == target.ids[None]) & target.mask[None]
    ever_right = jax.lax.cummax(right.astype(jnp.int32), axis=0)
    same = (answers[:, None] == answers[None]) & target.mask[None, None]
    log_p = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
    divergence = jnp.sum(jnp.exp(log_p[1:]) * (log_p[1:] - log_p[:-1]), axis=-1)
    return TokenExits(
        num_tokens=jnp.sum(target.mask),
        num_same=jnp.sum(same, axis=tuple(axis + 1 for axis in grid)),
        num_right=jnp.sum(right, axis=grid),
        num_ever_right=jnp.sum(ever_right, axis=grid),
        num_corrected=jnp.sum(~right[:-1] & right[1:], axis=grid),
        num_overthought=jnp.sum(right[:-1] & ~right[1:], axis=grid),
        total_divergence=jnp.sum(jnp.where(target.mask[None], divergence, 0.0), axis=grid),
    )


@eqx.filter_jit
@checked
def token_exits(
    model: HasExits,
    corruption: MaskedCorruption,
    ids: Int[Array, "batch *grid"],
    labels: Int[Array, " batch"],
    *,
    loops: int,
    key: PRNGKeyArray,
) -> TokenExits:
    """Masks held-out tokens and compares the answers of the exits, all on the same masks. Batched.

    It needs memory for the logits of all exits. [`held_out_exits`][elt_zoo.diagnostics.held_out_exits] goes through a
    large set batch by batch.

    **Arguments:** `model`: an [`ElasticModel`][elt_zoo.ElasticModel], or any with its `trajectory`; `corruption`: as in
    training, without dropped labels; `ids`, `labels`: clean; `loops`: exits to compare, beyond L_max too; `key`: of the
    corruption.

    **Returns:** [`TokenExits`][elt_zoo.diagnostics.TokenExits] of the batch.
    """
    corrupted = corruption(ids, labels, key=key)

    def one(inputs, target):
        return compare_token_exits(model.trajectory(*inputs, loops=loops), target)

    return total(jax.vmap(one)(corrupted.inputs, corrupted.target))
