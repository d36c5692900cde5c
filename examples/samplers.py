"""The sampler of a model, as the examples set it and as a saved model remembers it."""

import dataclasses

from elt_zoo.models import DiTConfig, MaskGITConfig, ModelConfig
from elt_zoo.objectives import ShiftedCosineSchedule
from elt_zoo.sampling import DDIM, ConstantGuidance, DiffusionSampler, MaskedSampler


@dataclasses.dataclass(frozen=True)
class SamplerSettings:
    """How to sample a model. The defaults are what gives the best digits."""

    steps: int | None = None
    """Sampling steps; default 16 deterministic ones (diffusion) or 12 (masked)."""
    guidance: float | None = None
    """Guidance scale; by default the conditional model alone, which is best on digits."""
    clip_x0: float | None = 1.0
    """Diffusion: the range of the data, to which every step clips its prediction."""
    noise_shift: float = 1.0
    """Diffusion: shift of the cosine noise schedule, in training too."""
    temperature_bias: float = 0.9
    temperature_scale: float = 0.2
    """Masked: the temperature falls from bias + scale to bias. The paper's are 0.5 and 0.8."""
    confidence_noise: float = 10.0
    """Masked: noise on the confidence. More gives more varied, less clean samples."""

    def steps_of(self, config: ModelConfig) -> int:
        return self.steps or (16 if config.framework == "dit" else 12)


def make_sampler(config: ModelConfig, settings: SamplerSettings) -> DiffusionSampler | MaskedSampler:
    guidance = None if settings.guidance is None else ConstantGuidance(settings.guidance)
    if isinstance(config, DiTConfig):
        return DiffusionSampler(
            shape=config.shape,
            prediction=config.prediction,
            null_label=config.num_classes,
            steps=settings.steps_of(config),
            schedule=ShiftedCosineSchedule(settings.noise_shift),
            update=DDIM(),
            clip_x0=settings.clip_x0,
            guidance=guidance,
        )
    assert isinstance(config, MaskGITConfig)
    return MaskedSampler(
        grid=config.grid,
        codebook_size=config.codebook_size,
        mask_id=config.codebook_size,
        null_label=config.num_classes,
        steps=settings.steps_of(config),
        temperature_bias=settings.temperature_bias,
        temperature_scale=settings.temperature_scale,
        confidence_noise=settings.confidence_noise,
        guidance=guidance,
    )
