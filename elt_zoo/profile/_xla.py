import dataclasses
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax

from ..families import ModelConfig


def xla_flops(function: Callable, *arguments: Any) -> int:
    """The floating-point operations that XLA's cost analysis sees in a compiled function: an independent count.

    XLA counts matrix products (two operations per multiply-accumulate), elementwise arithmetic and reductions, and
    exponentials and the like not. It counts **the body of a loop once**, however often it runs: unroll what should
    count as often as it runs (`unroll_loops=True` for a trunk). A sampler is a loop over its steps, so its count is
    that of one step. Random numbers count too, and so does what fusion computes twice.

    **Arguments:** `function`: anything that can be jitted, a module too; `arguments`: what it is called with. Wherever
    there is an array, a `jax.ShapeDtypeStruct` will do.

    **Returns:** the count on the default device.
    """
    arrays, static = eqx.partition((function, arguments), _is_array_or_shape)

    def call(arrays):
        function, arguments = eqx.combine(arrays, static)
        return eqx.filter(function(*arguments), eqx.is_array)

    analysis: Any = jax.jit(call).lower(arrays).compile().cost_analysis()
    return int(analysis["flops"])


def xla_forward_flops(config: ModelConfig, *, loops: int | None = None) -> int:
    """XLA's own count of a forward pass of one example, the loops unrolled; nothing is allocated. It compiles the
    model.

    It should be `2 * forward_macs + forward_elementwise` of the [`Profile`][elt_zoo.profile.Profile]; our tests hold
    the two to within 5% of each other for both families, one to four loops, with and without guidance.

    **Arguments:** `config`: the model; `loops`: L; default the config's `max_loops`. **Returns:** the count.
    """
    loops = config.max_loops if loops is None else loops
    unrolled = dataclasses.replace(config, unroll_loops=True)
    model = eqx.filter_eval_shape(unrolled.build, key=jax.random.key(0))
    return xla_flops(lambda model, inputs: model(*inputs, loops=loops), model, config.example_inputs())


def _is_array_or_shape(leaf: Any) -> bool:
    return eqx.is_array(leaf) or isinstance(leaf, jax.ShapeDtypeStruct)
