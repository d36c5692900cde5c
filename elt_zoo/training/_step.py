import threading
from collections.abc import Callable
from typing import Any, Protocol, cast, runtime_checkable

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from ..corruption import AbstractCorruption, Corrupted
from ..nn import AttentionDevice, AttentionKernel, with_attention
from ..objectives import AbstractObjective, Exits
from ..sharding import Gather, Layout
from ._accumulation import Metrics, fastest_parts, value_and_gradient
from ._ema import update_ema
from ._gather import gather_in_loops
from ._precision import Precision
from ._state import TrainState

TrainStep = Callable[[TrainState, PyTree], tuple[TrainState, Metrics]]
"""A training step: `(state, batch) -> (state, metrics)`."""
_LOWERING = threading.Lock()
"""Two threads that trace Python at once take longer than one after the other. Their compilations do run at once."""


@runtime_checkable
class HasExits(Protocol):
    """A model with a prediction after every loop, for one example: [`ElasticModel`][elt_zoo.ElasticModel], or your own.

    Training calls only the methods that the objective's `exits` needs.
    """

    def __call__(self, *inputs: Any, loops: Any, key: PRNGKeyArray | None = None) -> Any:
        """The prediction after `loops` loops."""

    def at_exit(self, *inputs: Any, loops: Any, max_loops: int, key: PRNGKeyArray | None = None) -> Any:
        """The prediction after `loops` loops, an array of at most `max_loops`."""

    def student_and_teacher(
        self, *inputs: Any, student_loops: Any, max_loops: int, key: PRNGKeyArray | None = None
    ) -> tuple[Any, Any]:
        """The predictions after `student_loops` and after `max_loops` loops, from one pass."""
        ...

    def trajectory(self, *inputs: Any, loops: int, key: PRNGKeyArray | None = None) -> Any:
        """The predictions after 1 to `loops` loops, stacked."""


class LabelledBatch(Protocol):
    """What a training step reads of a batch, such as [`Batch`][elt_zoo.data.Batch]."""

    @property
    def examples(self) -> PyTree[Array]:
        """Clean examples, with a batch axis."""

    @property
    def labels(self) -> Int[Array, " batch"]:
        """Their classes."""
        ...


