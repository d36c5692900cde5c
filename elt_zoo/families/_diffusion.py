import dataclasses
import enum
import functools
import math
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from ..corruption import (
    AbstractNoiseSchedule,
    DiffusionCorruption,
    LinearBetaSchedule,
    Prediction,
    ShiftedCosineSchedule,
)
from ..diagnostics import DiffusionExits, diffusion_exits
from ..heads import DiTHead
from ..models import ElasticModel
from ..nn import AdaLNZeroLayer, Rotary
from ..objectives import SigmoidWeightedMSE
from ..sampling import DDIM, DDPM, DiffusionSampler
from ._config import ModelConfig, SamplerSettings, TrainingDefaults, guidance_of, of_type

_PIXEL_CHANNELS = (1, 3)


class NoiseSchedule(enum.StrEnum):
    """The noise schedule of a config.

    `SHIFTED_COSINE` is the paper's ([`ShiftedCosineSchedule`][elt_zoo.corruption.ShiftedCosineSchedule]), `LINEAR_BETA`
    that of DDPM and of the published DiT models ([`LinearBetaSchedule`][elt_zoo.corruption.LinearBetaSchedule]).
    """

    SHIFTED_COSINE = "shifted_cosine"
    LINEAR_BETA = "linear_beta"


@dataclasses.dataclass(frozen=True, kw_only=True)
class DiffusionSamplerSettings(SamplerSettings):
    """How a diffusion model is sampled.

    **Fields:** those of [`SamplerSettings`][elt_zoo.families.SamplerSettings], and

    - `ancestral`: DDPM's noisy steps, as the paper's 512, instead of DDIM's deterministic ones, which can be fewer. A
      learned variance is used where the model has one.
    - `clip_x0`: the range to which every step clips its prediction of clean data; `None` for no clipping.
    - `guidance_channels`: guide only the first so many channels (DiT: 3 of 4); `None` for all.
    """

    ancestral: bool = False
    clip_x0: float | None = None
    guidance_channels: int | None = None

    def __post_init__(self):
        super().__post_init__()
        if self.clip_x0 is not None and not 0.0 < self.clip_x0 < math.inf:
            raise ValueError(f"`DiffusionSamplerSettings(clip_x0={self.clip_x0})` must be a positive number.")
        if self.guidance_channels is not None and self.guidance_channels < 1:
            raise ValueError(
                f"`DiffusionSamplerSettings(guidance_channels={self.guidance_channels})` must be at least 1."
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class DiTConfig(ModelConfig):
    """A looped DiT (2212.09748): diffusion over pixels or latents, of images or video.

    **Fields:** those of [`ModelConfig`][elt_zoo.families.ModelConfig], and

    - `shape`: the arrays to denoise, channels last.
    - `patch_size`: one number or one per axis.
    - `prediction`: what the network predicts.
    - `learned_variance`: whether it also predicts the variance of ancestral sampling.
    - `conditioning_dim`: width of the conditioning vector; `None` for `dim`.
    - `noise_schedule`, `noise_shift`: the noise schedule, and the shift of the cosine one, > 0.
    - `loss_bias`: b of the sigmoid weighting.
    """

    family: ClassVar[str] = "dit"

    shape: tuple[int, ...]
    patch_size: int | tuple[int, ...] = 2
    prediction: Prediction = Prediction.V
    learned_variance: bool = False
    conditioning_dim: int | None = None
    noise_schedule: NoiseSchedule = NoiseSchedule.SHIFTED_COSINE
    noise_shift: float = 1.0
    loss_bias: float = 0.0

    def __post_init__(self):
        super().__post_init__()
        if not 3 <= len(self.shape) <= 4 or not all(1 <= size <= 65_536 for size in self.shape):
            raise ValueError(
                f"`DiTConfig(shape={self.shape})` needs (height, width, channels) or (frames, height, width, channels)."
            )
        patches = self._patches
        fits = len(patches) == len(self.shape) - 1 and all(
            p >= 1 and size % p == 0 for size, p in zip(self.shape[:-1], patches, strict=True)
        )
        if not fits:
            raise ValueError(f"`DiTConfig(shape={self.shape}, patch_size={self.patch_size})`: patches must divide it.")
        if self.conditioning_dim is not None and not 1 <= self.conditioning_dim <= 65_536:
            raise ValueError(f"`DiTConfig(conditioning_dim={self.conditioning_dim})` must be from 1 to 65,536.")
        if not math.isfinite(self.loss_bias):
            raise ValueError(f"`DiTConfig(loss_bias={self.loss_bias})` must be a finite number.")
        self.schedule  # noqa: B018  (raises for a shift that the schedule cannot have)
        self.layer_options  # noqa: B018  (raises for heads that are too narrow)

    @property
    def _patches(self) -> tuple[int, ...]:
        axes = len(self.shape) - 1
        return (self.patch_size,) * axes if isinstance(self.patch_size, int) else self.patch_size

    @property
    def _grid(self) -> tuple[int, ...]:
        return tuple(size // p for size, p in zip(self.shape[:-1], self._patches, strict=True))

    @property
    def schedule(self) -> AbstractNoiseSchedule:
        """The noise schedule, of training and sampling alike."""
        match self.noise_schedule:
            case NoiseSchedule.SHIFTED_COSINE:
                return ShiftedCosineSchedule(self.noise_shift)
            case NoiseSchedule.LINEAR_BETA:
                return LinearBetaSchedule()

    @property
    def num_tokens(self) -> int:
        """Patches of an array."""
        return math.prod(self._grid)

    @property
    def rotary_positions(self) -> Rotary:
        """The grid of patches."""
        return Rotary(self._grid)

    @property
    def example(self) -> jax.ShapeDtypeStruct:
        """An array of pixels or latents."""
        return jax.ShapeDtypeStruct(self.shape, jnp.float32)

    @property
    def of_pixels(self) -> bool:
        """Whether the arrays are pixels, grey or coloured, rather than latents."""
        return self.shape[-1] in _PIXEL_CHANNELS

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
        return ElasticModel(head, self.trunk(layer, key=trunk_key), max_loops=self.max_loops)

    def corruption(self, *, label_drop: float = 0.0) -> DiffusionCorruption:
        """Adds noise along the config's schedule."""
        return DiffusionCorruption(
            self.schedule, prediction=self.prediction, null_label=self.null_label, label_drop=label_drop
        )

    def loss(self) -> SigmoidWeightedMSE:
        """Mean squared error under the sigmoid weighting."""
        return SigmoidWeightedMSE(self.prediction, self.loss_bias)

    def sampler_settings(self) -> DiffusionSamplerSettings:
        """64 deterministic steps, which differ little from the paper's 512 ancestral ones; for models of DDPM's chain
        DiT's 250 ancestral steps.
        """
        clip_x0 = 1.0 if self.of_pixels else None
        if self.noise_schedule == NoiseSchedule.LINEAR_BETA:
            return DiffusionSamplerSettings(steps=250, ancestral=True, clip_x0=clip_x0)
        return DiffusionSamplerSettings(steps=64, clip_x0=clip_x0)

    def sampler(self, settings: SamplerSettings | None = None) -> DiffusionSampler:
        """DDIM, or DDPM for ancestral steps."""
        settings = of_type(DiffusionSamplerSettings, self.sampler_settings() if settings is None else settings)
        return DiffusionSampler(
            shape=self.shape,
            prediction=self.prediction,
            null_label=self.null_label,
            steps=settings.steps,
            schedule=self.schedule,
            update=DDPM(learned_variance=self.learned_variance) if settings.ancestral else DDIM(),
            clip_x0=settings.clip_x0,
            guidance=guidance_of(settings),
            guidance_channels=settings.guidance_channels,
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
    ) -> DiffusionExits:
        """What the exits predict of the clean arrays, clipped as the sampler clips them."""
        settings = of_type(DiffusionSamplerSettings, self.sampler_settings() if settings is None else settings)
        return diffusion_exits(model, corruption, examples, labels, loops=loops, clip_x0=settings.clip_x0, key=key)

    def level(self, *inputs: Any) -> Float[Array, ""]:
        """The time, in [0, 1]."""
        _, time, _ = inputs
        return time

    def guess(self, prediction: Float[Array, "*out"], *inputs: Any) -> Float[Array, "*shape"]:
        """The clean array x0."""
        x, time, _ = inputs
        alpha, sigma = self.schedule.alpha_sigma(time)
        # A learned variance is the second half of the channels.
        output = prediction[..., : self.shape[-1]].astype(jnp.float32)
        return self.prediction.to_x0(output, x.astype(jnp.float32), alpha, sigma)

    def training_defaults(self) -> TrainingDefaults:
        """The paper's: 500,000 steps, β = (0.9, 0.99), weight decay 0.01, a constant rate of 1e-4. Clipping is ours."""
        return TrainingDefaults(steps=500_000, b2=0.99, weight_decay=0.01)

    def fit_to(
        self, example: jax.ShapeDtypeStruct, *, num_classes: int, codebook_size: int | None = None
    ) -> "DiTConfig":
        """The config for arrays of the shape of `example`."""
        if codebook_size is not None or not jnp.issubdtype(example.dtype, jnp.floating):
            raise ValueError(
                f"A DiTConfig takes arrays of pixels or latents, not token ids of shape {list(example.shape)}: use an "
                "autoencoder or none."
            )
        return dataclasses.replace(self, shape=tuple(example.shape), num_classes=num_classes)

    def decode(self, sample: Array, tokenizer: Any) -> Float[Array, "*pixels"]:
        """One array → pixels in [−1, 1]: itself, or what the autoencoder makes of the latents."""
        if tokenizer is None and not self.of_pixels:
            raise ValueError(
                f"This generator makes latents of {self.shape[-1]} channels and has no autoencoder to turn them into "
                "pixels: give it one, such as "
                "`dataclasses.replace(generator, tokenizer=elt_zoo.tokenizers.load_tokenizer(folder))`."
            )
        if hasattr(tokenizer, "codebook_size"):
            raise ValueError(
                f"This generator makes pixels or latents, which a tokenizer of discrete tokens, a "
                f"{type(tokenizer).__name__}, does not decode: give it an autoencoder or none."
            )
        return sample if tokenizer is None else tokenizer.decode(sample)
