from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from .._checks import checked
from ..models import BatchedPredict
from ..sampling import AbstractSampler, Loops
from ._protocols import HasStates


class UpdateNorms(NamedTuple):
    """How far every loop moves the trunk's state. Entry l − 1 of the last axis belongs to loop l."""

    absolute: Float[Array, "*axes loops"]
    """‖x_l − x_{l−1}‖, the Euclidean norm over all tokens and their width; x_0 is what enters the loops."""
    relative: Float[Array, "*axes loops"]
    """The same over ‖x_{l−1}‖: comparable between models, and between loops of a state that grows."""


@checked
def update_norms(model: HasStates, *inputs: Any, loops: int) -> UpdateNorms:
    """How far every loop moves the state, for one example
    ([2604.09168](https://arxiv.org/abs/2604.09168), figure 14).

    **Arguments:** `model`: an [`ElasticModel`][elt_zoo.ElasticModel], or any with such a `head` and `trunk`; `inputs`:
    the arguments of the head's `embed`; `loops`: loops to measure, beyond L_max too.

    **Returns:** [`UpdateNorms`][elt_zoo.diagnostics.UpdateNorms] of `loops` entries, in float32.

    **Raises:** `ValueError` if `loops` is below 1.
    """
    tokens, conditioning = model.head.embed(*inputs)
    states = model.trunk.loop_states(tokens, conditioning, loops=loops).astype(jnp.float32)
    absolute = _norms(states[1:] - states[:-1])
    return UpdateNorms(absolute, absolute / _norms(states[:-1]))


@checked
def sampling_update_norms(
    model: HasStates,
    sampler: AbstractSampler,
    labels: Int[Array, " batch"],
    *,
    loops: int,
    budget: Loops | None = None,
    key: PRNGKeyArray,
) -> UpdateNorms:
    """How far every loop moves the state at every step of sampling
    ([2604.09168](https://arxiv.org/abs/2604.09168), figure 14). Batched.

    It samples first, then runs the network again on the inputs of every step and keeps the states. Under guidance it
    measures the conditional branch.

    **Arguments:**

    - `model`, `sampler`, `labels`, `key`: as for sampling.
    - `loops`: loops to measure at every step.
    - `budget`: the `loops` to sample with; default `loops`. Give a smaller one to measure loops beyond it.

    **Returns:** [`UpdateNorms`][elt_zoo.diagnostics.UpdateNorms] of shape (steps, batch, loops). The paper's figure
    shows their mean over the batch.

    **Raises:** the sampler's errors.
    """
    budget = loops if budget is None else budget
    asked = sampler.step_inputs(BatchedPredict(model), labels, loops=budget, key=key)
    return _at_every_step(model, asked, labels, loops)


@eqx.filter_jit
def _at_every_step(model: HasStates, asked: tuple[Array, ...], labels: Int[Array, " batch"], loops: int) -> UpdateNorms:
    def of_batch(inputs):
        return jax.vmap(lambda *example: update_norms(model, *example, loops=loops))(*inputs, labels)

    return jax.lax.map(of_batch, asked)


def _norms(states: Float[Array, "states tokens dim"]) -> Float[Array, " states"]:
    return jnp.sqrt(jnp.sum(jnp.square(states), axis=(1, 2)))
