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
    allow_nonfinite: bool = False,
) -> _Tree:
    """Fills an abstract tree from a file, by a table of names, or refuses the file as a whole.

    **Arguments:**

    - `abstract`: the tree with `jax.ShapeDtypeStruct` leaves, from `equinox.filter_eval_shape`; arrays do as well, and
      only their shapes and types count. What is no array stays as it is.
    - `rows`: where every tensor goes. Together their regions fill each leaf once.
    - `file`: the tensors.
    - `dtype`: of all floating-point leaves; default that of the abstract tree.
    - `sharding`: where the leaves go, for all of them or as a function of a leaf's name and shape.
    - `allow_nonfinite`: whether NaN and infinite numbers may pass, to look at a run that diverged.

    **Returns:** the tree with arrays.

    **Raises:** [`WeightsError`][elt_zoo.storage.WeightsError] with all that is missing, unused, of another shape
    or of another type (floating-point numbers may be narrower than the leaf's), with all leaves that hold NaN or
    infinite numbers, or if a tensor's bytes are damaged; `ValueError` if `dtype` is no floating-point type.
    """
    if dtype is not None and not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(
            f"`dtype={jnp.dtype(dtype).name}`: weights are read as floating-point numbers, such as bfloat16 or float32."
        )
    paths, structure = jax.tree.flatten_with_path(abstract)
    names = [path_name(path) for path, _ in paths]
    leaves = dict(zip(names, (leaf for _, leaf in paths), strict=True))
    check_fit(leaves, rows, file)
    rows_of: dict[str, list[Placement]] = {}
    for row in rows:
        rows_of.setdefault(row.target, []).append(row)

    nonfinite: list[str] = []

    def filled(name: str, leaf: Any) -> Any:
        if not hasattr(leaf, "dtype"):
            return leaf
        floating = jnp.issubdtype(leaf.dtype, jnp.floating)
        array = aligned_empty(leaf.shape, np.dtype(dtype if dtype is not None and floating else leaf.dtype))
        for row in rows_of[name]:
            _fill(array[row.region] if row.region else array, row, file)
        if floating and not allow_nonfinite and not _all_finite(array):
            nonfinite.append(name)
        to = sharding(name, leaf.shape) if callable(sharding) else sharding
        # On a CPU the array keeps the memory that the file was read into; nothing else holds on to it.
        return jax.device_put(array, to, may_alias=True)

    tree = jax.tree.unflatten(structure, [filled(name, leaf) for name, leaf in leaves.items()])
    if nonfinite:
        given = "" if dtype is None else f" as {jnp.dtype(dtype).name}"
        raise WeightsError(
            f"{file.path} holds NaN or infinite numbers{given} in {len(nonfinite)} of {len(leaves)} leaves: "
            f"{', '.join(nonfinite[:5])}{', …' if len(nonfinite) > 5 else ''}. Did the training diverge? "
            "`storage.assemble(allow_nonfinite=True)` reads it all the same."
        )
    return tree


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
        with np.errstate(over="ignore"):  # Infinite numbers are found afterwards.
            region[...] = row.arranged(stored.read()).astype(region.dtype, copy=False)


# The exponent of numbers that are not finite, by the name of their type.
_EXPONENTS = {"float16": 0x7C00, "bfloat16": 0x7F80, "float32": 0x7F80_0000, "float64": 0x7FF0_0000_0000_0000}


def _all_finite(array: np.ndarray) -> bool:
    if array.dtype.name not in _EXPONENTS:
        return bool(np.isfinite(array.astype(np.float32)).all())
    # Whole numbers compare faster, in pieces that stay in the processor's cache.
    bits = array.reshape(-1).view(f"u{array.dtype.itemsize}")
    exponent = bits.dtype.type(_EXPONENTS[array.dtype.name])
    pieces = (bits[start : start + (1 << 16)] for start in range(0, len(bits), 1 << 16))
    return not any((piece & exponent == exponent).any() for piece in pieces)


def _region_shape(shape: tuple[int, ...], region: tuple[int | slice, ...]) -> tuple[int, ...]:
    if not region:
        return shape
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
    """The arrays of a tree, abstract or not, by attribute path.

    **Raises:** `ValueError` if two have the same, as `{"a.b": x, "a": {"b": y}}`.
    """
    leaves, _ = jax.tree.flatten_with_path(tree)
    named: dict[str, Any] = {}
    for path, leaf in leaves:
        if hasattr(leaf, "dtype"):
            if (name := path_name(path)) in named:
                raise ValueError(f"two arrays of this {type(tree).__name__} have the name {name!r}. Rename a field.")
            named[name] = leaf
    return named


def own_names(tree: PyTree) -> list[Placement]:
    """The table of our own files: names are attribute paths."""
    return [Placement(name, name) for name in named_arrays(tree)]
