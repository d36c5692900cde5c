from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import PyTree

from ._tensor_file import TensorFile, WeightsError, aligned_empty, bytes_of
from ._tensor_map import Placement

_Tree = TypeVar("_Tree")
Shardings = jax.sharding.Sharding | Callable[[str, tuple[int, ...]], jax.sharding.Sharding]


def assemble(
    abstract: _Tree,
    rows: Sequence[Placement],
    file: TensorFile,
    *,
    dtype: DTypeLike | None = None,
    sharding: Shardings | None = None,
) -> _Tree:
    """Fills an abstract tree from a file, by a table of names, or refuses the file as a whole.

    **Arguments:**

    - `abstract`: the tree with `jax.ShapeDtypeStruct` leaves, from `equinox.filter_eval_shape`.
    - `rows`: where every tensor goes. Together their regions fill each leaf once.
    - `file`: the tensors.
    - `dtype`: of all floating-point leaves; default that of the abstract tree.
    - `sharding`: where the leaves go, for all of them or as a function of a leaf's name and shape.

    **Returns:** the tree with arrays.

    **Raises:** [`WeightsError`][elt_zoo.storage.WeightsError] with all that is missing, unused, of another shape
    or of another type; floating-point numbers may be narrower than the leaf's.
    """
    paths, structure = jax.tree.flatten_with_path(abstract)
    names = [path_name(path) for path, _ in paths]
    leaves = dict(zip(names, (leaf for _, leaf in paths), strict=True))
    check_fit(leaves, rows, file)
    rows_of: dict[str, list[Placement]] = {}
    for row in rows:
        rows_of.setdefault(row.target, []).append(row)

    def filled(name: str, leaf: Any) -> Any:
        if not hasattr(leaf, "dtype"):
            return leaf
        floating = jnp.issubdtype(leaf.dtype, jnp.floating)
        array = aligned_empty(leaf.shape, np.dtype(dtype if dtype is not None and floating else leaf.dtype))
        for row in rows_of[name]:
            _fill(array[row.region] if row.region else array, row, file)
        to = sharding(name, leaf.shape) if callable(sharding) else sharding
        # On a CPU the array keeps the memory that the file was read into; nothing else holds on to it.
        return jax.device_put(array, to, may_alias=True)

    return jax.tree.unflatten(structure, [filled(name, leaf) for name, leaf in leaves.items()])


def check_fit(leaves: dict[str, Any], rows: Sequence[Placement], file: TensorFile) -> None:
    """Raises an error with everything in which a file differs from what a table of names expects."""
    problems = []
    for row in rows:
        expected = row.source_shape(_region_shape(leaves[row.target].shape, row.region))
        place = "" if row.source == row.target else f" (for {_place(row)})"
        if row.source not in file:
            problems.append(f"missing: {row.source} {expected}{place}")
            continue
        stored = file.stored(row.source)
        want = np.dtype(leaves[row.target].dtype)
        # Files in half precision are common, and widening them loses nothing.
        widens = all(jnp.issubdtype(t, jnp.floating) for t in (want, stored.dtype)) and stored.dtype.itemsize <= 4
        if stored.shape != expected:
            hint = ", perhaps transposed" if sorted(stored.shape) == sorted(expected) else ""
            problems.append(f"different: {row.source} is of shape {stored.shape}, expected {expected}{place}{hint}")
        elif not widens and stored.dtype != want:
            problems.append(f"different: {row.source} is of type {stored.dtype}, expected {want}{place}")
    sources = {row.source for row in rows}
    problems += [f"unused: {name} {file.stored(name).shape}" for name in file if name not in sources]
    if problems:
        raise WeightsError(f"{file.path} does not hold the tensors of this network:\n  " + "\n  ".join(problems))


def _fill(region: np.ndarray, row: Placement, file: TensorFile) -> None:
    stored = file.stored(row.source)
    if not row.layout and stored.dtype == region.dtype and region.flags.c_contiguous and region.flags.aligned:
        # Straight into its place: no second copy of a large file in memory.
        stored.fill(bytes_of(region))
    else:
        region[...] = row.arranged(stored.read()).astype(region.dtype, copy=False)


def _region_shape(shape: tuple[int, ...], region: tuple[int | slice, ...]) -> tuple[int, ...]:
    # No memory behind it: only its shape is wanted.
    return np.broadcast_to(np.zeros((), np.int8), shape)[region].shape


def _place(row: Placement) -> str:
    if not row.region:
        return row.target
    parts = [str(i) if isinstance(i, int) else f"{i.start or 0}:{'' if i.stop is None else i.stop}" for i in row.region]
    return f"{row.target}[{', '.join(parts)}]"


def path_name(path: tuple[Any, ...]) -> str:
    """A leaf's attribute path, such as `trunk.layers.mlp.up.weight`."""
    return ".".join(str(getattr(entry, "name", getattr(entry, "idx", getattr(entry, "key", entry)))) for entry in path)


def named_arrays(tree: PyTree) -> dict[str, Any]:
    """The arrays of a tree, abstract or not, by attribute path."""
    leaves, _ = jax.tree.flatten_with_path(tree)
    return {path_name(path): leaf for path, leaf in leaves if hasattr(leaf, "dtype")}


def own_names(tree: PyTree) -> list[Placement]:
    """The table of our own files: names are attribute paths."""
    return [Placement(name, name) for name in named_arrays(tree)]
