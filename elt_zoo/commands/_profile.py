import dataclasses
from pathlib import Path
from typing import Literal

from ..families import preset
from ..generator import load
from ..looped import Remat
from ..nn import AttentionKernel
from ..profile import profile as count_costs


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProfileOptions:
    """Count parameters, operations and memory of a model before it is built."""

    preset: str = "digits-dit"
    """A name of `elt_zoo.families.preset_names()`, a bundled model, or a folder that `elt_zoo.save` wrote."""
    loops: int | None = None
    """Default the model's L_max."""
    batch: int = 1
    """Examples at a time."""
    steps: int | None = None
    """Sampling steps; default the family's."""
    guidance: bool = False
    """Whether a sample also runs the unconditional branch."""
    precision: Literal["float32", "bfloat16"] = "float32"
    attention: AttentionKernel = AttentionKernel.AUTO
    """The kernel of self-attention; by default what suits this device, the precision and the sizes."""
    remat: Remat | None = None
    """What the backward pass computes again; all kinds are shown, and this one is named."""

    def __post_init__(self):
        for name in ("loops", "batch", "steps"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"`--{name} {value}` must be at least 1.")


def profile(options: ProfileOptions) -> None:
    """`elt-zoo profile`."""
    config = load(options.preset).config if Path(options.preset).is_dir() else preset(options.preset)
    if options.remat is not None:
        config = dataclasses.replace(config, remat=options.remat)
    costs = count_costs(
        config,
        loops=options.loops,
        batch=options.batch,
        steps=options.steps or config.sampler_settings().steps,
        guidance=options.guidance,
        dtype=options.precision,
        attention=options.attention,
    )
    print(costs)
    print(f"training activations with remat {config.remat}: {costs.training_activation_bytes() / 2**20:,.1f} MiB")
