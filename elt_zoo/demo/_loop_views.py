from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from ..diagnostics import update_norms
from ..families import ModelConfig
from ..generator import Generator
from ..models import BatchedPredict, ElasticModel
from ..sampling import AbstractSampler, Loops


class LoopViews(NamedTuple):
    """What the network is asked at every step of sampling one example, and what each exit answers."""

    known: Float[np.ndarray, "steps *pixels"]
    """The unfinished sample before each step."""
    guesses: Float[np.ndarray, "steps exits *pixels"]
    """What the finished sample looks like to each exit, without guidance."""
    changes: Float[np.ndarray, "steps transitions"]
    """How much of its guess each exit changes of that of the exit before: the share of tokens that flip, or the root
    mean square of the change for arrays."""
    norms: Float[np.ndarray, "steps exits"]
    """How far each loop moves the state, relative to its norm."""


def loop_views(
    generator: Generator,
    sampler: AbstractSampler,
    labels: Int[Array, " batch"],
    *,
    loops: Loops,
    exits: int,
    key: PRNGKeyArray,
) -> LoopViews:
    """Samples, and looks at all exits of the network at every step. Only the first example of the batch is looked at.

    **Arguments:** `generator`; `sampler`, `labels`, `loops`, `key`: as for sampling; `exits`: how many to look at,
    beyond L_max too.

    **Returns:** the [`LoopViews`][elt_zoo.demo.LoopViews]. Another number of steps, examples or exits compiles again.

    **Raises:** `ValueError` if the family says no [`guess`][elt_zoo.families.ModelConfig], and the sampler's errors.
    """
    asked = sampler.step_inputs(BatchedPredict(generator.model), labels, loops=loops, key=key)
    first = tuple(each[:, 0] for each in asked)
    views = _views(generator.config, generator.model, generator.tokenizer, first, labels[0], exits)
    return LoopViews(*map(np.asarray, views))


@eqx.filter_jit
def _views(
    config: ModelConfig, model: ElasticModel, tokenizer: Any, asked: tuple[Array, ...], label: Array, exits: int
) -> tuple[Array, ...]:
    """The fields of `LoopViews`."""

    def at_step(step: tuple[Array, ...]) -> tuple[Array, ...]:
        inputs = (*step, label)
        predictions = model.trajectory(*inputs, loops=exits)
        guesses = jax.vmap(lambda prediction: config.guess(prediction, *inputs))(predictions)
        if guesses is None:
            raise ValueError(
                f"A {type(config).__name__} does not say what its predictions stand for: define `guess`, to look at "
                "exits."
            )
        pixels = jax.vmap(lambda guess: config.decode(guess, tokenizer))(guesses)
        known = config.preview(step[0], tokenizer)
        return known, pixels, _changes(guesses), update_norms(model, *inputs, loops=exits).relative

    return jax.lax.map(at_step, asked)


def _changes(guesses: Array) -> Float[Array, " transitions"]:
    axes = tuple(range(1, guesses.ndim))
    if jnp.issubdtype(guesses.dtype, jnp.integer):
        return jnp.mean(guesses[1:] != guesses[:-1], axis=axes, dtype=jnp.float32)
    return jnp.sqrt(jnp.mean(jnp.square(guesses[1:] - guesses[:-1]), axis=axes))
