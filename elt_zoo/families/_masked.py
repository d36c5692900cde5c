import dataclasses
import functools
import math
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from ..corruption import CosineMaskSchedule, MaskedCorruption
from ..diagnostics import TokenExits, token_exits
from ..heads import MaskGITHead
from ..models import ElasticModel
from ..nn import AdaLNZeroLayer, PostNormLayer, PreNormLayer, Rotary
from ..objectives import MaskedCrossEntropy
from ..sampling import MaskedSampler
from ._config import ModelConfig, SamplerSettings, TrainingDefaults, guidance_of, of_type


@dataclasses.dataclass(frozen=True, kw_only=True)
class MaskedSamplerSettings(SamplerSettings):
    """How a masked model is sampled. The defaults are the paper's (2604.09168) and, for the noise on the confidence,
    which it does not state, MaskGIT's.

    **Fields:** those of [`SamplerSettings`][elt_zoo.families.SamplerSettings], and

    - `temperature_bias`, `temperature_scale`: the temperature falls from bias + scale to bias.
    - `confidence_noise`: noise on the confidence; more gives more varied, less clean samples.
    """

    temperature_bias: float = 0.5
    temperature_scale: float = 0.8
    confidence_noise: float = 4.5

    def __post_init__(self):
        super().__post_init__()
        for name in ("temperature_bias", "temperature_scale", "confidence_noise"):
            if not math.isfinite(getattr(self, name)):
                raise ValueError(f"`MaskedSamplerSettings({name}={getattr(self, name)})` must be a finite number.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class MaskGITConfig(ModelConfig):
    """A looped MaskGIT (2202.04200): masked generation of images or video over a grid of discrete tokens.

    **Fields:** those of [`ModelConfig`][elt_zoo.families.ModelConfig], and

    - `grid`: tokens along each axis.
    - `codebook_size`: K, codes of the tokenizer. Id K is the mask.
    - `pre_norm`: pre-norm layers (our default, better past L_max) or BERT's post-norm (MaskGIT, the paper).
    - `ada_ln`: the class conditions the layers by adaLN, as in Halton-MaskGIT (2503.17076), in place of being a token
      (MaskGIT, the paper). For pre-norm layers.
    - `label_smoothing`: of the cross-entropy, in [0, 1).
    """

    family: ClassVar[str] = "maskgit"

    grid: tuple[int, ...]
    codebook_size: int
    pre_norm: bool = True
    ada_ln: bool = False
    label_smoothing: float = 0.0

    def __post_init__(self):
        super().__post_init__()
        if not 1 <= len(self.grid) <= 3 or not all(1 <= size <= 4096 for size in self.grid):
            raise ValueError(f"`MaskGITConfig(grid={self.grid})` needs one to three axes of 1 to 4,096 tokens.")
        if not 1 <= self.codebook_size <= 2**24:
            raise ValueError(f"`MaskGITConfig(codebook_size={self.codebook_size})` must be from 1 to {2**24:,}.")
        if self.residual_scale != 1.0 and not self.pre_norm:
            raise ValueError(
                f"`MaskGITConfig(residual_scale={self.residual_scale}, pre_norm=False)`: the norm after each post-norm "
                "branch undoes a scale. Use pre-norm layers, or a scale of 1."
            )
        if self.ada_ln and not self.pre_norm:
            raise ValueError(
                "`MaskGITConfig(ada_ln=True, pre_norm=False)`: layers with adaLN are pre-norm. Use `pre_norm=True`, or "
                "post-norm layers with a class token."
            )
        if not 0.0 <= self.label_smoothing < 1.0:
            raise ValueError(f"`MaskGITConfig(label_smoothing={self.label_smoothing})` must be in [0, 1).")
        self.layer_options  # noqa: B018  (raises for heads that are too narrow)

    @property
    def mask_id(self) -> int:
        """The id that stands for a masked token: K."""
        return self.codebook_size

    @property
    def num_tokens(self) -> int:
        """The grid, and the class token if there is one."""
        return int(not self.ada_ln) + math.prod(self.grid)

    @property
    def rotary_positions(self) -> Rotary:
        """The grid, after the class token if there is one."""
        return Rotary(self.grid, prefix=int(not self.ada_ln))

    @property
    def example(self) -> jax.ShapeDtypeStruct:
        """A grid of token ids."""
        return jax.ShapeDtypeStruct(self.grid, jnp.int32)

    def build(self, *, key: PRNGKeyArray) -> ElasticModel:
        """The model with fresh parameters (float32)."""
        head_key, trunk_key = jax.random.split(key)
        kind = AdaLNZeroLayer if self.ada_ln else PreNormLayer if self.pre_norm else PostNormLayer
        layer = functools.partial(kind, dropout=self.dropout)
        head = MaskGITHead(
            self.dim,
            grid=self.grid,
            codebook_size=self.codebook_size,
            num_classes=self.num_classes,
            pre_norm=self.pre_norm,
            class_token=not self.ada_ln,
            dropout=self.dropout,
            key=head_key,
        )
        return ElasticModel(head, self.trunk(layer, key=trunk_key), max_loops=self.max_loops)

    def corruption(self, *, label_drop: float = 0.0) -> MaskedCorruption:
        """Masks tokens along MaskGIT's cosine schedule."""
        return MaskedCorruption(
            CosineMaskSchedule(), mask_id=self.mask_id, null_label=self.null_label, label_drop=label_drop
        )

    def loss(self) -> MaskedCrossEntropy:
        """Cross-entropy over the masked tokens."""
        return MaskedCrossEntropy(self.label_smoothing)

    def sampler_settings(self) -> MaskedSamplerSettings:
        """The paper's: 24 steps for images, 12 for video; on smaller grids a step for every token."""
        return MaskedSamplerSettings(steps=min(12 if len(self.grid) == 3 else 24, math.prod(self.grid)))

    def sampler(self, settings: SamplerSettings | None = None) -> MaskedSampler:
        """Masked parallel decoding."""
        settings = of_type(MaskedSamplerSettings, self.sampler_settings() if settings is None else settings)
        return MaskedSampler(
            grid=self.grid,
            codebook_size=self.codebook_size,
            mask_id=self.mask_id,
            null_label=self.null_label,
            steps=settings.steps,
            temperature_bias=settings.temperature_bias,
            temperature_scale=settings.temperature_scale,
            confidence_noise=settings.confidence_noise,
            guidance=guidance_of(settings),
        )

    def compare_exits(
        self,
        model: ElasticModel,
        corruption: Any,
        examples: Array,
        labels: Int[Array, " batch"],
        *,
        loops: int,
        settings: SamplerSettings | None = None,
        key: PRNGKeyArray,
    ) -> TokenExits:
        """What the exits answer at the masked positions."""
        return token_exits(model, corruption, examples, labels, loops=loops, key=key)

    def level(self, *inputs: Any) -> Float[Array, ""]:
        """The share of masked tokens."""
        ids, _ = inputs
        return jnp.mean(ids == self.mask_id, dtype=jnp.float32)

    def guess(self, prediction: Float[Array, "*grid codebook"], *inputs: Any) -> Int[Array, "*grid"]:
        """The known tokens, and the likeliest code in place of every masked one."""
        ids, _ = inputs
        return jnp.where(ids == self.mask_id, jnp.argmax(prediction, axis=-1).astype(ids.dtype), ids)

    def preview(self, sample: Int[Array, "*grid"], tokenizer: Any) -> Float[Array, "*pixels"]:
        """One grid of ids → pixels in [−1, 1], grey where a token is masked."""
        masked = sample == self.mask_id
        pixels = self.decode(jnp.where(masked, 0, sample), tokenizer)
        if sample.ndim != pixels.ndim - 1:
            return pixels  # tokens without a place of their own in the picture
        grey = jax.image.resize(masked.astype(jnp.float32), pixels.shape[:-1], "nearest")[..., None] > 0.5
        return jnp.where(grey, jnp.zeros_like(pixels), pixels)

    def training_defaults(self) -> TrainingDefaults:
        """The paper's: 675,000 steps, β = (0.9, 0.96), weight decay 0.045, five times that from scale H on.

        It does not state warm-up or clipping; the 5,000 steps and the norm 1 are those of MaskGIT and MAGVIT.
        """
        decay = 0.225 if self.dim >= 1280 else 0.045
        steps = 200_000 if len(self.grid) == 3 else 675_000
        return TrainingDefaults(steps=steps, warmup_steps=5000, b2=0.96, weight_decay=decay)

    def fit_to(
        self, example: jax.ShapeDtypeStruct, *, num_classes: int, codebook_size: int | None = None
    ) -> "MaskGITConfig":
        """The config for grids of the shape of `example`, with `codebook_size` codes."""
        if codebook_size is None or not jnp.issubdtype(example.dtype, jnp.integer):
            raise ValueError(
                f"A MaskGITConfig takes grids of token ids, not {example.dtype}{list(example.shape)}: encode the data "
                "with a tokenizer of discrete tokens, and say how many codes it has."
            )
        return dataclasses.replace(
            self, grid=tuple(example.shape), num_classes=num_classes, codebook_size=codebook_size
        )

    def decode(self, sample: Array, tokenizer: Any) -> Float[Array, "*pixels"]:
        """One grid of ids → pixels in [−1, 1]."""
        if tokenizer is None:
            raise ValueError(
                "This generator makes token ids and has no tokenizer to turn them into pixels: give it one, such as "
                "`dataclasses.replace(generator, tokenizer=elt_zoo.tokenizers.load_tokenizer(folder))`."
            )
        grid, size = (getattr(tokenizer, name, None) for name in ("grid", "codebook_size"))
        if (grid, size) != (self.grid, self.codebook_size):
            theirs = "no discrete tokens" if size is None else f"grids {grid} of {size}"
            raise ValueError(
                f"This generator makes grids {self.grid} of {self.codebook_size} token ids, and its tokenizer, a "
                f"{type(tokenizer).__name__}, decodes {theirs}: give the one that it was trained with."
            )
        return tokenizer.decode(sample)
