from collections.abc import Mapping
from typing import Any

from ..storage import from_json
from ._config import ModelConfig, SamplerSettings
from ._diffusion import DiTConfig
from ._masked import MaskGITConfig

# Fields that configs had once, and what leaves a model as it is without them.
_GONE = {"num_loop_deltas": 0, "loop_embedding": False}


def config_from_dict(values: Mapping[str, Any], *, family: type[ModelConfig] | None = None) -> ModelConfig:
    """The inverse of `ModelConfig.to_dict`.

    **Arguments:** `values`: read from JSON; `family`: the class of your own family, if it is one.

    Options that were tried and removed again (`num_loop_deltas`, `loop_embedding`) may stand in the file where they are
    off.

    **Raises:** `ValueError` for an unknown family, for fields that are unknown, missing or of another type, all of them
    at once, and for values outside their range.
    """
    known = {config.family: config for config in (MaskGITConfig, DiTConfig, *([] if family is None else [family]))}
    fields = {key: value for key, value in values.items() if key not in _GONE or value != _GONE[key]}
    name = fields.pop("family", None)
    if not isinstance(name, str) or name not in known:
        raise ValueError(
            f"The model is of the family {name!r}; known are {', '.join(map(repr, known))}. If it is one of your own, "
            "pass its config class as `family=`."
        )
    return from_json(known[name], fields)


def settings_from_dict(values: Mapping[str, Any], config: ModelConfig) -> SamplerSettings:
    """The sampler settings of a family, from what JSON holds of them.

    **Raises:** `ValueError` for fields that are unknown, missing or of another type, and for values out of range.
    """
    return from_json(type(config.sampler_settings()), values)
