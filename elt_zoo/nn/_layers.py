import abc
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from .._checks import checked
from ._attention import SelfAttention
from ._dropout import dropout
from ._layer_options import LayerOptions
from ._linear import Initializer, Linear
from ._mlp import Mlp, SwiGLU
from ._norm import LayerNorm, RMSNorm


class AbstractLayer(eqx.Module):
    """One transformer layer, in the form that [`LoopedTransformer`][elt_zoo.LoopedTransformer] loops.

    `condition` computes from the model's conditioning what this layer needs of it. The trunk calls it once, outside the
    loop. `__call__` maps the tokens.
    """

    def condition(self, conditioning: PyTree[Array]) -> PyTree[Array]:
        """What `__call__` takes as its second argument; by default the conditioning itself."""
        return conditioning

    @abc.abstractmethod
    def __call__(
        self, x: Float[Array, "tokens dim"], modulation: Any, *, key: PRNGKeyArray | None = None
    ) -> Float[Array, "tokens dim"]:
        """**Arguments:** `x`: the tokens; `modulation`: what `condition` returned; `key`: turns dropout on."""


def _split(key: PRNGKeyArray | None):
    return (None, None) if key is None else jax.random.split(key)


def _scaled(branch: Float[Array, "tokens dim"], scale: float) -> Float[Array, "tokens dim"]:
    return branch if scale == 1.0 else scale * branch


class _PlainLayer(AbstractLayer):
    """What the layers without conditioning share: their parts, and how those are made."""

    attention_norm: LayerNorm | RMSNorm
    attention: SelfAttention
    mlp_norm: LayerNorm | RMSNorm
    mlp: Mlp | SwiGLU
    dropout: float = eqx.field(static=True)

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        mlp_dim: int,
        dropout: float,
        norm_eps: float,
        options: LayerOptions,
        init: Initializer,
        key: PRNGKeyArray,
    ):
        attention_key, mlp_key = jax.random.split(key)
        self.attention_norm = options.norm(dim, eps=norm_eps)
        self.attention = options.attention(dim, num_heads, init=init, key=attention_key)
        self.mlp_norm = options.norm(dim, eps=norm_eps)
        self.mlp = options.mlp(dim, mlp_dim, init=init, key=mlp_key)
        self.dropout = dropout


_GLOROT = jax.nn.initializers.glorot_uniform()
_BERT = jax.nn.initializers.truncated_normal(0.02)
_USUAL = LayerOptions()


class PreNormLayer(_PlainLayer):
    """Pre-norm layer: `x + attention(norm(x))`, then `x + mlp(norm(x))`, each branch times `residual_scale`.

    The state stays an unnormalised residual stream, so a head should normalise it (ours do). It is our default for
    masked generation because it keeps working past the trained number of loops. Departs from the paper, whose backbone
    is MaskGIT's BERT: that one is [`PostNormLayer`][elt_zoo.nn.PostNormLayer].
    """

    residual_scale: float = eqx.field(static=True)

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        mlp_dim: int,
        dropout: float = 0.0,
        residual_scale: float = 1.0,
        norm_eps: float = 1e-6,
        options: LayerOptions = _USUAL,
        init: Initializer = _GLOROT,
        key: PRNGKeyArray,
    ):
        """**Arguments:**

        - `dim`, `num_heads`, `mlp_dim`: width, attention heads and hidden width of the MLP.
        - `dropout`: rate on both residual branches, in [0, 1).
        - `residual_scale`: factor of both residual branches.
        - `norm_eps`: epsilon of the norms.
        - `options`: RMS norms, normalised queries and keys, a gated MLP, rotary positions; default none of them.
        - `init`: initialiser of all weights; default Glorot uniform, which suits any width, unlike BERT's fixed 0.02.
        - `key`: PRNG key.
        """
        super().__init__(
            dim,
            num_heads,
            mlp_dim=mlp_dim,
            dropout=dropout,
            norm_eps=norm_eps,
            options=options,
            init=init,
            key=key,
        )
        self.residual_scale = residual_scale

    @checked
    def __call__(
        self, x: Float[Array, "tokens dim"], modulation: PyTree[Array] = None, *, key: PRNGKeyArray | None = None
    ) -> Float[Array, "tokens dim"]:
        """Returns the mapped tokens. `modulation` is not used; `key` turns dropout on."""
        attention_key, mlp_key = _split(key)
        branch = dropout(self.attention(self.attention_norm(x)), self.dropout, key=attention_key)
        x = x + _scaled(branch, self.residual_scale)
        branch = dropout(self.mlp(self.mlp_norm(x)), self.dropout, key=mlp_key)
        return x + _scaled(branch, self.residual_scale)


