"""The sampler of a model, as the examples set it and as a saved model remembers it."""

import dataclasses
from typing import Any

from elt_zoo.corruption import ShiftedCosineSchedule
from elt_zoo.families import DiTConfig, MaskGITConfig, ModelConfig
from elt_zoo.sampling import DDIM, ConstantGuidance, DiffusionSampler, MaskedSampler

# What gives the best digits, and what the paper (2604.09168) does with images and video. It does not state the noise on
# the confidence, which is MaskGIT's here. Its diffusion takes 512 ancestral steps; deterministic ones can be fewer.
_DIGITS = {"temperature_bias": 0.9, "temperature_scale": 0.2, "confidence_noise": 10.0}
_PAPER = {"temperature_bias": 0.5, "temperature_scale": 0.8, "confidence_noise": 4.5}
_STEPS = {"dit": (16, 64), "maskgit": (12, 24)}
_VIDEO_STEPS = 12
_PIXEL_CHANNELS = (1, 3)


@dataclasses.dataclass(frozen=True)
class SamplerSettings:
    """How to sample a model. What is not given follows from the data."""

    steps: int | None = None
    """Sampling steps; default on digits 16 (diffusion) or 12 (masked), on images 64 or 24, on video 12."""
    guidance: float | None = None
    """Guidance scale; by default the conditional model alone, which is best on digits."""
    clip_x0: float | None = None
    """Diffusion: the range to which steps clip their prediction; default 1 for pixels, none for latents."""
    noise_shift: float = 1.0
    """Diffusion: shift of the cosine noise schedule, in training too."""
    temperature_bias: float | None = None
    temperature_scale: float | None = None
    """Masked: the temperature falls from bias + scale to bias; 0.9, 0.2 on digits, else the paper's 0.5, 0.8."""
    confidence_noise: float | None = None
    """Masked: noise on the confidence; more gives more varied, less clean samples. Default 10 on digits, else 4.5."""

    def resolved(self, config: ModelConfig, *, digits: bool) -> "SamplerSettings":
        """The settings with every default filled in, for the 8 × 8 digits or for anything else."""
        video = isinstance(config, MaskGITConfig) and len(config.grid) == 3
        defaults: dict[str, Any] = dict(_DIGITS if digits else _PAPER)
        defaults["steps"] = _VIDEO_STEPS if video else _STEPS[config.family][0 if digits else 1]
        defaults["clip_x0"] = 1.0 if isinstance(config, DiTConfig) and config.shape[-1] in _PIXEL_CHANNELS else None
        missing = {name: value for name, value in defaults.items() if getattr(self, name) is None}
        return dataclasses.replace(self, **missing)


def make_sampler(config: ModelConfig, settings: SamplerSettings) -> DiffusionSampler | MaskedSampler:
    """The sampler that resolved settings describe."""
    guidance = None if settings.guidance is None else ConstantGuidance(settings.guidance)
    assert settings.steps is not None
    if isinstance(config, DiTConfig):
        return DiffusionSampler(
            shape=config.shape,
            prediction=config.prediction,
            null_label=config.num_classes,
            steps=settings.steps,
            schedule=ShiftedCosineSchedule(settings.noise_shift),
            update=DDIM(),
            clip_x0=settings.clip_x0,
            guidance=guidance,
        )
    assert isinstance(config, MaskGITConfig)
    assert settings.temperature_bias is not None and settings.temperature_scale is not None
    assert settings.confidence_noise is not None
    return MaskedSampler(
        grid=config.grid,
        codebook_size=config.codebook_size,
        mask_id=config.codebook_size,
        null_label=config.num_classes,
        steps=settings.steps,
        temperature_bias=settings.temperature_bias,
        temperature_scale=settings.temperature_scale,
        confidence_noise=settings.confidence_noise,
        guidance=guidance,
    )
