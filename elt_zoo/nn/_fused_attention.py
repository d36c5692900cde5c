"""Attention in one kernel, for one example. Queries, keys, values and the result are (tokens, heads, head_dim)."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float, Int

from ._attention_kernel import AttentionChoice

Heads = Float[Array, "tokens heads head_dim"]
HeadsFirst = Float[Array, "heads tokens head_dim"]

_SAVED = "fused_attention"
_CUDNN_PRIMITIVE = "dot_product_attention_fwd_wrapper"
_BLOCKS = (512, 384, 256, 128)


def save_fused_attention(primitive, *_, **parameters) -> bool:
    """A policy for `jax.checkpoint`: saves the results of fused attention, its output and the log-sum of each query's
    softmax. They are as small as a layer's state, and to compute them again is to attend again.
    """
    # JAX gives the results of cuDNN's kernel no name, and its primitive has no public one.
    return primitive.name == _CUDNN_PRIMITIVE or (primitive.name == "name" and parameters.get("name") == _SAVED)


def attend_by_cudnn(query: Heads, key: Heads, value: Heads, choice: AttentionChoice) -> Heads:
    tokens, _, head_dim = query.shape
    padding = ((0, choice.padded_tokens - tokens), (0, 0), (0, choice.padded_head_dim - head_dim))
    query, key, value = (jnp.pad(each, padding) for each in (query, key, value))
    padded = choice.padded_tokens > tokens
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        attended = jax.nn.dot_product_attention(
            query,
            key,
            value,
            scale=head_dim**-0.5,
            # Keys alone are masked: a padded query attends like any other, and is cut off.
            query_seq_lengths=_length(query, choice.padded_tokens) if padded else None,
            key_value_seq_lengths=_length(query, tokens) if padded else None,
            implementation="cudnn",
        )
    return attended[:tokens, :, :head_dim]


def _length(query: Heads, tokens: int) -> Int[Array, "1"]:
    # Under `vmap` JAX (0.10) wants a length for each example, and fails for a constant: make it depend on the query.
    first = jax.lax.stop_gradient(query[0, 0, 0]).astype(jnp.int32)
    return jnp.reshape(0 * first + tokens, (1,))


def attend_by_pallas(
    query: Heads,
    key: Heads,
    value: Heads,
    choice: AttentionChoice,
    *,
    mesh: Mesh | None = None,
    interpret: bool = False,
) -> Heads:
    attend = functools.partial(_attend_by_pallas, choice=choice, interpret=interpret)
    if mesh is not None:
        # Each device attends in its own examples. They are the axis of the caller's `vmap`, whose `spmd_axis_name` says
        # so; one example is whole.
        whole = PartitionSpec()
        attend = jax.shard_map(attend, mesh=mesh, in_specs=(whole,) * 3, out_specs=whole, check_vma=False)
    return attend(query, key, value)


def _attend_by_pallas(query: Heads, key: Heads, value: Heads, *, choice: AttentionChoice, interpret: bool) -> Heads:
    tokens, _, head_dim = query.shape
    padded = choice.padded_tokens
    # The kernel does not scale.
    query = (query.astype(jnp.float32) * head_dim**-0.5).astype(query.dtype)
    query, key, value = (
        jnp.pad(
            rearrange(each, "tokens heads head_dim -> heads tokens head_dim"), ((0, 0), (0, padded - tokens), (0, 0))
        )
        for each in (query, key, value)
    )
    # Tokens attend to those of their own segment: padding to padding.
    segment = (np.arange(padded) >= tokens).astype(np.int32)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        attended = _splash(query, key, value, None if padded == tokens else jnp.asarray(segment), interpret=interpret)
    return rearrange(attended, "heads tokens head_dim -> tokens heads head_dim")[:tokens]


def _splash(
    query: HeadsFirst, key: HeadsFirst, value: HeadsFirst, segments: Int[Array, " tokens"] | None, *, interpret: bool
) -> HeadsFirst:
    from jax.experimental.pallas.ops.tpu.splash_attention import (  # late, as it is slow to import
        splash_attention_kernel,
        splash_attention_mask,
    )

    num_heads, tokens, _ = query.shape
    block = next(block for block in _BLOCKS if tokens % block == 0)
    sizes = splash_attention_kernel.BlockSizes(
        block_q=block,
        block_kv=block,
        block_kv_compute=block,
        block_q_dkv=block,
        block_kv_dkv=block,
        block_kv_dkv_compute=block,
        block_q_dq=block,
        block_kv_dq=block,
    )
    mask = splash_attention_mask.MultiHeadMask([splash_attention_mask.FullMask((tokens, tokens))] * num_heads)
    attend = splash_attention_kernel.make_splash_mha_single_device(
        mask, block_sizes=sizes, residual_checkpoint_name=_SAVED, interpret=interpret
    )
    ids = None if segments is None else splash_attention_kernel.SegmentIds(segments, segments)
    attended: Any = attend(query, key, value, ids)
    return attended
