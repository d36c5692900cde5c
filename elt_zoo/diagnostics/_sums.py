"""Measurements of batches that add up."""

from collections.abc import Sequence
from typing import TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp

_Sums = TypeVar("_Sums", bound="AbstractSums")


class AbstractSums(eqx.Module):
    """Sums over examples, whose ratios are rates. `a + b` belongs to the two batches together.

    They are kept as sums because the mean of two batches' rates is not the rate of both batches.
    """

    def __add__(self: _Sums, other: _Sums) -> _Sums:
        return jax.tree.map(jnp.add, self, other)


def total(sums: _Sums) -> _Sums:
    """The sum over a leading axis of every leaf."""
    return jax.tree.map(lambda leaf: jnp.sum(leaf, axis=0), sums)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Right-aligned columns."""
    lines = [header, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)
