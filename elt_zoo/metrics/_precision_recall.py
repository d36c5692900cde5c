import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

Rows = Float[Array, "rows features"]


class PrecisionRecall(NamedTuple):
    """Two shares between 0 and 1."""

    precision: float
    """Share of samples that lie within the real set: quality."""
    recall: float
    """Share of real examples that lie within the set of samples: variety."""


def precision_recall(
    reference: Float[np.ndarray, "examples features"],
    samples: Float[np.ndarray, "others features"],
    *,
    neighbours: int = 3,
    chunk: int = 2048,
) -> PrecisionRecall:
    """Improved precision and recall ([1904.06991](https://arxiv.org/abs/1904.06991)). A set covers a ball around
    each of its members, whose radius is the distance to the member's k-th nearest neighbour.

    ADM compares 10,000 reference images with 50,000 samples, in the pooled features of Inception. It computes distances
    in float16, which changes the third digit. Here they are float32, after the reference's mean is subtracted.

    **Arguments:**

    - `reference`, `samples`: features of one extractor.
    - `neighbours`: k, not counting the member itself.
    - `chunk`: vectors at a time; memory grows with its square and not with the sizes of the sets.

    **Raises:** `ValueError` for features that are not finite or of different lengths, or too few for k neighbours.
    """
    for name, features in (("reference", reference), ("samples", samples)):
        if not 1 <= neighbours < len(features):
            raise ValueError(
                f"`precision_recall(neighbours={neighbours})` needs at least one neighbour and more than that many "
                f"vectors; `{name}` has {len(features)}."
            )
        if not np.isfinite(features).all():
            raise ValueError(f"`precision_recall`: features of `{name}` are not finite; check where they come from.")
    if reference.shape[1] != samples.shape[1]:
        raise ValueError(
            f"`precision_recall` got features of lengths {reference.shape[1]} and {samples.shape[1]}: use one "
            "extractor."
        )
    centre = reference.mean(axis=0, dtype=np.float64)
    real, fake = (np.asarray(features - centre, np.float32) for features in (reference, samples))
    # Products of bfloat16 or TF32, the default of accelerators, are too coarse for differences of distances.
    with jax.default_matmul_precision("highest"):
        return PrecisionRecall(
            precision=float(_covered(fake, real, _radii(real, neighbours, chunk), chunk).mean()),
            recall=float(_covered(real, fake, _radii(fake, neighbours, chunk), chunk).mean()),
        )


def _radii(features: Float[np.ndarray, "n d"], neighbours: int, chunk: int) -> Float[np.ndarray, " n"]:
    """Squared distance of each member to its k-th nearest neighbour."""
    parts, starts = _parts(features, chunk)
    radii = []
    for rows, row in zip(parts, starts, strict=True):
        best = jnp.full((chunk, neighbours + 1), jnp.inf)
        for columns, column in zip(parts, starts, strict=True):
            best = _nearest(best, rows, columns, row, column, len(features), neighbours)
        radii.append(np.asarray(best[:, -1]))
    return np.concatenate(radii)[: len(features)]


def _covered(
    points: Float[np.ndarray, "n d"], centres: Float[np.ndarray, "m d"], radii: Float[np.ndarray, " m"], chunk: int
) -> Bool[np.ndarray, " n"]:
    """Which points lie in a ball."""
    balls = _parts(centres, chunk)[0]
    # Distances are at least 0, so nothing lies in the balls that fill up the last part.
    widths = np.pad(radii, (0, -len(radii) % chunk), constant_values=-1.0).reshape(-1, chunk)
    covered = []
    for rows in _parts(points, chunk)[0]:
        inside = jnp.zeros(chunk, bool)
        for columns, width in zip(balls, widths, strict=True):
            inside = _inside(inside, rows, columns, jnp.asarray(width))
        covered.append(np.asarray(inside))
    return np.concatenate(covered)[: len(points)]


def _parts(features: Float[np.ndarray, "n d"], chunk: int) -> tuple[list[Rows], list[Array]]:
    """Parts of one size, the last filled up with zeros, and where they start."""
    padded = np.pad(features, ((0, -len(features) % chunk), (0, 0)))
    starts = range(0, len(padded), chunk)
    return [jnp.asarray(padded[start : start + chunk]) for start in starts], [jnp.asarray(start) for start in starts]


@functools.partial(jax.jit, static_argnums=6)
def _nearest(best, rows, columns, row, column, count, neighbours):
    """The smallest distances so far, with those to further columns."""
    at_row, at_column = (start + jnp.arange(len(part)) for start, part in ((row, rows), (column, columns)))
    distances = _squared_distances(rows, columns)
    distances = jnp.where(at_row[:, None] == at_column[None, :], 0.0, distances)
    distances = jnp.where(at_column[None, :] < count, distances, jnp.inf)
    return -jax.lax.top_k(-jnp.concatenate([best, distances], axis=1), neighbours + 1)[0]


@jax.jit
def _inside(inside, rows, columns, radii):
    return inside | jnp.any(_squared_distances(rows, columns) <= radii[None, :], axis=1)


def _squared_distances(a: Rows, b: Float[Array, "columns features"]) -> Float[Array, "rows columns"]:
    squares = jnp.sum(a * a, axis=1)[:, None] + jnp.sum(b * b, axis=1)[None, :]
    return jnp.maximum(squares - 2.0 * a @ b.T, 0.0)
