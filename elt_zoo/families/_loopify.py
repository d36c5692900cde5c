import dataclasses
import enum

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from ..models import ElasticModel
from ._config import ModelConfig


class Retrofit(enum.StrEnum):
    """How the N shared layers are made from a deep model's D = N·L.

    `AVERAGE` splits the deep model into N runs of L neighbours and averages each. `STRIDED_AVERAGE` averages the layers
    that stand at the same place of every loop: n, n + N, n + 2N, …. `PICK` takes one layer from the middle of each run
    of L neighbours, unchanged.
    """

    AVERAGE = "average"
    STRIDED_AVERAGE = "strided_average"
    PICK = "pick"


def loopify(
    model: ElasticModel,
    config: ModelConfig,
    *,
    num_layers: int,
    retrofit: Retrofit = Retrofit.PICK,
) -> tuple[ElasticModel, ModelConfig]:
    """Turns a deep model of D unique layers into an N×L looped one of equal compute, a start for fine-tuning.

    The head is kept. The result needs fine-tuning, with [`ILSDLoss`][elt_zoo.ILSDLoss] to make every exit useful: the
    layers of a deep model were never trained to be repeated. The paper
    ([2604.09168](https://arxiv.org/abs/2604.09168)) trains looped models from scratch and has no such step.

    **Arguments:**

    - `model`, `config`: a model of one loop, such as [`load_dit`][elt_zoo.pretrained.load_dit] returns, and its config.
    - `num_layers`: N, a divisor of D; then L = D / N.
    - `retrofit`: how the shared layers are made.

    **Returns:** the looped model and its config, whose `max_loops` is L.

    **Raises:** `ValueError` if the model loops already, `num_layers` does not divide its depth, or the config is of
    another model.
    """
    depth = config.num_layers
    if config != config.unlooped():
        raise ValueError(
            f"`loopify` takes a model of unique layers alone, but this config has max_loops={config.max_loops}, "
            f"prelude={config.prelude}, coda={config.coda}, residual_scale={config.residual_scale} and "
            f"reinjection={config.reinjection}."
        )
    if model.trunk.num_layers != depth:
        raise ValueError(
            f"`loopify` got a model of {model.trunk.num_layers} layers with a config of {depth}. Pass the config that "
            "built the model."
        )
    if num_layers < 1 or depth % num_layers:
        divisors = [n for n in range(1, depth + 1) if depth % n == 0]
        raise ValueError(
            f"`loopify(num_layers={num_layers})` cannot share {depth} layers evenly. Choose one of {divisors}."
        )
    loops = depth // num_layers
    looped_config = dataclasses.replace(config, num_layers=num_layers, max_loops=loops)
    looped = eqx.filter_eval_shape(looped_config.build, key=jax.random.key(0))
    deep, _ = eqx.partition(model.trunk.layers, eqx.is_array)
    shared = jax.tree.map(lambda leaf: _shared(leaf, num_layers, Retrofit(retrofit)), deep)
    trunk = eqx.tree_at(lambda trunk: trunk.layers, looped.trunk, eqx.combine(shared, looped.trunk.layers))
    return ElasticModel(model.head, trunk, max_loops=loops), looped_config


def _shared(leaf: Array, num_layers: int, retrofit: Retrofit) -> Array:
    loops = leaf.shape[0] // num_layers
    match retrofit:
        case Retrofit.AVERAGE:
            return jnp.mean(jnp.reshape(leaf, (num_layers, loops, *leaf.shape[1:])), axis=1)
        case Retrofit.STRIDED_AVERAGE:
            return jnp.mean(jnp.reshape(leaf, (loops, num_layers, *leaf.shape[1:])), axis=0)
        case Retrofit.PICK:
            return leaf[loops // 2 :: loops]
