import dataclasses
import enum
import math
from collections.abc import Callable
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from ._rules import RULES, Rule, spec_of

Tree = TypeVar("Tree")


class Gather(enum.StrEnum):
    """When split parameters are put together.

    | kind | each parameter is gathered | a device holds besides its part |
    |---|---|---|
    | `STEP` | once in a step, whatever the number of loops | all parameters and their gradient, for the step |
    | `LOOP` | a looped layer in every loop, forwards and backwards; all others once | the layer at work |

    Only looped models have this choice: the L loops share their layers, so that one gather serves L uses.
    """

    STEP = "step"
    LOOP = "loop"


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a training state lies on a mesh: parameters, average and moments by one table of rules.

    **Fields:** `mesh`: with an axis "fsdp", see [`make_mesh`][elt_zoo.sharding.make_mesh]; `gather`: when parameters
    are put together; `rules`: which axis is split.
    """

    mesh: Mesh
    gather: Gather = Gather.STEP
    rules: tuple[Rule, ...] = RULES

    @property
    def fsdp(self) -> int:
        """Devices that share each parameter."""
        return dict(self.mesh.shape).get("fsdp", 1)

    def shardings(self, tree: Tree) -> Tree:
        """The sharding of every array of a tree, or of its shapes."""

        def sharding(path, leaf):
            if not hasattr(leaf, "shape"):
                return None
            spec = spec_of(jax.tree_util.keystr(path), leaf.shape, self.fsdp, self.rules)
            return NamedSharding(self.mesh, spec)

        return jax.tree.map_with_path(sharding, tree)

    def abstract(self, make: Callable[..., Tree], *inputs: Any) -> Tree:
        """What `make(*inputs)` returns, as shapes with their shardings.

        [`Checkpoints.restore`][elt_zoo.training.Checkpoints.restore] takes them.

        **Raises:** `ValueError` if there is an axis "fsdp" and no array that it can split.
        """
        shapes = eqx.filter_eval_shape(make, *inputs)
        found = self.shardings(shapes)
        if self.fsdp > 1 and not any(one.spec for one in jax.tree.leaves(found)):
            largest = max((leaf.shape for leaf in jax.tree.leaves(shapes) if hasattr(leaf, "shape")), key=math.prod)
            raise ValueError(
                f"A mesh of fsdp={self.fsdp} can split no parameter of this model: {self.fsdp} divides no axis of "
                f"those that are not small (the largest has the shape {largest}). Use another size, or fsdp=1."
            )

        def shape(leaf, sharding):
            return leaf if sharding is None else jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

        return jax.tree.map(shape, shapes, found)

    def create(self, make: Callable[..., Tree], *inputs: Any) -> Tree:
        """What `make(*inputs)` returns, computed by all devices in parts: none ever holds the whole of a split array.

        **Arguments:** `make`: a function of a state; `inputs`: what it reads, such as a model to start from.
        """
        abstract = self.abstract(make, *inputs)
        arrays, static = eqx.partition(abstract, lambda leaf: isinstance(leaf, jax.ShapeDtypeStruct))
        given, fixed = eqx.partition(inputs, eqx.is_array)

        def compute(given):
            return eqx.filter(make(*eqx.combine(given, fixed)), eqx.is_array)

        # As NumPy's arrays, the inputs lie on no device that the mesh lacks.
        given = jax.tree.map(np.asarray, given)
        return eqx.combine(jax.jit(compute, out_shardings=self.shardings(arrays))(given), static)

    def split(self, tree: Tree) -> Tree:
        """Inside a program: a tree with its arrays split as the rules say."""
        arrays, static = eqx.partition(tree, eqx.is_array)
        return eqx.combine(jax.lax.with_sharding_constraint(arrays, self.shardings(arrays)), static)

    def whole(self, tree: Tree) -> Tree:
        """Inside a program: a tree with its arrays whole on every device."""
        arrays, static = eqx.partition(tree, eqx.is_array)
        everywhere = NamedSharding(self.mesh, PartitionSpec())
        return eqx.combine(jax.lax.with_sharding_constraint(arrays, everywhere), static)


def one_copy(tree: PyTree) -> Any:
    """A copy of a tree on this process's first device, whole, whatever mesh it lies on. Every process has to ask.

    Arrays are gathered one after another: besides the copy, a device holds one array whole.
    """
    device = jax.local_devices()[0]

    def copy(leaf):
        if not eqx.is_array(leaf):
            return leaf
        if isinstance(leaf, np.ndarray) or leaf.is_fully_addressable:
            return jax.device_put(leaf, device)
        return jax.device_put(jnp.asarray(np.asarray(multihost_utils.process_allgather(leaf, tiled=True))), device)

    return jax.tree.map(copy, tree)
