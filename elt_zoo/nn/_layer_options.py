import dataclasses

from jaxtyping import PRNGKeyArray

from ._attention import SelfAttention
from ._linear import Initializer
from ._mlp import Mlp, SwiGLU
from ._norm import LayerNorm, RMSNorm
from ._rotary import Rotary


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerOptions:
    """What the parts of a transformer layer are. The default is the layer of the papers that we follow: layer norms and
    an MLP with GELU.

    **Fields:**

    - `rms_norm`: RMS norms in place of layer norms ([1910.07467](https://arxiv.org/abs/1910.07467)).
    - `qk_norm`: normalise queries and keys, see [`SelfAttention`][elt_zoo.nn.SelfAttention].
    - `swiglu`: a gated MLP ([2002.05202](https://arxiv.org/abs/2002.05202)).
    - `rotary`: turn queries and keys by their positions ([2104.09864](https://arxiv.org/abs/2104.09864)); `None` for
      not.
    """

    rms_norm: bool = False
    qk_norm: bool = False
    swiglu: bool = False
    rotary: Rotary | None = None

    def norm(self, dim: int, *, eps: float, affine: bool = True) -> LayerNorm | RMSNorm:
        """A norm of the layer."""
        return (RMSNorm if self.rms_norm else LayerNorm)(dim, eps=eps, affine=affine)

    def attention(
        self, dim: int, num_heads: int, *, init: Initializer | None = None, key: PRNGKeyArray
    ) -> SelfAttention:
        """The layer's attention."""
        return SelfAttention(dim, num_heads, init=init, qk_norm=self.qk_norm, rotary=self.rotary, key=key)

    def mlp(self, dim: int, hidden_dim: int, *, init: Initializer | None = None, key: PRNGKeyArray) -> Mlp | SwiGLU:
        """The layer's MLP."""
        return (SwiGLU if self.swiglu else Mlp)(dim, hidden_dim, init=init, key=key)
