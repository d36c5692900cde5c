"""A convolution over time as `elt_zoo.nn.Conv` computes it on a CPU, beside XLA's own: forwards, and both gradients.

python benchmarks/video_convolution.py
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from timing import compare

from elt_zoo.nn import Conv
from elt_zoo.profile import environment

_SHAPE = (8, 8, 32, 32, 16)
"""Clips, frames, height, width and channels."""


def main(rounds: int = 5) -> None:
    conv = Conv(_SHAPE[-1], _SHAPE[-1], 3, axes=3, use_bias=False, key=jax.random.key(0))
    x = jax.random.normal(jax.random.key(1), _SHAPE)

    def direct(weight, x):
        layout = ("NDHWC", "DHWIO", "NDHWC")
        return jax.lax.conv_general_dilated(x, weight, (1, 1, 1), "SAME", dimension_numbers=layout)

    def ours(weight, x):
        return jax.vmap(lambda clip: eqx.tree_at(lambda conv: conv.weight, conv, weight)(clip))(x)

    print(environment())
    for name, wrap in (("forward", lambda f: f), ("gradients", _gradients)):
        a, b = jax.jit(wrap(ours)), jax.jit(wrap(direct))
        print(name, compare(lambda a=a: a(conv.weight, x), lambda b=b: b(conv.weight, x), rounds=rounds))


def _gradients(function):
    return jax.grad(lambda weight, x: jnp.sum(jnp.square(function(weight, x))), (0, 1))


if __name__ == "__main__":
    main()
