import equinox as eqx
import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Float, PRNGKeyArray

from .._checks import checked
from ._linear import Initializer, Linear


class SelfAttention(eqx.Module):
    """Full (bidirectional) multi-head self-attention over one sequence of tokens
    ([1706.03762](https://arxiv.org/abs/1706.03762)).

    Built on `jax.nn.dot_product_attention`, so that accelerator kernels are used where the hardware has them. On a CPU,
    where its batched form is several times slower than two matrix products, it is those. The softmax is computed in
    float32.
    """

    qkv: Linear
    out: Linear
    num_heads: int = eqx.field(static=True)

    def __init__(self, dim: int, num_heads: int, *, init: Initializer | None = None, key: PRNGKeyArray):
        """**Arguments:**

        - `dim`: width of the tokens, a multiple of `num_heads`.
        - `num_heads`: number of attention heads.
        - `init`: initialiser of the weights. Query, key and value weights are drawn as three square matrices and stored
          as one, (3·dim, dim) in that order, heads inside.
        - `key`: PRNG key.

        **Raises:** `ValueError` if the heads do not divide the width.
        """
        if num_heads < 1 or dim % num_heads:
            raise ValueError(
                f"`SelfAttention(dim={dim}, num_heads={num_heads})`: the heads must divide the width. "
                f"Choose `num_heads` among the divisors of {dim}."
            )
        init = jax.nn.initializers.glorot_uniform() if init is None else init
        qkv_key, out_key = jax.random.split(key)

        def init_each(key, shape, dtype=jnp.float32, out_sharding=None):
            keys = jax.random.split(key, 3)
            each = [init(key, (shape[0], shape[1] // 3), dtype) for key in keys]
            return jnp.concatenate(each, axis=1)

        self.qkv = Linear(dim, 3 * dim, init=init_each, key=qkv_key)
        self.out = Linear(dim, dim, init=init, key=out_key)
        self.num_heads = num_heads

    @checked
    def __call__(self, x: Float[Array, "tokens dim"]) -> Float[Array, "tokens dim"]:
        """Returns the attended tokens, in the dtype of `x`."""
        query, key, value = rearrange(
            self.qkv(x), "tokens (three heads head_dim) -> three tokens heads head_dim", three=3, heads=self.num_heads
        )
        attended = (_attend_on_cpu if jax.default_backend() == "cpu" else _attend)(query, key, value)
        return self.out(rearrange(attended, "tokens heads head_dim -> tokens (heads head_dim)"))


Heads = Float[Array, "tokens heads head_dim"]


def _attend(query: Heads, key: Heads, value: Heads) -> Heads:
    # It widens bfloat16 scores to float32 by implicit promotion, which a caller may have made strict.
    with jax.numpy_dtype_promotion("standard"):
        return jax.nn.dot_product_attention(query, key, value)


def _attend_on_cpu(query: Heads, key: Heads, value: Heads) -> Heads:
    # Heads first, as the products need them; under `vmap` XLA would otherwise transpose more often.
    query, key, value = (jnp.swapaxes(each, 0, 1) for each in (query, key, value))
    scores = jnp.matmul(query, jnp.swapaxes(key, 1, 2), preferred_element_type=jnp.float32)
    weights = jax.nn.softmax(scores * query.shape[-1] ** -0.5, axis=-1).astype(value.dtype)
    return jnp.swapaxes(jnp.matmul(weights, value), 0, 1)
