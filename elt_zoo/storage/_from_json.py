import dataclasses
import enum
import math
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

_T = TypeVar("_T")
# No size of a network is larger, and arithmetic with them stays far from 64 bits.
_MAX_INT = 2**31 - 1
_MAX_TUPLE = 1000


def from_json(cls: type[_T], values: Any) -> _T:
    """A dataclass from what JSON made of it, checked in full before it is built: names, types, ranges.

    Lists become tuples and values the members of enums, as the types of the fields say; whole numbers do for floats,
    but truth values for no number. Defaults stand in for missing fields. Then the class's own checks run.

    **Arguments:** `cls`: a dataclass whose fields are numbers, texts, enums, dataclasses, tuples of them, or unions;
    `values`: a table of its fields, such as `dataclasses.asdict` gives.

    **Returns:** the instance.

    **Raises:** `ValueError` with every field that is unknown, missing or of another type, or what the class raises.
    """
    if not isinstance(values, Mapping):
        raise ValueError(f"a `{cls.__name__}` is described by a table of its fields, not by {_short(values)}.")
    fields = {field.name: field for field in dataclasses.fields(typing.cast(Any, cls)) if field.init}
    hints = typing.get_type_hints(cls)
    missing = dataclasses.MISSING
    problems = [f"unknown: {_short(name)}" for name in values if name not in fields]
    problems += [
        f"missing: {name}"
        for name, field in fields.items()
        if field.default is missing and field.default_factory is missing and name not in values
    ]
    converted = {}
    for name in fields.keys() & values.keys():
        try:
            converted[name] = _converted(values[name], hints[name])
        except _Mismatch:
            problems.append(f"wrong: {name} is {_short(values[name])}, expected {_named(hints[name])}")
        except ValueError as error:
            problems.append(f"wrong: {name}: {error}")
    if problems:
        raise ValueError(
            f"This is not a complete `{cls.__name__}`: {'; '.join(sorted(problems))}. "
            "Was it written by another version of elt_zoo?"
        )
    return cls(**converted)


class _Mismatch(Exception):
    """A value of another type than its field's."""


def _converted(value: Any, hint: Any) -> Any:
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        for member in typing.get_args(hint):
            try:
                return _converted(value, member)
            except _Mismatch:
                continue
        raise _Mismatch
    if origin is tuple and isinstance(value, list | tuple) and len(value) <= _MAX_TUPLE:
        members = typing.get_args(hint)
        members = (members[0],) * len(value) if members[1:] == (...,) else members
        if len(members) != len(value):
            raise _Mismatch
        return tuple(_converted(each, member) for each, member in zip(value, members, strict=True))
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        try:
            return hint(value)
        except ValueError:
            raise _Mismatch from None
    if dataclasses.is_dataclass(hint) and isinstance(value, Mapping):
        return from_json(typing.cast(type, hint), value)
    if hint is int and type(value) is int and abs(value) <= _MAX_INT:
        return value
    if hint is float and isinstance(value, int | float) and type(value) is not bool and math.isfinite(value):
        return float(value)
    if hint in (bool, str) and type(value) is hint:
        return value
    if hint in (None, type(None)) and value is None:
        return None
    if hint is Any:
        return value
    raise _Mismatch


def _named(hint: Any) -> str:
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return "one of " + ", ".join(repr(member.value) for member in hint)
    return hint.__name__ if isinstance(hint, type) and typing.get_origin(hint) is None else str(hint)


def _short(value: Any) -> str:
    # The text of a large or deep value is never built.
    if isinstance(value, str):
        return repr(value[:80])
    return (
        f"a {type(value).__name__}" if isinstance(value, list | dict | tuple) and len(value) > 8 else repr(value)[:80]
    )
