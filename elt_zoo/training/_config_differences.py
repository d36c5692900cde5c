from collections.abc import Mapping
from typing import Any


def config_differences(saved: Mapping[str, Any], given: Mapping[str, Any]) -> list[str]:
    """One line for each field in which two configs differ. Nested fields have dotted names."""
    saved, given = _flatten(saved), _flatten(given)
    return [
        f"{name}: saved {saved.get(name, '(missing)')!r}, given {given.get(name, '(missing)')!r}"
        for name in sorted(saved.keys() | given.keys())
        if name not in saved or name not in given or saved[name] != given[name]
    ]


def _flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for name, value in config.items():
        flat |= _flatten(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return flat
