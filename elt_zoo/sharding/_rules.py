import math
import re
from collections.abc import Sequence
from typing import NamedTuple

from jax.sharding import PartitionSpec

SMALL = 1024
"""Arrays of fewer numbers are held whole by every device: to fetch one takes as long as to fetch a larger one."""
# Axis 0 of these counts the layers of a trunk, and each of them is used by itself.
_STACKED = re.compile(r"\.(layers|prelude|coda)\.")


class Rule(NamedTuple):
    """Which axis of a kind of parameter is split over "fsdp".

    **Fields:** `kind`: in words; `path`: a regular expression that is searched in the parameter's path, such as
    `.trunk.layers.mlp.up.weight`; `axes`: to try in this order, counted from the last, which is −1.
    """

    kind: str
    path: str
    axes: tuple[int, ...]


RULES: tuple[Rule, ...] = (
    Rule("maps to a hidden axis (out, in): by the hidden axis", r"\.(qkv|up|modulation|hidden)\.weight$", (-2, -1)),
    Rule("maps back from it (out, in): by the hidden axis", r"\.(out|down)\.weight$", (-1, -2)),
    Rule("tables of embeddings and positions (rows, width): by the width", r"embedding(\.weight)?$", (-1,)),
)
"""The first rule that fits a parameter decides. What no rule names, such as your own layers, or what a rule's axes
do not divide, is split along the longest axis that "fsdp" divides; the axis that counts a trunk's layers is never
split, and arrays below 1,024 numbers are not split at all."""


def spec_of(path: str, shape: Sequence[int], fsdp: int, rules: Sequence[Rule] = RULES) -> PartitionSpec:
    """How a parameter, or the average or the moment of one, is split.

    **Arguments:** `path`: of the array in its tree, as `jax.tree_util.keystr` writes it; `shape`: of the array; `fsdp`:
    devices along "fsdp"; `rules`: see [`RULES`][elt_zoo.sharding.RULES].

    **Returns:** the spec with "fsdp" at one axis, or at none.
    """
    axes = range(1 if _STACKED.search(path) else 0, len(shape))
    if fsdp == 1 or math.prod(shape) < SMALL:
        return PartitionSpec()
    rule = next((rule for rule in rules if re.search(rule.path, path)), None)
    named = () if rule is None else [len(shape) + axis for axis in rule.axes]
    for axis in [*named, *sorted(axes, key=lambda axis: -shape[axis])]:
        if axis in axes and shape[axis] % fsdp == 0:
            return PartitionSpec(*(None,) * axis, "fsdp")
    return PartitionSpec()
