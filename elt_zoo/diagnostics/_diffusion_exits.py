from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from .._checks import checked
from ..corruption import DiffusionCorruption, alpha_sigma
from ._exits import AbstractExits, ExitColumn
from ._protocols import HasExits
from ._sums import total


class DiffusionExits(AbstractExits):
    """The clean arrays x0 that a diffusion model's exits predict from the same noisy examples, and what each loop
    changes.

    From exit l to exit l + 1 the error of an example may fall, which is **self-correction**, or rise, which is
    **overthinking**.

    Entry l − 1 of an axis `loops` belongs to exit l, entry l − 1 of an axis `transitions` to the step from exit l to
    exit l + 1.

    **Fields:**

    - `num_examples`: noisy examples.
    - `total_squared_error`: sum over examples of the mean squared error of x0.
    - `total_squared_change`: sum over examples of the mean squared change of x0 from exit to exit.
    - `num_improved`, `num_worsened`: examples whose error falls, and rises.
    - `num_best`: examples whose error is least at this exit; of equal exits the first counts.
    """

    share_of: ClassVar[str] = "examples"

    num_examples: Int[Array, ""]
    total_squared_error: Float[Array, " loops"]
    total_squared_change: Float[Array, " transitions"]
    num_improved: Int[Array, " transitions"]
    num_worsened: Int[Array, " transitions"]
    num_best: Int[Array, " loops"]

    @property
    def rms_error(self) -> Float[Array, " loops"]:
        """Root mean squared error of x0, in the units of the data."""
        return jnp.sqrt(self.total_squared_error / self.num_examples.astype(jnp.float32))

    @property
    def rms_change(self) -> Float[Array, " transitions"]:
        """Root mean squared change of x0 from exit to exit, in the units of the data."""
        return jnp.sqrt(self.total_squared_change / self.num_examples.astype(jnp.float32))

    @property
    def self_correction(self) -> Float[Array, " transitions"]:
        """Share of examples whose error falls."""
        return self.num_improved / self.num_examples

    @property
    def overthinking(self) -> Float[Array, " transitions"]:
        """Share of examples whose error rises."""
        return self.num_worsened / self.num_examples

    @property
    def best(self) -> Float[Array, " loops"]:
        """Share of examples for which this exit is the best one."""
        return self.num_best / self.num_examples

    def columns(self) -> list[ExitColumn]:
        return [
            ExitColumn("rms_error", "rms error of x0", self.rms_error, ".4f"),
            ExitColumn("best_of_all", "best of all", self.best, ".1%"),
            ExitColumn("rms_change", "rms change", self.rms_change, ".4f"),
            ExitColumn("self_correction", "improved", self.self_correction, ".1%", "error falls (self-correction)"),
            ExitColumn("overthinking", "worsened", self.overthinking, ".1%", "error rises (overthinking)"),
        ]


@checked
def compare_diffusion_exits(x0: Float[Array, "loops *shape"], target: Float[Array, "*shape"]) -> DiffusionExits:
    """Compares the exits of one example, given their predictions.

    **Arguments:** `x0`: the predictions of every exit; `target`: the clean array.

    **Returns:** [`DiffusionExits`][elt_zoo.diagnostics.DiffusionExits] of this example.
    """
    axes = tuple(range(1, x0.ndim))
    error = jnp.mean(jnp.square(x0 - target[None]), axis=axes)
    return DiffusionExits(
        num_examples=jnp.asarray(1),
        total_squared_error=error,
        total_squared_change=jnp.mean(jnp.square(x0[1:] - x0[:-1]), axis=axes),
        num_improved=(error[1:] < error[:-1]).astype(jnp.int32),
        num_worsened=(error[1:] > error[:-1]).astype(jnp.int32),
        num_best=jax.nn.one_hot(jnp.argmin(error), len(error), dtype=jnp.int32),
    )


@eqx.filter_jit
@checked
def diffusion_exits(
    model: HasExits,
    corruption: DiffusionCorruption,
    examples: Float[Array, "batch *shape"],
    labels: Int[Array, " batch"],
    *,
    loops: int,
    clip_x0: float | None = None,
    key: PRNGKeyArray,
) -> DiffusionExits:
    """Adds noise to held-out examples and compares the predictions of the exits, all on the same noise. Batched.

    **Arguments:** `model`: an [`ElasticModel`][elt_zoo.ElasticModel], or any with its `trajectory`; `corruption`: as in
    training, without dropped labels; `examples`, `labels`: clean; `loops`: exits to compare, beyond L_max too;
    `clip_x0`: clips the predictions to ±`clip_x0` as the sampler does, default not. Without it noisy times dominate,
    above all for models of ε, whose error grows by σ/α; `key`: of the corruption.

    **Returns:** [`DiffusionExits`][elt_zoo.diagnostics.DiffusionExits] of the batch.
    """
    corrupted = corruption(examples, labels, key=key)

    def one(inputs, target, clean):
        alpha, sigma = alpha_sigma(target.log_snr)
        # A learned variance is the second half of the channels.
        outputs = model.trajectory(*inputs, loops=loops)[..., : clean.shape[-1]].astype(jnp.float32)
        x0 = jax.vmap(lambda output: corruption.prediction.to_x0(output, inputs[0], alpha, sigma))(outputs)
        return compare_diffusion_exits(x0 if clip_x0 is None else jnp.clip(x0, -clip_x0, clip_x0), clean)

    return total(jax.vmap(one)(corrupted.inputs, corrupted.target, examples.astype(jnp.float32)))
