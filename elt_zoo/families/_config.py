import abc
import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, ClassVar, TypeVar

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, PRNGKeyArray

from ..corruption import AbstractCorruption
from ..diagnostics import AbstractExits
from ..looped import LoopedTransformer, Remat
from ..models import ElasticModel
from ..nn import LayerOptions, Rotary
from ..objectives import AbstractLoss
from ..sampling import AbstractGuidance, AbstractSampler, ConstantGuidance

_Settings = TypeVar("_Settings", bound="SamplerSettings")
_LARGEST = {"dim": 65_536, "num_layers": 1024, "max_loops": 1024, "num_heads": 1024, "num_classes": 10_000_000}


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplerSettings:
    """How a model is sampled, as JSON can hold it. A saved model remembers the settings that it was measured with.

    **Fields:**

    - `steps`: sampling steps, at least 1.
    - `guidance`: the scale s of classifier-free guidance, uncond + s·(cond − uncond); 1 is the conditional model alone.

    **Raises:** `ValueError` for values outside these ranges.
    """

    steps: int
    guidance: float = 1.0

    def __post_init__(self):
        if self.steps < 1:
            raise ValueError(f"`{type(self).__name__}(steps={self.steps})` must be at least 1.")
        if not -1e6 < self.guidance < 1e6:
            raise ValueError(f"`{type(self).__name__}(guidance={self.guidance})` must be a finite number.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingDefaults:
    """How a paper trains a family: the learning rate and its warm-up, the steps, AdamW's betas, decay and clipping."""

    learning_rate: float = 1e-4
    steps: int = 500_000
    warmup_steps: int = 0
    b1: float = 0.9
    b2: float = 0.99
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    ema_decay: float = 0.9999


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig(abc.ABC):
    """A family of generators: every part that one is made of, from one frozen config of JSON's types.

    A family is a subclass, its config an instance. Head, corruption, loss and sampler have to agree on what the network
    predicts, on the noise schedule, on the mask and on the null label; all of them read it here. Everything above this
    room (runs, saving, sampling, evaluation, profiles) works for any family through these methods, for one of your own
    too: subclass `ModelConfig`, set `family`, and pass the class to [`load`][elt_zoo.load].

    **Fields:**

    - `dim`: width d.
    - `num_layers`: N, unique layers.
    - `max_loops`: L_max, the loops that the model is trained for.
    - `num_heads`: attention heads.
    - `num_classes`: number of classes; label `num_classes` is the null class.
    - `mlp_dim`: hidden width of the MLP; `None` for 4·`dim`, and with `swiglu` for 8/3·`dim`, rounded up to a multiple
      of 8, which is about as many parameters.
    - `dropout`: rate in every residual branch (and after MaskGIT's embedding).
    - `prelude`, `coda`: layers before the loops and after the last one; default none, as the paper.
    - `residual_scale`: of the branches of looped layers, in (0, 1]; default 1, as the paper.
    - `reinjection`: share of what entered the loops in what each of them starts from, in [0, 1); default 0, as the
      paper.
    - `rms_norm`: RMS norms in the trunk's layers ([1910.07467](https://arxiv.org/abs/1910.07467)); default layer norms,
      as the paper. The head keeps its own.
    - `qk_norm`: RMS norms of queries and keys ([2302.05442](https://arxiv.org/abs/2302.05442), with layer norms);
      default none, as the paper.
    - `swiglu`: gated MLPs ([2002.05202](https://arxiv.org/abs/2002.05202)); default MLPs with GELU, as the paper.
    - `rotary`: queries and keys turned by their positions in the grid
      ([2104.09864](https://arxiv.org/abs/2104.09864)), see [`Rotary`][elt_zoo.nn.Rotary]; default not, as the paper.
      The head adds its absolute positions either way.
    - `scan_layers`, `unroll_loops`, `remat`: how the trunk runs, see [`LoopedTransformer`][elt_zoo.LoopedTransformer].

    **Raises:** `ValueError` for a size below 1 or beyond any reason, heads that do not divide the width or are too
    narrow for rotary positions, or a dropout outside [0, 1).
    """

    family: ClassVar[str]
    """The name that files use."""

    dim: int
    num_layers: int
    max_loops: int
    num_heads: int
    num_classes: int
    mlp_dim: int | None = None
    dropout: float = 0.0
    prelude: int = 0
    coda: int = 0
    residual_scale: float = 1.0
    reinjection: float = 0.0
    rms_norm: bool = False
    qk_norm: bool = False
    swiglu: bool = False
    rotary: bool = False
    scan_layers: bool = False
    unroll_loops: bool = False
    remat: Remat = Remat.AUTO

    def __post_init__(self):
        for name, most in _LARGEST.items():
            if not 1 <= getattr(self, name) <= most:
                raise ValueError(f"`{type(self).__name__}({name}={getattr(self, name)})` must be from 1 to {most:,}.")
        if self.mlp_dim is not None and not 1 <= self.mlp_dim <= 16 * _LARGEST["dim"]:
            raise ValueError(f"`{type(self).__name__}(mlp_dim={self.mlp_dim})` must be at least 1.")
        if self.dim % self.num_heads:
            raise ValueError(
                f"`{type(self).__name__}(dim={self.dim}, num_heads={self.num_heads})`: the heads must divide the width."
            )
        if not 0 <= self.prelude <= _LARGEST["num_layers"] or not 0 <= self.coda <= _LARGEST["num_layers"]:
            raise ValueError(
                f"`{type(self).__name__}(prelude={self.prelude}, coda={self.coda})` must be numbers of layers, from 0 "
                f"to {_LARGEST['num_layers']:,}."
            )
        if not 0.0 < self.residual_scale <= 1.0:
            raise ValueError(f"`{type(self).__name__}(residual_scale={self.residual_scale})` must be in (0, 1].")
        if not 0.0 <= self.reinjection < 1.0:
            raise ValueError(f"`{type(self).__name__}(reinjection={self.reinjection})` must be in [0, 1).")
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"`{type(self).__name__}(dropout={self.dropout})` must be in [0, 1).")

    # What a family defines.

    @property
    @abc.abstractmethod
    def num_tokens(self) -> int:
        """Tokens that the trunk sees."""

    @property
    @abc.abstractmethod
    def example(self) -> jax.ShapeDtypeStruct:
        """Shape and dtype of one clean example, which is also what a sampler returns for one label."""

    @abc.abstractmethod
    def build(self, *, key: PRNGKeyArray) -> ElasticModel:
        """The model with fresh parameters (float32). Build it abstractly with `equinox.filter_eval_shape`."""

    @abc.abstractmethod
    def corruption(self, *, label_drop: float = 0.0) -> AbstractCorruption:
        """Clean examples → inputs and targets. `label_drop`: share of examples that lose their label, in [0, 1]."""

    @abc.abstractmethod
    def loss(self) -> AbstractLoss:
        """The ground-truth loss of one example, and the distillation loss that belongs to it."""

    @abc.abstractmethod
    def sampler_settings(self) -> SamplerSettings:
        """How the papers sample this family."""

    @abc.abstractmethod
    def sampler(self, settings: SamplerSettings | None = None) -> AbstractSampler:
        """The sampler of the given settings, by default [`sampler_settings`][elt_zoo.families.ModelConfig].

        **Raises:** `ValueError` for settings that the sampler cannot take.
        """

    @abc.abstractmethod
    def compare_exits(
        self,
        model: ElasticModel,
        corruption: AbstractCorruption,
        examples: Array,
        labels: Int[Array, " batch"],
        *,
        loops: int,
        settings: SamplerSettings | None = None,
        key: PRNGKeyArray,
    ) -> AbstractExits:
        """What exits 1 to `loops` say about the same corrupted examples, and what each loop changes. Batched."""

    def level(self, *inputs: Any) -> Float[Array, ""] | None:
        """How much of an example the corruption has hidden, from 0 (nothing) to 1 (all): the time of diffusion, or the
        share of masked tokens. Planners compare the exits at every level, to give each sampling step the loops that it
        needs. Without levels, all steps count alike.

        **Arguments:** `inputs` of the model, for one example. Of those that a sampler makes, the level must not depend
        on what the network predicts.

        **Returns:** a scalar; `None`, the default, where a family has no such level.
        """
        return None

    def training_defaults(self) -> TrainingDefaults:
        """How the paper trains this family; here AdamW at a constant 1e-4."""
        return TrainingDefaults()

    def fit_to(
        self, example: jax.ShapeDtypeStruct, *, num_classes: int, codebook_size: int | None = None
    ) -> "ModelConfig":
        """The config with the sizes of given data: `example`, one clean example; its classes; and for tokens the number
        of codes.

        **Raises:** `ValueError` if the family cannot take such examples.
        """
        fitted = dataclasses.replace(self, num_classes=num_classes)
        if (fitted.example.shape, fitted.example.dtype) != (example.shape, example.dtype):
            raise ValueError(
                f"A {type(self).__name__} of examples {_said(fitted.example)} cannot take data of {_said(example)}."
            )
        return fitted

    def decode(self, sample: Array, tokenizer: Any) -> Float[Array, "*pixels"]:
        """One sample → pixels in [−1, 1], channels last: what the tokenizer makes of it, or the sample itself.

        **Raises:** `ValueError` if a tokenizer is missing.
        """
        return sample if tokenizer is None else tokenizer.decode(sample)

    def guess(self, prediction: Array, *inputs: Any) -> Array | None:
        """The clean example that a prediction stands for: the clean array of diffusion, or the known tokens with the
        likeliest code in place of every masked one. It shows what an exit expects.

        **Arguments:** `prediction` of the model; `inputs` that it was given. Both of one example.

        **Returns:** an array such as `example`; `None`, the default, where a family has no such thing.
        """
        return None

    def preview(self, sample: Array, tokenizer: Any) -> Float[Array, "*pixels"]:
        """One unfinished sample, as samplers hold it between steps → pixels in [−1, 1]; default as `decode`.

        **Raises:** `ValueError` if a tokenizer is missing.
        """
        return self.decode(sample, tokenizer)

    # What follows from it.

    @property
    def hidden_dim(self) -> int:
        """Hidden width of the MLP, `mlp_dim` or its default."""
        if self.mlp_dim is not None:
            return self.mlp_dim
        return 8 * math.ceil(self.dim / 3) if self.swiglu else 4 * self.dim

    @property
    def rotary_positions(self) -> Rotary | None:
        """Where the trunk's tokens stand in a grid, for `rotary`; `None`, the default, where they stand in none."""
        return None

    @property
    def layer_options(self) -> LayerOptions:
        """What the parts of the trunk's layers are.

        **Raises:** `ValueError` if the fields ask for rotary positions where there is no grid, or the heads are too
        narrow for them.
        """
        rotary = self.rotary_positions if self.rotary else None
        if self.rotary and rotary is None:
            raise ValueError(
                f"`{type(self).__name__}(rotary=True)`: this family does not say where its tokens stand in a grid. "
                "Define its property `rotary_positions`, or leave `rotary` off."
            )
        if rotary is not None:
            rotary.pairs(self.dim // self.num_heads)
        return LayerOptions(rms_norm=self.rms_norm, qk_norm=self.qk_norm, swiglu=self.swiglu, rotary=rotary)

    @property
    def effective_depth(self) -> int:
        """D, the layers that a forward pass at L_max goes through: N·L and those before and after the loops."""
        return self.prelude + self.num_layers * self.max_loops + self.coda

    @property
    def null_label(self) -> int:
        """The label that stands for no class."""
        return self.num_classes

    def example_inputs(self, dtype: DTypeLike = jnp.float32) -> tuple[jax.ShapeDtypeStruct, ...]:
        """Shapes and dtypes of what the model takes for one example, floating-point arrays in `dtype`."""
        example = jax.ShapeDtypeStruct((1, *self.example.shape), self.example.dtype)
        labels = jax.ShapeDtypeStruct((1,), jnp.int32)
        corrupt = functools.partial(self.corruption(), key=jax.random.key(0))
        inputs = jax.eval_shape(corrupt, example, labels).inputs

        def one(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
            # A scalar of every example, such as its time, keeps its precision.
            cast = leaf.ndim > 1 and jnp.issubdtype(leaf.dtype, jnp.floating)
            return jax.ShapeDtypeStruct(leaf.shape[1:], dtype if cast else leaf.dtype)

        return jax.tree.map(one, inputs)

    def unique_depth(self) -> "ModelConfig":
        """The baseline of equal compute without sharing: D unique layers, one loop."""
        return self._unlooped(self.effective_depth)

    def unlooped(self) -> "ModelConfig":
        """The baseline of the same layers without loops: as many unique ones, each applied once."""
        return self._unlooped(self.prelude + self.num_layers + self.coda)

    def _unlooped(self, num_layers: int) -> "ModelConfig":
        plain = {"prelude": 0, "coda": 0, "residual_scale": 1.0, "reinjection": 0.0}
        return dataclasses.replace(self, num_layers=num_layers, max_loops=1, **plain)

    def to_dict(self) -> dict[str, Any]:
        """The family and every field, of JSON's types."""
        return {"family": self.family} | dataclasses.asdict(self)

    def trunk(self, layer: Callable[..., Any], *, key: PRNGKeyArray) -> LoopedTransformer:
        """The trunk of these sizes, of layers that `layer(dim, num_heads, mlp_dim=…, key=…)` makes. It is called with
        `options=`, too, if any of the [`LayerOptions`][elt_zoo.nn.LayerOptions] is on.
        """
        options = self.layer_options
        layer = layer if options == LayerOptions() else functools.partial(layer, options=options)
        return LoopedTransformer.create(
            self.dim,
            self.num_layers,
            self.num_heads,
            mlp_dim=self.hidden_dim,
            layer=layer,
            prelude=self.prelude,
            coda=self.coda,
            residual_scale=self.residual_scale,
            reinjection=self.reinjection,
            scan_layers=self.scan_layers,
            unroll_loops=self.unroll_loops,
            remat=self.remat,
            key=key,
        )


def _said(example: jax.ShapeDtypeStruct) -> str:
    return f"{example.dtype}{list(example.shape)}"


def of_type(kind: type[_Settings], settings: SamplerSettings) -> _Settings:
    """The settings, if they are of the family's kind. **Raises:** `TypeError` otherwise."""
    if not isinstance(settings, kind):
        raise TypeError(f"The sampler of this family takes {kind.__name__}, not {type(settings).__name__}.")
    return settings


def guidance_of(settings: SamplerSettings) -> AbstractGuidance | None:
    """The guidance of a sampler; none at scale 1, so that the unconditional branch never runs."""
    return None if settings.guidance == 1.0 else ConstantGuidance(settings.guidance)
