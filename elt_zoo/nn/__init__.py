"""Building blocks: the layers that the trunk loops and their parts, embeddings, and convolutions for tokenizers."""

from ._attention import SelfAttention as SelfAttention
from ._attention import with_attention as with_attention
from ._attention_kernel import AttentionChoice as AttentionChoice
from ._attention_kernel import AttentionDevice as AttentionDevice
from ._attention_kernel import AttentionKernel as AttentionKernel
from ._attention_kernel import attention_kernel as attention_kernel
from ._conv import Conv as Conv
from ._conv import UpsampleConv as UpsampleConv
from ._dropout import dropout as dropout
from ._embeddings import LabelEmbedding as LabelEmbedding
from ._embeddings import TimestepEmbedding as TimestepEmbedding
from ._embeddings import look_up as look_up
from ._embeddings import sincos_positions as sincos_positions
from ._fused_attention import save_fused_attention as save_fused_attention
from ._group_norm import GroupNorm as GroupNorm
from ._layers import AbstractLayer as AbstractLayer
from ._layers import AdaLNZeroLayer as AdaLNZeroLayer
from ._layers import PostNormLayer as PostNormLayer
from ._layers import PreNormLayer as PreNormLayer
from ._layers import modulate as modulate
from ._linear import Linear as Linear
from ._mlp import Mlp as Mlp
from ._norm import LayerNorm as LayerNorm
