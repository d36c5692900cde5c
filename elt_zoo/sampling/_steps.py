"""What both samplers share: running the branches of guidance, and checking and reporting a call."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ._guidance import AbstractGuidance, guide

Predict = Callable[..., Array]
"""`predict(x, …, labels, loops=…)`: batched arrays in, batched predictions out."""
Callback = Callable[[int, int], None]
"""`callback(step, steps)`, called on the host once a step, with `step` from 1 to `steps`."""


def guided_prediction(
    predict: Predict,
    inputs: tuple[Array, ...],
    labels: Int[Array, " batch"],
    loops: tuple[Any, Any],
    *,
    shared: bool,
    guidance: AbstractGuidance | None,
    progress: Float[Array, ""],
    null_label: int,
    channels: int | None,
) -> Array:
    """The prediction with guidance applied; both branches in one call if they run the same loops (`shared`)."""
    if guidance is None:
        return predict(*inputs, labels, loops=loops[0])
    nulls = jnp.full_like(labels, null_label)
    if shared:
        doubled = [jnp.concatenate([leaf, leaf]) for leaf in inputs]
        both = predict(*doubled, jnp.concatenate([labels, nulls]), loops=loops[0])
        conditional, unconditional = jnp.split(both, 2)
    else:
        conditional = predict(*inputs, labels, loops=loops[0])
        unconditional = predict(*inputs, nulls, loops=loops[1])
    return guide(conditional, unconditional, guidance(progress), channels=channels)


def at_step(branch: int | Int[Array, " steps"], step: Int[Array, ""]) -> int | Int[Array, ""]:
    """The loops of one branch at one step; a Python int stays one, so that `predict` can use a static loop count."""
    return branch if isinstance(branch, int) else branch[step]


def report(callback: Callback | None, step: Int[Array, ""], steps: int) -> None:
    """Calls back to the host, if asked to, in the order of the steps."""
    if callback is not None:
        jax.debug.callback(lambda step: callback(int(step) + 1, steps), step, ordered=True)


def check_labels(sampler: str, labels: Array) -> None:
    if labels.ndim != 1 or not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ValueError(
            f"`{sampler}` got labels of shape {labels.shape} and dtype {labels.dtype}; it needs one integer per sample, "
            "shape (batch,). Use the null label for samples without a class."
        )


def check_steps(sampler: str, steps: int) -> None:
    if steps < 1:
        raise ValueError(f"`{sampler}(steps={steps})` needs at least one sampling step.")
