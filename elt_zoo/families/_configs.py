import abc
import dataclasses
import functools
import math
from typing import Any, ClassVar

import jax
from jaxtyping import PRNGKeyArray

from ..corruption import Prediction
from ..heads import DiTHead, MaskGITHead
from ..looped import LoopedTransformer, Remat
from ..models import ElasticModel
from ..nn import AdaLNZeroLayer, PostNormLayer, PreNormLayer


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig(abc.ABC):
    """The sizes that both families share. `build` makes the model, `to_dict` what a JSON file holds.

    **Fields:**

    - `dim`: width d.
    - `num_layers`: N, unique layers.
    - `max_loops`: L_max, the loops that the model is trained for.
    - `num_heads`: attention heads.
    - `num_classes`: classes; the null class comes on top.
    - `mlp_dim`: hidden width of the MLP; `None` for 4·`dim`.
    - `dropout`: rate in every residual branch (and after MaskGIT's embedding).
    - `num_loop_deltas`: loops that add vectors of their own to the layers' vectors, at most L_max; default none.
    - `scan_layers`, `unroll_loops`, `remat`: how the trunk runs, see [`LoopedTransformer`][elt_zoo.LoopedTransformer].
    """

    framework: ClassVar[str]

    dim: int
    num_layers: int
    max_loops: int
    num_heads: int
    num_classes: int
    mlp_dim: int | None = None
    dropout: float = 0.0
    num_loop_deltas: int = 0
    scan_layers: bool = False
    unroll_loops: bool = False
    remat: Remat = Remat.NONE

    def __post_init__(self):
        for name in ("dim", "num_layers", "max_loops", "num_heads", "num_classes"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{type(self).__name__}({name}={getattr(self, name)})` must be at least 1.")
        if self.dim % self.num_heads:
            raise ValueError(
                f"`{type(self).__name__}(dim={self.dim}, num_heads={self.num_heads})`: the heads must divide the width."
            )
        if not 0 <= self.num_loop_deltas <= self.max_loops:
            raise ValueError(
                f"`{type(self).__name__}(num_loop_deltas={self.num_loop_deltas}, max_loops={self.max_loops})` "
                "must be in [0, max_loops]: it counts loops with vectors of their own."
            )
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"`{type(self).__name__}(dropout={self.dropout})` must be in [0, 1).")

    @property
    def hidden_dim(self) -> int:
        """Hidden width of the MLP, `mlp_dim` or its default."""
        return 4 * self.dim if self.mlp_dim is None else self.mlp_dim

    @property
    def effective_depth(self) -> int:
        """D = N·L, the layers that a forward pass at L_max goes through."""
        return self.num_layers * self.max_loops

    @property
    @abc.abstractmethod
    def num_tokens(self) -> int:
        """Tokens that the trunk sees."""

    @abc.abstractmethod
    def build(self, *, key: PRNGKeyArray) -> ElasticModel:
        """The model with fresh parameters (float32). Build it abstractly with `equinox.filter_eval_shape`."""

    def unique_depth(self) -> "ModelConfig":
        """The baseline of equal compute without sharing: N·L unique layers, one loop."""
        return dataclasses.replace(self, num_layers=self.effective_depth, max_loops=1, num_loop_deltas=0)

    def to_dict(self) -> dict[str, Any]:
        """The framework and every field, of JSON's types."""
        return {"framework": self.framework} | dataclasses.asdict(self)

    def _trunk(self, layer: Any, key: PRNGKeyArray) -> LoopedTransformer:
        return LoopedTransformer.create(
            self.dim,
            self.num_layers,
            self.num_heads,
            mlp_dim=self.hidden_dim,
            layer=layer,
            scan_layers=self.scan_layers,
            unroll_loops=self.unroll_loops,
            remat=self.remat,
            num_loop_deltas=self.num_loop_deltas,
            key=key,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class MaskGITConfig(ModelConfig):
    """A looped MaskGIT (2202.04200): masked generation over a grid of discrete tokens.

    **Fields:** those of [`ModelConfig`][elt_zoo.families.ModelConfig], and

    - `grid`: tokens along each axis.
    - `codebook_size`: K, codes of the tokenizer.
    - `pre_norm`: pre-norm layers (our default, better past L_max) or BERT's post-norm (MaskGIT, the paper).
    """

    framework: ClassVar[str] = "maskgit"

    grid: tuple[int, ...]
    codebook_size: int
    pre_norm: bool = True

    @property
    def num_tokens(self) -> int:
        """The class token and the grid."""
        return 1 + math.prod(self.grid)

    def build(self, *, key: PRNGKeyArray) -> ElasticModel:
        """The model with fresh parameters (float32)."""
        head_key, trunk_key = jax.random.split(key)
        layer = functools.partial(PreNormLayer if self.pre_norm else PostNormLayer, dropout=self.dropout)
        head = MaskGITHead(
            self.dim,
            grid=self.grid,
            codebook_size=self.codebook_size,
            num_classes=self.num_classes,
            pre_norm=self.pre_norm,
            dropout=self.dropout,
            key=head_key,
        )
        return ElasticModel(head, self._trunk(layer, trunk_key), max_loops=self.max_loops)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DiTConfig(ModelConfig):
    """A looped DiT (2212.09748): diffusion over pixels or latents.

    **Fields:** those of [`ModelConfig`][elt_zoo.families.ModelConfig], and

    - `shape`: the arrays to denoise, channels last.
    - `patch_size`: one number or one per axis.
    - `prediction`: what the network predicts.
    - `learned_variance`: whether it also predicts the variance of ancestral sampling.
    - `conditioning_dim`: width of the conditioning vector; `None` for `dim`.
    """

    framework: ClassVar[str] = "dit"

    shape: tuple[int, ...]
    patch_size: int | tuple[int, ...] = 2
    prediction: Prediction = Prediction.V
    learned_variance: bool = False
    conditioning_dim: int | None = None

    @property
    def num_tokens(self) -> int:
        """Patches of an array."""
        axes = len(self.shape) - 1
        patch_size = (self.patch_size,) * axes if isinstance(self.patch_size, int) else self.patch_size
        return math.prod(size // p for size, p in zip(self.shape[:-1], patch_size, strict=True))

    def build(self, *, key: PRNGKeyArray) -> ElasticModel:
        """The model with fresh parameters (float32)."""
        head_key, trunk_key = jax.random.split(key)
        layer = functools.partial(AdaLNZeroLayer, dropout=self.dropout, conditioning_dim=self.conditioning_dim)
        head = DiTHead(
            self.dim,
            shape=self.shape,
            patch_size=self.patch_size,
            num_classes=self.num_classes,
            prediction=self.prediction,
            learned_variance=self.learned_variance,
            conditioning_dim=self.conditioning_dim,
            key=head_key,
        )
        return ElasticModel(head, self._trunk(layer, trunk_key), max_loops=self.max_loops)


def config_from_dict(values: dict[str, Any]) -> ModelConfig:
    """The inverse of `ModelConfig.to_dict`.

    **Raises:** `ValueError` for an unknown framework, or for fields that are unknown or missing, all of them at once.
    """
    families = {config.framework: config for config in (MaskGITConfig, DiTConfig)}
    fields = dict(values)
    framework = fields.pop("framework", None)
    if framework not in families:
        raise ValueError(f"Unknown framework {framework!r} in a model config; known are {sorted(families)}.")
    family = families[framework]
    known = {field.name: field for field in dataclasses.fields(family)}
    unknown = sorted(set(fields) - set(known))
    missing = sorted(
        name for name, field in known.items() if field.default is dataclasses.MISSING and name not in fields
    )
    if unknown or missing:
        raise ValueError(
            f"This is not a complete `{family.__name__}`: unknown fields {unknown}, missing fields {missing}. "
            "Was it written by another version of elt_zoo?"
        )
    decoders = {"remat": Remat, "prediction": Prediction}
    decoded: dict[str, Any] = {
        name: decoders[name](value) if name in decoders else tuple(value) if isinstance(value, list) else value
        for name, value in fields.items()
    }
    return family(**decoded)
