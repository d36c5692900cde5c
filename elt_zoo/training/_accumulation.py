"""Gradients of a batch, part by part, and into how many parts it pays to split it."""

import math
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from .._platform import platform, target_devices, usable_cores

_BYTES_PER_CORE = 8 * 2**20
"""Activations of a part that suit a core's share of the caches; see `benchmarks/training.py`."""
_OVER_PARAMETERS = 3
"""Activations of a part over parameters: every part reads all parameters, and adds to all gradients."""

Metrics = dict[str, Float[Array, ""]]
LossOf = Callable[..., tuple[Float[Array, ""], Metrics]]


def value_and_gradient(
    loss_of: LossOf, model: PyTree, batch: PyTree, *, parts: int, size: int
) -> tuple[tuple[Float[Array, ""], Metrics], PyTree]:
    """The loss of a batch, its metrics and the gradient, each the sum of those of equal parts.

    **Arguments:** `loss_of`: `(model, *batch) -> (loss, metrics)`, sums over examples; `batch`: arguments whose arrays
    have a batch axis of `size`, or none: then every part gets them; `parts`: how many.

    **Raises:** `ValueError` for a size that `parts` does not divide.
    """
    graded = eqx.filter_value_and_grad(loss_of, has_aux=True)
    if parts == 1:
        return graded(model, *batch)
    if size % parts:
        raise ValueError(
            f"`make_train_step(accumulation={parts})` cannot split a batch of {size} into {parts} equal parts. Use a "
            f"batch size that is a multiple of {parts}."
        )

    def split(leaf):
        # Part i is every `parts`-th example from i on: of a batch laid out over devices, each device keeps its own.
        return jnp.swapaxes(jnp.reshape(leaf, (size // parts, parts, *leaf.shape[1:])), 0, 1)

    batched, shared = eqx.partition(batch, lambda leaf: leaf.ndim > 0)

    def add(gradient, part):
        value, fresh = graded(model, *eqx.combine(part, shared))
        return jax.tree.map(jnp.add, gradient, fresh), value

    zeros = jax.tree.map(jnp.zeros_like, eqx.filter(model, eqx.is_inexact_array))
    gradient, values = jax.lax.scan(add, zeros, jax.tree.map(split, batched))
    return jax.tree.map(lambda value: jnp.sum(value, axis=0), values), gradient


def fastest_parts(loss_of: LossOf, model: PyTree, batch: PyTree, *, size: int) -> int:
    """Into how many parts to split a batch for speed alone: 1, but for large batches on a single CPU device, whose
    caches the activations of a part should fit.

    **Arguments:** as those of `value_and_gradient`.

    **Returns:** a divisor of `size`; parts have two examples at least, as single ones are slow.
    """
    choices = [parts for parts in range(1, size // 2 + 1) if size % parts == 0]
    devices = len(target_devices()) or jax.device_count()
    if platform() != "cpu" or devices > 1 or len(choices) < 2:
        return 1
    parameters, others = eqx.partition(model, eqx.is_inexact_array)

    def backward(parameters):
        return jax.vjp(lambda each: loss_of(eqx.combine(each, others), *batch), parameters, has_aux=True)[1]

    # The arrays that the backward pass reads. The parameters are among them.
    model_bytes = _num_bytes(parameters)
    activations = max(_num_bytes(eqx.filter_eval_shape(backward, parameters)) - model_bytes, 1)
    wanted = max(_BYTES_PER_CORE * usable_cores(), _OVER_PARAMETERS * model_bytes)
    return min(choices, key=lambda parts: abs(math.log(activations / parts / wanted)))


def _num_bytes(tree: PyTree) -> int:
    arrays = (leaf for leaf in jax.tree.leaves(tree) if hasattr(leaf, "dtype"))
    return sum(leaf.size * leaf.dtype.itemsize for leaf in arrays)
