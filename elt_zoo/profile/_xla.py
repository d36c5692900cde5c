import dataclasses
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax

from ..families import ModelConfig


def xla_flops(function: Callable, *arguments: Any) -> int:
    """Counts floating-point operations with XLA's cost analysis of the compiled function, independently of `profile`.

    XLA counts matrix products (two operations per multiply-accumulate), elementwise arithmetic, reductions and random
    numbers, but not exponentials and the like. It counts **the body of a loop once**, however often the loop runs, so
    unroll the loops of a trunk (`unroll_loops=True`). A sampler is a loop over its steps, so the count is one step.
    Operations that fusion computes twice count twice.

    **Arguments:** `function`: a function or module that can be jitted; `arguments`: its arguments, where a
    `jax.ShapeDtypeStruct` can take the place of an array.

    **Returns:** the count for the default device.
    """
    arrays, static = eqx.partition((function, arguments), _is_array_or_shape)

    def call(arrays):
        function, arguments = eqx.combine(arrays, static)
        return eqx.filter(function(*arguments), eqx.is_array)

    analysis: Any = jax.jit(call).lower(arrays).compile().cost_analysis()
    return int(analysis["flops"])


def xla_forward_flops(config: ModelConfig, *, loops: int | None = None) -> int:
    """XLA's count of a forward pass of one example, with unrolled loops. It compiles the model without allocating it.

    It should equal `forward_flops + forward_elementwise` of the [`Profile`][elt_zoo.profile.Profile]. The tests check
    that the two differ by less than 3%, for both families and one to four loops.

    **Arguments:** `config`: the model; `loops`: L; default the config's `max_loops`. **Returns:** the count.
    """
    loops = config.max_loops if loops is None else loops
    unrolled = dataclasses.replace(config, unroll_loops=True)
    model = eqx.filter_eval_shape(unrolled.build, key=jax.random.key(0))
    return xla_flops(lambda model, inputs: model(*inputs, loops=loops), model, config.example_inputs())


def _is_array_or_shape(leaf: Any) -> bool:
    return eqx.is_array(leaf) or isinstance(leaf, jax.ShapeDtypeStruct)
