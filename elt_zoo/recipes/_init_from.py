import equinox as eqx
import jax
from jaxtyping import Array

from ..models import ElasticModel
from ..storage import named_arrays

_CLASS_TABLE = "label_embedding"


def init_from(fresh: ElasticModel, source: ElasticModel, *, new_classes: bool = False) -> ElasticModel:
    """A fresh model with the parameters of another, to start training from.

    **Arguments:**

    - `fresh`: the model of the new run.
    - `source`: where the parameters come from, of the same sizes.
    - `new_classes`: if the classes differ, keep the fresh class table and take only the row of the null class, its
      last, from the source.

    **Raises:** `ValueError` with everything that is missing, unused or of another shape.
    """
    mine, theirs = named_arrays(fresh), named_arrays(source)
    problems = [f"missing: {name} {mine[name].shape}" for name in sorted(mine.keys() - theirs.keys())]
    problems += [f"unused: {name} {theirs[name].shape}" for name in sorted(theirs.keys() - mine.keys())]
    other_classes = False
    for name in sorted(mine.keys() & theirs.keys()):
        if mine[name].shape != theirs[name].shape:
            table = _CLASS_TABLE in name.split(".") and mine[name].shape[1:] == theirs[name].shape[1:]
            other_classes |= table
            if not (table and new_classes):
                problems.append(f"different: {name} is {theirs[name].shape}, expected {mine[name].shape}")
    if problems:
        hint = " Pass `--new-classes` to start the class table afresh." if other_classes and not new_classes else ""
        raise ValueError(f"The model to start from does not fit.{hint} It differs in:\n  " + "\n  ".join(problems))

    def take(leaf: Array, value: Array) -> Array:
        # Of another class table only the null class is the same.
        return value.astype(leaf.dtype) if value.shape == leaf.shape else leaf.at[-1].set(value[-1].astype(leaf.dtype))

    leaves, structure = jax.tree.flatten(fresh)
    names = iter(mine)
    filled = [take(leaf, theirs[next(names)]) if eqx.is_array(leaf) else leaf for leaf in leaves]
    return jax.tree.unflatten(structure, filled)
