import copy
import dataclasses
import functools

import equinox as eqx
import jax
import jax.numpy as jnp
from einops import rearrange
from jax.sharding import Mesh
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from .._checks import checked
from ._attention_kernel import AttentionChoice, AttentionDevice, AttentionKernel, attention_kernel
from ._fused_attention import attend_by_cudnn, attend_by_pallas
from ._linear import Initializer, Linear, side_by_side
from ._norm import RMSNorm
from ._rotary import Rotary

_QK_EPS = 1e-6


class SelfAttention(eqx.Module):
    """Full (bidirectional) multi-head self-attention over one sequence of tokens
    ([1706.03762](https://arxiv.org/abs/1706.03762)).

    On a GPU or TPU one fused kernel computes it where there is one for the dtype and the sizes:
    [`choice`][elt_zoo.nn.SelfAttention.choice] says which and why, [`with_attention`][elt_zoo.nn.with_attention] asks
    for another. Elsewhere it is `jax.nn.dot_product_attention`, two matrix products with a softmax between them; on a
    CPU, where its batched form is several times slower, they are written out. All compute the softmax in float32. The
    choice is made where the module is called, for JAX's default device, and is in no file.
    """

    qkv: Linear
    out: Linear
    query_norm: RMSNorm | None
    key_norm: RMSNorm | None
    rotary: Rotary | None = eqx.field(static=True)
    num_heads: int = eqx.field(static=True)
    kernel: AttentionKernel = eqx.field(static=True)
    mesh: Mesh | None = eqx.field(static=True)

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        init: Initializer | None = None,
        qk_norm: bool = False,
        rotary: Rotary | None = None,
        key: PRNGKeyArray,
    ):
        """**Arguments:**

        - `dim`: width of the tokens, a multiple of `num_heads`.
        - `num_heads`: number of attention heads.
        - `init`: initialiser of the weights. Query, key and value weights are drawn as three square matrices and stored
          as one, (3·dim, dim) in that order, heads inside.
        - `qk_norm`: normalise the queries and the keys of every head, so that their products stay in bounds. Each have
          an RMS norm over the channels of a head, as in later models ([2403.03206](https://arxiv.org/abs/2403.03206));
          the first to do so had layer norms ([2302.05442](https://arxiv.org/abs/2302.05442)).
        - `rotary`: turns the queries and the keys by their positions, after that norm.
        - `key`: PRNG key.

        **Raises:** `ValueError` if the heads do not divide the width, or are too narrow for the rotary positions.
        """
        if num_heads < 1 or dim % num_heads:
            raise ValueError(
                f"`SelfAttention(dim={dim}, num_heads={num_heads})`: the heads must divide the width. "
                f"Choose `num_heads` among the divisors of {dim}."
            )
        init = jax.nn.initializers.glorot_uniform() if init is None else init
        qkv_key, out_key = jax.random.split(key)
        head_dim = dim // num_heads
        if rotary is not None:
            rotary.pairs(head_dim)  # which says if a head is too narrow
        self.qkv = Linear(dim, 3 * dim, init=side_by_side(init, 3), key=qkv_key)
        self.out = Linear(dim, dim, init=init, key=out_key)
        self.query_norm = RMSNorm(head_dim, eps=_QK_EPS) if qk_norm else None
        self.key_norm = RMSNorm(head_dim, eps=_QK_EPS) if qk_norm else None
        self.rotary = rotary
        self.num_heads = num_heads
        self.kernel = AttentionKernel.AUTO
        self.mesh = None

    @checked
    def choice(self, tokens: int, dtype: DTypeLike) -> AttentionChoice:
        """Which kernel attends to so many tokens of a dtype on JAX's default device, and why. Call it on one layer's
        module or on a stack of them.

        **Raises:** `ValueError` if the kernel that [`with_attention`][elt_zoo.nn.with_attention] asked for cannot.
        """
        return _choose(
            dtype, tokens, self.qkv.weight.shape[-1] // self.num_heads, kernel=self.kernel, split=self.mesh is not None
        )

    @checked
    def __call__(self, x: Float[Array, "tokens dim"]) -> Float[Array, "tokens dim"]:
        """Returns the attended tokens, in the dtype of `x`."""
        query, key, value = rearrange(
            self.qkv(x), "tokens (three heads head_dim) -> three tokens heads head_dim", three=3, heads=self.num_heads
        )
        if self.query_norm is not None and self.key_norm is not None:
            query, key = self.query_norm(query), self.key_norm(key)
        if self.rotary is not None:
            query, key = self.rotary(query), self.rotary(key)
        choice = self.choice(x.shape[0], x.dtype)
        match choice.kernel:
            case AttentionKernel.CUDNN:
                attended = attend_by_cudnn(query, key, value, choice)
            case AttentionKernel.PALLAS:
                attended = attend_by_pallas(query, key, value, choice, mesh=self.mesh)
            case _:
                attended = (_attend_on_cpu if AttentionDevice.here().platform == "cpu" else _attend)(query, key, value)
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


@checked
def with_attention(model: PyTree, kernel: AttentionKernel, *, mesh: Mesh | None = None) -> PyTree:
    """A model whose attention is computed by another kernel. The parameters are the same arrays.

    The choice belongs to a program and not to the model: no file holds it. Ask for `XLA` where a program does not run
    on JAX's default device, such as a bfloat16 model that was put on the CPU of a machine with a GPU.

    **Arguments:** `model`: a tree with [`SelfAttention`][elt_zoo.nn.SelfAttention] in it; `kernel`: for all of them;
    `mesh`: devices, on all axes of which the batch is split. Call the model under `jax.vmap` with the names of these
    axes as `spmd_axis_name`; then the Pallas kernel can be used on several devices.

    **Returns:** the changed model.
    """
    kernel = AttentionKernel(kernel)

    def replaced(node):
        if not isinstance(node, SelfAttention):
            return node
        new = copy.copy(node)
        object.__setattr__(new, "kernel", kernel)  # as Equinox itself fills a frozen module
        object.__setattr__(new, "mesh", mesh)
        return new

    return jax.tree.map(replaced, model, is_leaf=lambda node: isinstance(node, SelfAttention))


def _choose(dtype: DTypeLike, tokens: int, head_dim: int, *, kernel: AttentionKernel, split: bool) -> AttentionChoice:
    choice = attention_kernel(AttentionDevice.here(), dtype, tokens, head_dim, kernel=kernel, split=split)
    if choice.kernel == AttentionKernel.CUDNN:
        # Whether cuDNN is there and new enough for the GPU, JAX knows. It says so at once, before anything is compiled.
        shape = jax.ShapeDtypeStruct((tokens, 1, head_dim), dtype)
        try:
            jax.eval_shape(functools.partial(attend_by_cudnn, choice=choice), shape, shape, shape)
        except (NotImplementedError, RuntimeError) as error:
            said = f"JAX refuses cuDNN's fused kernel: {error}"
            if kernel == AttentionKernel.CUDNN:
                raise ValueError(f"The attention kernel 'cudnn' cannot be used: {said} Use 'auto' or 'xla'.") from error
            return dataclasses.replace(
                choice,
                kernel=AttentionKernel.XLA,
                reason=said.rstrip("."),
                padded_tokens=tokens,
                padded_head_dim=head_dim,
            )
    return choice