def predict_exits(
    model: HasExits,
    inputs: tuple[PyTree[Array], ...],
    exits: Exits,
    *,
    student_loops: Int[Array, ""],
    max_loops: int,
    key: PRNGKeyArray | None = None,
) -> tuple[PyTree[Array], ...]:
    """The predictions that an objective asks for, for one example, from one forward pass.

    **Arguments:** `model`: anything with exits; `inputs`: of one example; `exits`: which predictions;
    `student_loops`: the sampled exit; `max_loops`: L_max; `key`: turns dropout on.

    **Returns:** the predictions in the order in which the objective takes them.
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
    model: HasExits,
    corrupted: Corrupted,
    objective: AbstractObjective,
    *,
    student_loops: Int[Array, "..."],
    progress: Float[Array, ""],
    keys: PRNGKeyArray | None = None,
    total_weight: Float[Array, ""] | None = None,
    split_axes: tuple[str, ...] | None = None,
) -> tuple[Float[Array, ""], Metrics]:
    """The objective over a batch: the sum of the examples' losses over the sum of their weights, and so each term.

    **Arguments:**

    - `model`: anything with exits.
    - `corrupted`: the batch.
    - `objective`: what to train for.
    - `student_loops`: the sampled exit: one count, or one per example.
    - `progress`: share of training done, in [0, 1].
    - `keys`: turn dropout on; one per example.
    - `total_weight`: what the sums are divided by; default the batch's own sum of weights. With that of a larger batch,
      the losses of its parts add up to its loss.
    - `split_axes`: axes of the mesh that splits the batch, for what each device does with its own examples alone
      ([`with_attention`][elt_zoo.nn.with_attention]).

    **Returns:** the loss and its terms.
    """

    def one(inputs, target, loops, key):
        predictions = predict_exits(
            model, inputs, objective.exits, student_loops=loops, max_loops=objective.max_loops, key=key
        )
        return objective(*predictions, target=target, progress=progress)

    # An exit that all examples share stays unbatched: selecting it then costs one comparison.
    axes = (0, 0, 0 if student_loops.ndim else None, None if keys is None else 0)
    losses, terms = jax.vmap(one, in_axes=axes, spmd_axis_name=split_axes)(
        corrupted.inputs, corrupted.target, student_loops, keys
    )
    total = jnp.sum(corrupted.weight) if total_weight is None else total_weight
    if "lambda" in terms:
        # A coefficient and not a sum over what is masked: its weighted mean.
        terms["lambda"] = terms["lambda"] * corrupted.weight
    return jnp.sum(losses) / total, {name: jnp.sum(term) / total for name, term in terms.items()}


def make_train_step(
    optimizer: optax.GradientTransformation,
    objective: AbstractObjective,
    corruption: AbstractCorruption,
    *,
    total_steps: int,
    ema_decay: float = 0.9999,
    precision: Precision | None = None,
    dropout: bool = False,
    accumulation: int | None = None,
    prepare: Callable[[Any, PRNGKeyArray], LabelledBatch] | None = None,
    layout: Layout | None = None,
    attention: AttentionKernel = AttentionKernel.AUTO,
) -> TrainStep:
    """The training step as a pure function of state and batch; wrap it in [`jit_step`][elt_zoo.training.jit_step].

    A step is one batch and one update of the optimiser, the average of the parameters and the schedules. Every random
    number of step t comes from the state's key folded with t, so a resumed run repeats nothing and misses nothing. An
    update that is not finite is not applied, and is counted in `state.skipped`.

    **Arguments:**

    - `optimizer`: an optax transformation.
    - `objective`: which exits to train, and how.
    - `corruption`: clean batch → inputs and target.
    - `total_steps`: steps of the run, for the objective's progress; at least 1.
    - `ema_decay`: of the average of the parameters, in [0, 1).
    - `precision`: compute dtype; default float32.
    - `dropout`: whether the model has dropout to turn on.
    - `accumulation`: number of equal parts that the batch is split into. Their gradients are computed one after another
      and added, which saves memory; the update is that of the whole batch up to rounding, with masked losses too.
      Default 1, but for large batches on a single CPU device as many as suit its caches, which is faster. How many
      depends on the cores that the process may use, and so does rounding: give a number for runs that are to be equal
      bit by bit on machines with different ones.
    - `prepare`: `(batch, key) -> batch`, the first part of the compiled step, such as turning bytes into pixels
      ([`to_pixels`][elt_zoo.data.to_pixels]) or sampling latents ([`sample_latents`][elt_zoo.data.sample_latents]).
    - `layout`: how the state lies on several devices, see [`Layout`][elt_zoo.sharding.Layout].
    - `attention`: the kernel of all self-attention; default what suits the device and the sizes, see
      [`attention_kernel`][elt_zoo.nn.attention_kernel].

    **Returns:** `train_step(state, batch) -> (state, metrics)`, `batch` after `prepare` with fields `examples` and
    `labels`. Metrics are float32 scalars: `loss`, the objective's terms and `gradient_norm`.

    **Raises:** `ValueError` for counts below 1 or a decay outside [0, 1); when the step is called, for a batch that
    `accumulation` does not divide, or an optimiser that accumulates by itself.
    """
    if total_steps < 1 or (accumulation is not None and accumulation < 1) or not 0.0 <= ema_decay < 1.0:
        raise ValueError(
            f"`make_train_step(total_steps={total_steps}, accumulation={accumulation}, ema_decay={ema_decay})`: counts "
            "must be at least 1, and the decay in [0, 1)."
        )
    precision = Precision() if precision is None else precision
    at_once = layout is None or layout.gather == Gather.STEP
    # The one kernel that XLA cannot split over devices is that of TPUs.
    mesh = None if layout is None or AttentionDevice.here().platform != "tpu" else layout.mesh

    def train_step(state: TrainState, batch: Any) -> tuple[TrainState, Metrics]:
        _refuse_multi_steps(state.optimizer_state)
        keys = jax.random.split(jax.random.fold_in(state.key, state.step), 4)
        corrupt_key, loops_key, dropout_key, prepare_key = keys
        if prepare is not None:
            batch = prepare(batch, prepare_key)
        size = batch.labels.shape[0]
        corrupted = corruption(batch.examples, batch.labels, key=corrupt_key)
        student_loops = objective.sample_loops(loops_key, size)
        dropout_keys = jax.random.split(dropout_key, size) if dropout else None
        progress = state.step.astype(jnp.float32) / total_steps
        total_weight = jnp.sum(corrupted.weight)

        def loss_of(model, corrupted, student_loops, dropout_keys):
            if layout is not None and not at_once:
                model = gather_in_loops(model, layout)
            return batch_loss(
                precision.cast(with_attention(model, attention, mesh=mesh)),
                corrupted._replace(inputs=precision.cast_inputs(corrupted.inputs)),
                objective,
                student_loops=student_loops,
                progress=progress,
                keys=dropout_keys,
                total_weight=total_weight,
                split_axes=None if mesh is None else mesh.axis_names,
            )

        whole = layout.whole(state.model) if layout is not None and at_once else state.model
        arguments = (loss_of, whole, (corrupted, student_loops, dropout_keys))
        parts = accumulation
        if parts is None:
            parts = fastest_parts(*arguments, size=size) if layout is None else 1
        (loss, metrics), gradient = value_and_gradient(*arguments, parts=parts, size=size)
        if layout is not None:
            # Whole first: else XLA may carry the split from here into the backward pass, up to activations.
            gradient = layout.split(layout.whole(gradient) if at_once else gradient)
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
        state = state if layout is None else layout.split(state)
        return state, {"loss": loss, **metrics, "gradient_norm": norm}

    return train_step


def _refuse_multi_steps(optimizer_state: PyTree) -> None:
    def accumulates(node):
        return isinstance(node, optax.MultiStepsState)

    if any(accumulates(node) for node in jax.tree.leaves(optimizer_state, is_leaf=accumulates)):
        raise ValueError(
            "`make_train_step` got an optimiser that accumulates gradients (`optax.MultiSteps`): the average of the "
            "parameters and the schedules would move at every part of its step. Use `make_train_step(accumulation=…)`."
        )


def jit_step(train_step: TrainStep) -> TrainStep:
    """Compiles a step. Except on CPUs, the step takes over the memory of the state that it is given, so that state must
    not be used again. Batches may be used again.

    **Returns:** the compiled step, with the same signature.
    """

    # Batches are often NumPy arrays, whose memory is not ours to give away. On CPUs (jaxlib 0.10.2) two runs with
    # donated states were seen to differ on a busy machine, and none without; memory is no concern there.
    @eqx.filter_jit(donate="none" if jax.default_backend() == "cpu" else "all-except-first")
    def swapped(batch: Any, state: TrainState) -> tuple[TrainState, Metrics]:
        return train_step(state, batch)

    lowered = threading.Event()

    def step(state: TrainState, batch: Any) -> tuple[TrainState, Metrics]:
        if not lowered.is_set():
            with _LOWERING:
                cast(Any, swapped).lower(batch, state)  # the call below finds the result in JAX's caches
            lowered.set()
        return swapped(batch, state)

    return step