class PostNormLayer(_PlainLayer):
    """Post-norm BERT layer as in MaskGIT ([2202.04200](https://arxiv.org/abs/2202.04200)): `norm(x + attention(x))`,
    then `norm(x + mlp(x))`.

    Its epsilon is MaskGIT's.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        mlp_dim: int,
        dropout: float = 0.0,
        norm_eps: float = 1e-12,
        options: LayerOptions = _USUAL,
        init: Initializer = _BERT,
        key: PRNGKeyArray,
    ):
        """**Arguments:**

        - `dim`, `num_heads`, `mlp_dim`: width, attention heads and hidden width of the MLP.
        - `dropout`: rate on both residual branches, in [0, 1).
        - `norm_eps`: epsilon of the norms.
        - `options`: RMS norms, normalised queries and keys, a gated MLP, rotary positions; default none of them.
        - `init`: initialiser of all weights; default BERT's, a truncated normal of standard deviation 0.02.
        - `key`: PRNG key.
        """
        super().__init__(
            dim,
            num_heads,
            mlp_dim=mlp_dim,
            dropout=dropout,
            norm_eps=norm_eps,
            options=options,
            init=init,
            key=key,
        )

    @checked
    def __call__(
        self, x: Float[Array, "tokens dim"], modulation: PyTree[Array] = None, *, key: PRNGKeyArray | None = None
    ) -> Float[Array, "tokens dim"]:
        """Returns the mapped tokens. `modulation` is not used; `key` turns dropout on."""
        attention_key, mlp_key = _split(key)
        x = self.attention_norm(x + dropout(self.attention(x), self.dropout, key=attention_key))
        return self.mlp_norm(x + dropout(self.mlp(x), self.dropout, key=mlp_key))


def modulate(
    x: Float[Array, "tokens dim"], shift: Float[Array, " dim"], scale: Float[Array, " dim"]
) -> Float[Array, "tokens dim"]:
    """adaLN's affine map, `x · (1 + scale) + shift` (DiT, [2212.09748](https://arxiv.org/abs/2212.09748))."""
    return x * (1.0 + scale)[None, :] + shift[None, :]


class AdaLNZeroLayer(AbstractLayer):
    """DiT's adaLN-zero layer ([2212.09748](https://arxiv.org/abs/2212.09748)).

    `Linear(SiLU(conditioning))` gives shift, scale and gate of the attention branch, then of the MLP branch. Its weight
    starts at zero, so a new layer is the identity. Both branches are multiplied by `residual_scale` as well.
    """

    modulation: Linear
    attention_norm: LayerNorm | RMSNorm
    attention: SelfAttention
    mlp_norm: LayerNorm | RMSNorm
    mlp: Mlp | SwiGLU
    dropout: float = eqx.field(static=True)
    residual_scale: float = eqx.field(static=True)

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        mlp_dim: int,
        conditioning_dim: int | None = None,
        dropout: float = 0.0,
        residual_scale: float = 1.0,
        norm_eps: float = 1e-6,
        options: LayerOptions = _USUAL,
        init: Initializer | None = None,
        key: PRNGKeyArray,
    ):
        """**Arguments:**

        - `dim`, `num_heads`, `mlp_dim`: width, attention heads and hidden width of the MLP.
        - `conditioning_dim`: width of the conditioning vector, `dim` by default.
        - `dropout`: rate on both residual branches, in [0, 1).
        - `residual_scale`: factor of both residual branches, beside their gates.
        - `norm_eps`: epsilon of the norms, which have no affine part.
        - `options`: RMS norms, normalised queries and keys, a gated MLP, rotary positions; default none of them.
        - `init`: initialiser of attention and MLP; default Glorot uniform, as DiT.
        - `key`: PRNG key.
        """
        attention_key, mlp_key = jax.random.split(key)
        conditioning_dim = dim if conditioning_dim is None else conditioning_dim
        self.modulation = Linear(conditioning_dim, 6 * dim, init=jax.nn.initializers.zeros, key=key)
        self.attention_norm = options.norm(dim, eps=norm_eps, affine=False)
        self.attention = options.attention(dim, num_heads, init=init, key=attention_key)
        self.mlp_norm = options.norm(dim, eps=norm_eps, affine=False)
        self.mlp = options.mlp(dim, mlp_dim, init=init, key=mlp_key)
        self.dropout = dropout
        self.residual_scale = residual_scale

    @checked
    def condition(self, conditioning: Float[Array, " conditioning_dim"]) -> Float[Array, "2 3 dim"]:
        """Returns shift, scale and gate (second axis) of the attention and of the MLP branch (first axis)."""
        return jnp.reshape(self.modulation(jax.nn.silu(conditioning)), (2, 3, -1))

    @checked
    def __call__(
        self, x: Float[Array, "tokens dim"], modulation: Float[Array, "2 3 dim"], *, key: PRNGKeyArray | None = None
    ) -> Float[Array, "tokens dim"]:
        """Returns the mapped tokens. `modulation` is what `condition` returned; `key` turns dropout on."""
        attention_key, mlp_key = _split(key)
        (shift, scale, gate), (mlp_shift, mlp_scale, mlp_gate) = modulation
        branch = self.attention(modulate(self.attention_norm(x), shift, scale))
        branch = gate[None, :] * dropout(branch, self.dropout, key=attention_key)
        x = x + _scaled(branch, self.residual_scale)
        branch = self.mlp(modulate(self.mlp_norm(x), mlp_shift, mlp_scale))
        branch = mlp_gate[None, :] * dropout(branch, self.dropout, key=mlp_key)
        return x + _scaled(branch, self.residual_scale)
