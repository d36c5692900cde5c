from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from .._checks import checked
from ..models import BatchedPredict, ElasticModel
from ..sampling import DiffusionSampler, Loops, MaskedSampler


class UpdateNorms(NamedTuple):
    """How far every loop moves the trunk's state. Entry l − 1 of the last axis belongs to loop l."""

    absolute: Float[Array, "*axes loops"]
    """‖x_l − x_{l−1}‖, the Euclidean norm over all tokens and their width; x_0 is the embedding."""
    relative: Float[Array, "*axes loops"]
    """The same over ‖x_{l−1}‖: comparable between models, and between loops of a state that grows."""


@checked
def update_norms(model: ElasticModel, *inputs: Any, loops: int) -> UpdateNorms:
    """How far every loop moves the state, for one example (2604.09168, figure 14).

    **Arguments:** `model`; `inputs`: those of the head's `embed`; `loops`: how many to measure, past L_max too.

    **Returns:** [`UpdateNorms`][elt_zoo.diagnostics.UpdateNorms] of `loops` entries, in float32.

    **Raises:** `ValueError` if `loops` is below 1.
    """
    tokens, conditioning = model.head.embed(*inputs)
    states = model.trunk.trajectory(tokens, conditioning, loops=loops)
    states = jnp.concatenate([tokens[None].astype(jnp.float32), states.astype(jnp.float32)])
    absolute = _norms(states[1:] - states[:-1])
    return UpdateNorms(absolute, absolute / _norms(states[:-1]))


@checked
def sampling_update_norms(
    model: ElasticModel,
    sampler: DiffusionSampler | MaskedSampler,
    labels: Int[Array, " batch"],
    *,
    loops: int,
    budget: Loops | None = None,
    key: PRNGKeyArray,
) -> UpdateNorms:
    """How far every loop moves the state at every step of sampling (2604.09168, figure 14). Batched.

    It samples first and looks afterwards: the network is asked once more what it was asked at each step of the run that
    `sampler` makes with this key, now for its states. Under guidance it is the conditional branch that is measured.

    **Arguments:**

    - `model`, `sampler`, `labels`, `key`: as for drawing samples.
    - `loops`: how many to measure at every step.
    - `budget`: the `loops` that sampling spends; default `loops`. Give it to look past the loops that were drawn with.

    **Returns:** [`UpdateNorms`][elt_zoo.diagnostics.UpdateNorms] of shape (steps, batch, loops). The figure shows their
    mean over the batch.

    **Raises:** what the sampler raises.
    """
    budget = loops if budget is None else budget
    asked = sampler.step_inputs(BatchedPredict(model), labels, loops=budget, key=key)
    return _at_every_step(model, asked, labels, loops)


@eqx.filter_jit
def _at_every_step(
    model: ElasticModel, asked: tuple[Array, ...], labels: Int[Array, " batch"], loops: int
) -> UpdateNorms:
    def of_batch(inputs):
        return jax.vmap(lambda *example: update_norms(model, *example, loops=loops))(*inputs, labels)

    return jax.lax.map(of_batch, asked)


def _norms(states: Float[Array, "states tokens dim"]) -> Float[Array, " states"]:
    return jnp.sqrt(jnp.sum(jnp.square(states), axis=(1, 2)))
