import math

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from .._checks import check_range, checked
from ..nn import LabelEmbedding, LayerNorm, Linear, look_up
from ..nn import dropout as apply_dropout


class MaskGITHead(eqx.Module):
    """Both ends of masked generation: token ids and a class in, logits over the codebook out (MaskGIT,
    [2202.04200](https://arxiv.org/abs/2202.04200)).

    The trunk sees one class token and then the tokens of the grid in row-major order. The prediction is BERT's masked
    language model head (Linear, GELU, layer norm) times the transposed token embedding plus a bias.

    Ids 0 to K − 1 are codes and id K is the mask; MaskGIT's own weights use −1 for the mask, which silently wraps to
    the last row, so here an id outside [0, K] is an error. Departs from MaskGIT in that classes have a table of their
    own, with a null class for guidance, in `pre_norm`, and in that the class may condition the layers of the trunk in
    place of being a token (`class_token=False`), as in Halton-MaskGIT
    ([2503.17076](https://arxiv.org/abs/2503.17076)).
    """

    token_embedding: Float[Array, "ids dim"]
    label_embedding: LabelEmbedding
    position_embedding: Float[Array, "positions dim"]
    embedding_norm: LayerNorm | None
    state_norm: LayerNorm | None
    hidden: Linear
    hidden_norm: LayerNorm
    bias: Float[Array, " codebook"]
    grid: tuple[int, ...] = eqx.field(static=True)
    codebook_size: int = eqx.field(static=True)
    num_classes: int = eqx.field(static=True)
    class_token: bool = eqx.field(static=True)
    dropout: float = eqx.field(static=True)

    def __init__(
        self,
        dim: int,
        *,
        grid: tuple[int, ...],
        codebook_size: int,
        num_classes: int,
        pre_norm: bool = True,
        class_token: bool = True,
        dropout: float = 0.0,
        norm_eps: float = 1e-12,
        key: PRNGKeyArray,
    ):
        """**Arguments:**

        - `dim`: width of the trunk.
        - `grid`: tokens along each axis: (length,), (height, width) or (frames, height, width).
        - `codebook_size`: K, the number of codes.
        - `num_classes`: number of classes; label `num_classes` is the null class.
        - `pre_norm`: true for a trunk of pre-norm layers, whose state the head normalises before it reads it; false for
          BERT's post-norm layers, whose embedding is normalised instead.
        - `class_token`: true, and the class is the first token; false, and it is the conditioning vector of the trunk's
          layers, which must take one.
        - `dropout`: rate after the embedding, in [0, 1).
        - `norm_eps`: epsilon of the layer norms; default MaskGIT's 1e-12.
        - `key`: PRNG key.

        **Raises:** `ValueError` if a size is below 1.
        """
        if min(grid, default=0) < 1 or codebook_size < 1 or num_classes < 1:
            raise ValueError(
                f"`MaskGITHead(grid={grid}, codebook_size={codebook_size}, num_classes={num_classes})` needs sizes of "
                "at least 1. For unconditional generation use one class."
            )
        # BERT's 0.02 suits an embedding that is normalised. In a pre-norm residual stream it would drown in what the
        # layers add.
        init = jax.nn.initializers.truncated_normal(2.0 / math.sqrt(dim) if pre_norm else 0.02)
        token_key, label_key, position_key, hidden_key = jax.random.split(key, 4)
        self.token_embedding = init(token_key, (codebook_size + 1, dim), jnp.float32)
        self.label_embedding = LabelEmbedding(num_classes, dim, init=init, key=label_key)
        self.position_embedding = init(position_key, (int(class_token) + math.prod(grid), dim), jnp.float32)
        self.embedding_norm = None if pre_norm else LayerNorm(dim, eps=norm_eps)
        self.state_norm = LayerNorm(dim, eps=norm_eps) if pre_norm else None
        self.hidden = Linear(dim, dim, init=None if pre_norm else init, key=hidden_key)
        self.hidden_norm = LayerNorm(dim, eps=norm_eps)
        self.bias = jnp.zeros(codebook_size, jnp.float32)
        self.grid = tuple(grid)
        self.codebook_size = codebook_size
        self.num_classes = num_classes
        self.class_token = class_token
        self.dropout = dropout

    @property
    def mask_id(self) -> int:
        """The id that stands for a masked token: K."""
        return self.codebook_size

    @property
    def null_label(self) -> int:
        """The label that stands for no class."""
        return self.num_classes

    @checked
    def embed(
        self, ids: Int[Array, "*grid"], label: Int[Array, ""], *, key: PRNGKeyArray | None = None
    ) -> tuple[Float[Array, "tokens dim"], Float[Array, " dim"] | None]:
        """**Arguments:**

        - `ids`: token ids in [0, K], K for masked ones, of the shape `grid`.
        - `label`: class in [0, num_classes].
        - `key`: turns dropout on.

        **Returns:** the class token and the grid's tokens, and no conditioning; without a class token, the grid's
        tokens, and the class as a conditioning vector.

        **Raises:** `ValueError` for another grid, an id or a label out of range; where these are traced, the tokens are
        NaN instead.
        """
        if ids.shape != self.grid:
            raise ValueError(
                f"`MaskGITHead.embed` got ids of shape {ids.shape}, but this head was built for the grid {self.grid}. "
                "Pass one example at a time (`jax.vmap` for a batch)."
            )
        check_range(
            ids,
            0,
            self.mask_id,
            f"A token id is outside the vocabulary: codes are 0 to {self.codebook_size - 1} and the mask is "
            f"{self.mask_id} (`head.mask_id`), never -1.",
        )
        x, label_vector = look_up(self.token_embedding, jnp.ravel(ids)), self.label_embedding(label)
        if self.class_token:
            x = jnp.concatenate([label_vector[None, :], x])
        x = x + self.position_embedding
        if self.embedding_norm is not None:
            x = self.embedding_norm(x)
        return apply_dropout(x, self.dropout, key=key), None if self.class_token else label_vector

    @checked
    def __call__(
        self, state: Float[Array, "tokens dim"], conditioning: Float[Array, " dim"] | None = None
    ) -> Float[Array, "*grid codebook"]:
        """**Arguments:** `state`: the trunk's state at any exit; `conditioning` is not used. **Returns:** logits over
        the K codes, in the state's dtype.
        """
        x = state[1:] if self.class_token else state
        if self.state_norm is not None:
            x = self.state_norm(x)
        x = self.hidden_norm(jax.nn.gelu(self.hidden(x)))
        logits = x @ self.token_embedding[: self.codebook_size].T
        logits = logits + self.bias[None, :]
        return jnp.reshape(logits, (*self.grid, self.codebook_size))
