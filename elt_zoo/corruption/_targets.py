from typing import NamedTuple

from jaxtyping import Array, Bool, Float, Int


class MaskedTarget(NamedTuple):
    """What masked generation is trained to predict: the true ids, and the positions that were masked."""

    ids: Int[Array, "*grid"]
    mask: Bool[Array, "*grid"]


class DiffusionTarget(NamedTuple):
    """What diffusion is trained to predict: the value (x0, v or ε), and where on the noise schedule the input lies."""

    value: Float[Array, "*shape"]
    log_snr: Float[Array, ""]
    log_snr_rate: Float[Array, ""]
    """−d log_snr / dt > 0."""
