from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from ..corruption import AbstractCorruption, Corrupted
from ..objectives import AbstractObjective, Exits
from ._ema import update_ema
from ._precision import Precision
from ._state import TrainState

Metrics = dict[str, Float[Array, ""]]
TrainStep = Callable[[TrainState, Any], tuple[TrainState, Metrics]]


def predict_exits(
    model: Any,
    inputs: tuple[PyTree[Array], ...],
    exits: Exits,
    *,
    student_loops: Int[Array, ""],
    max_loops: int,
    key: PRNGKeyArray | None = None,
) -> tuple[PyTree[Array], ...]:
    """The predictions that an objective asks for, for one example, from one forward pass.

    **Arguments:** `model`: an [`ElasticModel`][elt_zoo.ElasticModel] or anything with its methods; `inputs`: of one
    example; `exits`: what is asked for; `student_loops`: the sampled exit; `max_loops`: L_max; `key`: turns dropout on.
    """
    match exits:
        case Exits.FINAL:
            return (model(*inputs, loops=max_loops, key=key),)
        case Exits.SAMPLED:
            return (model.at_exit(*inputs, loops=student_loops, max_loops=max_loops, key=key),)
        case Exits.STUDENT_AND_TEACHER:
            return model.student_and_teacher(*inputs, student_loops=student_loops, max_loops=max_loops, key=key)
        case Exits.ALL:
            return (model.trajectory(*inputs, loops=max_loops, key=key),)


def batch_loss(
    model: Any,
    corrupted: Corrupted,
    objective: AbstractObjective,
    *,
    student_loops: Int[Array, "..."],
    progress: Float[Array, ""],
    keys: PRNGKeyArray | None = None,
) -> tuple[Float[Array, ""], Metrics]:
    """The objective over a batch: the sum of the examples' losses over the sum of their weights, and every term alike.

    **Arguments:** `corrupted`: the batch; `student_loops`: one count, or one per example; `progress`: share of training
    done; `keys`: one per example turns dropout on.
    """

    def one(inputs, target, loops, key):
        predictions = predict_exits(
            model, inputs, objective.exits, student_loops=loops, max_loops=objective.max_loops, key=key
        )
        return objective(*predictions, target=target, progress=progress)

    # An exit that all examples share stays unbatched: selecting it then costs one comparison.
    axes = (0, 0, 0 if student_loops.ndim else None, None if keys is None else 0)
    losses, terms = jax.vmap(one, in_axes=axes)(corrupted.inputs, corrupted.target, student_loops, keys)
    total = jnp.sum(corrupted.weight)
    weight = terms.pop("lambda", None)
    metrics = {name: jnp.sum(term) / total for name, term in terms.items()}
    if weight is not None:
        metrics["lambda"] = jnp.mean(weight)
    return jnp.sum(losses) / total, metrics


def make_train_step(
    optimizer: optax.GradientTransformation,
    objective: AbstractObjective,
    corruption: AbstractCorruption,
    *,
    total_steps: int,
    ema_decay: float = 0.9999,
    precision: Precision | None = None,
    dropout: bool = False,
    prepare: Callable[[Any, PRNGKeyArray], Any] | None = None,
) -> TrainStep:
    """The training step as a pure function of state and batch; wrap it in [`jit_step`][elt_zoo.training.jit_step].

    Every random number of step t comes from the state's key folded with t, so a resumed run repeats nothing and misses
    nothing. An update that is not finite is not applied, and counted in `state.skipped`.

    **Arguments:**

    - `optimizer`: an optax transformation.
    - `objective`: which exits to train, and how.
    - `corruption`: clean batch → inputs and target.
    - `total_steps`: steps of the run, for the objective's progress.
    - `ema_decay`: of the average of the parameters.
    - `precision`: compute dtype; default float32.
    - `dropout`: whether the model has dropout to turn on.
    - `prepare`: `(batch, key) -> batch`, what is left to do on the device, such as turning bytes into pixels
      ([`to_pixels`][elt_zoo.data.to_pixels]) or drawing latents ([`sample_latents`][elt_zoo.data.sample_latents]).

    **Returns:** `train_step(state, batch) -> (state, metrics)`, `batch` after `prepare` with fields `examples` and
    `labels`. Metrics are float32 scalars: `loss`, the objective's terms and `gradient_norm`.
    """
    precision = Precision() if precision is None else precision

    def train_step(state: TrainState, batch: Any) -> tuple[TrainState, Metrics]:
        keys = jax.random.split(jax.random.fold_in(state.key, state.step), 4)
        corrupt_key, loops_key, dropout_key, prepare_key = keys
        if prepare is not None:
            batch = prepare(batch, prepare_key)
        size = batch.labels.shape[0]
        corrupted = corruption(batch.examples, batch.labels, key=corrupt_key)
        student_loops = objective.sample_loops(loops_key, size)
        dropout_keys = jax.random.split(dropout_key, size) if dropout else None
        progress = state.step.astype(jnp.float32) / total_steps

        def loss_of(model):
            compute = corrupted._replace(inputs=precision.cast(corrupted.inputs))
            return batch_loss(
                precision.cast(model),
                compute,
                objective,
                student_loops=student_loops,
                progress=progress,
                keys=dropout_keys,
            )

        (loss, metrics), gradient = eqx.filter_value_and_grad(loss_of, has_aux=True)(state.model)
        norm = optax.tree.norm(gradient)
        finite = jnp.isfinite(loss) & jnp.isfinite(norm)
        # Optax's counters rely on implicit promotion, which a caller may have made strict.
        with jax.numpy_dtype_promotion("standard"):
            updates, optimizer_state = optimizer.update(
                gradient, state.optimizer_state, eqx.filter(state.model, eqx.is_inexact_array)
            )
        model = eqx.apply_updates(state.model, updates)
        new = (model, update_ema(state.ema, model, state.step, ema_decay), optimizer_state)
        model, ema, optimizer_state = jax.tree.map(
            lambda fresh, old: jnp.where(finite, fresh, old) if eqx.is_array(fresh) else fresh,
            new,
            (state.model, state.ema, state.optimizer_state),
        )
        skipped = state.skipped + jnp.where(finite, 0, 1)
        state = TrainState(model, ema, optimizer_state, state.step + 1, skipped, state.key)
        return state, {"loss": loss, **metrics, "gradient_norm": norm}

    return train_step


def jit_step(train_step: TrainStep) -> TrainStep:
    """Compiles a step and, but on CPUs, donates the state's buffers to it: the state passed in must not be used again.
    The batch may be.
    """

    # Batches are often NumPy arrays, whose memory is not ours to give away. On CPUs (jaxlib 0.10.2) two runs with
    # donated states were seen to differ on a busy machine, and none without; memory is no concern there.
    @eqx.filter_jit(donate="none" if jax.default_backend() == "cpu" else "all-except-first")
    def swapped(batch: Any, state: TrainState) -> tuple[TrainState, Metrics]:
        return train_step(state, batch)

    return lambda state, batch: swapped(batch, state)
