import dataclasses
import typing
from collections.abc import Mapping
from enum import Enum
from typing import Any, TypeVar

from beartype.door import TypeHint

from ._config import ModelConfig, SamplerSettings
from ._diffusion import DiTConfig
from ._masked import MaskGITConfig

_Dataclass = TypeVar("_Dataclass")


def config_from_dict(values: Mapping[str, Any], *, family: type[ModelConfig] | None = None) -> ModelConfig:
    """The inverse of `ModelConfig.to_dict`.

    **Arguments:** `values`: read from JSON; `family`: the class of your own family, if it is one.

    **Raises:** `ValueError` for an unknown family, for fields that are unknown, missing or of another type, all of them
    at once, and for values outside their range.
    """
    known = {config.family: config for config in (MaskGITConfig, DiTConfig, *([] if family is None else [family]))}
    fields = dict(values)
    name = fields.pop("family", None)
    if not isinstance(name, str) or name not in known:
        raise ValueError(
            f"The model is of the family {name!r}; known are {', '.join(map(repr, known))}. If it is one of your own, "
            "pass its config class as `family=`."
        )
    return from_fields(known[name], fields)


def settings_from_dict(values: Mapping[str, Any], config: ModelConfig) -> SamplerSettings:
    """The sampler settings of a family, from what JSON holds of them.

    **Raises:** `ValueError` for fields that are unknown, missing or of another type, and for values out of range.
    """
    return from_fields(type(config.sampler_settings()), values)


def from_fields(kind: type[_Dataclass], values: Mapping[str, Any]) -> _Dataclass:
    """A frozen dataclass from a mapping as JSON holds it: lists become tuples, strings enums where a field is one."""
    hints = typing.get_type_hints(kind)
    known = {field.name: field for field in dataclasses.fields(kind)}  # pyright: ignore[reportArgumentType]
    problems = [f"unknown: {name}" for name in sorted(set(values) - set(known))]
    decoded: dict[str, Any] = {}
    for name, field in known.items():
        if name not in values:
            required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
            problems += [f"missing: {name}"] * required
            continue
        try:
            decoded[name] = _decoded(values[name], hints[name])
        except ValueError:
            problems.append(f"different: {name} is {values[name]!r}, expected {_said(hints[name])}")
    if problems:
        raise ValueError(f"This is not a `{kind.__name__}` of this version of elt_zoo:\n  " + "\n  ".join(problems))
    return kind(**decoded)


def _decoded(value: Any, hint: Any) -> Any:
    """A value of JSON's types as a field of type `hint` holds it. **Raises:** `ValueError` if it cannot be one."""
    for option in typing.get_args(hint) or (hint,):
        if isinstance(option, type) and issubclass(option, Enum):
            return option(value)
    if isinstance(value, list):
        value = tuple(value)
    # JSON writes a whole float without its point, and bool is an int to Python.
    fits = TypeHint(hint).is_bearable
    if isinstance(value, int) and not isinstance(value, bool) and not fits(value):
        value = float(value)
    parts = value if isinstance(value, tuple) else (value,)
    if not fits(value) or (hint is not bool and any(isinstance(part, bool) for part in parts)):
        raise ValueError(value)
    return value


def _said(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) else str(hint)
