import abc
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree, Shaped

from .._checks import checked
from ._budgets import BranchLoops, Loops, resolve_loops
from ._guidance import AbstractGuidance, apply_guidance
from ._predict import Predict, RecallingPredict
from ._progress import ProgressCallback, report


class AbstractSampler(eqx.Module):
    """Samples in a number of steps; each asks a network and updates a state. Batched.

    A member says how the state starts (`init`), what the network is asked (`inputs`), how a step changes the state
    (`step`) and what of it is the sample (`output`). All else is the same for every sampler: the loops of each step,
    guidance, progress, trajectories, and one compiled program for the whole run. It is compiled again for another
    structure of `predict`, number of steps, shape, Python-int loop count or set of guided steps, but not for other
    values of arrays: loops, guidance scales, array fields of the member.

    **Fields** of every member: `steps`, K, at least 1; `null_label`, the label for no class, or `None`; `guidance`, or
    `None`, which never evaluates the unconditional branch.
    """

    steps: eqx.AbstractVar[int]
    null_label: eqx.AbstractVar[int | None]
    guidance: eqx.AbstractVar[AbstractGuidance | None]

    def __check_init__(self):
        if self.steps < 1:
            raise ValueError(f"`{type(self).__name__}(steps={self.steps})` samples nothing: use at least one step.")
        if self.guidance is not None and self.null_label is None:
            raise ValueError(
                f"`{type(self).__name__}(guidance=...)` also needs `null_label`, the label that the model was trained "
                "to take for no class (`head.null_label`)."
            )

    # What a member defines.

    @abc.abstractmethod
    def init(self, labels: Int[Array, " batch"], key: PRNGKeyArray, initial: Shaped[Array, "batch ..."] | None) -> Any:
        """The state before the first step, any pytree of arrays.

        **Arguments:** `labels`: the classes; `key`: for what is random at the start; `initial`: what the caller gave.
        """

    @abc.abstractmethod
    def inputs(self, state: Any, now: Any) -> tuple[Array, ...]:
        """What `predict` gets before the labels, each with a batch axis.

        **Arguments:** `state`; `now`: this step's entry of `table`.
        """

    @abc.abstractmethod
    def step(self, state: Any, prediction: Float[Array, "batch *out"], now: Any, key: PRNGKeyArray) -> Any:
        """The next state.

        **Arguments:** `state`; `prediction`: in float32, guided if there is guidance; `now`: this step's entry of
        `table`; `key`: this step's key.

        **Raises:** `ValueError` for a prediction of a wrong shape.
        """

    @abc.abstractmethod
    def output(self, state: Any) -> Shaped[Array, "batch *sample"]:
        """The samples that a state holds, known in part before the last step."""

    # What a member may define.

    def finish(
        self, state: Any, prediction: Float[Array, "batch *out"], now: Any, key: PRNGKeyArray
    ) -> Shaped[Array, "batch *sample"]:
        """The samples if this step has to be the last. Default: those of the next state, for samplers that know
        complete samples after every step.

        **Arguments**, **Raises:** as `step`.
        """
        return self.output(self.step(state, prediction, now, key))

    def table(self) -> PyTree[Shaped[Array, "steps ..."]]:
        """What `inputs` and `step` need to know of each step, stacked over the steps. Default: the step's index."""
        return jnp.arange(self.steps)

    def guide(
        self,
        conditional: Float[Array, "batch *out"],
        unconditional: Float[Array, "batch *out"],
        scale: Float[Array, ""],
    ) -> Float[Array, "batch *out"]:
        """The guided prediction. Default: [`apply_guidance`][elt_zoo.sampling.apply_guidance] on all channels."""
        return apply_guidance(conditional, unconditional, scale)

    def split_key(self, key: PRNGKeyArray) -> tuple[PRNGKeyArray, Shaped[Array, "steps ..."]]:
        """The key of `init`, and the keys of all steps."""
        init_key, step_key = jax.random.split(key)
        return init_key, jax.random.split(step_key, self.steps)

    def check_initial(self, initial: Array, labels: Int[Array, " batch"]) -> None:
        """Raises for an `initial` that `init` cannot start from. Runs before the program; values may be traced."""

    def check_samples(self, samples: Array) -> None:
        """Raises for samples that nobody should use. Runs after the program, unless the caller traces it."""

    # What all share.

    @checked
    def __call__(
        self,
        predict: Predict,
        labels: Int[Array, " batch"],
        *,
        loops: Loops,
        key: PRNGKeyArray,
        initial: Shaped[Array, "batch ..."] | None = None,
        callback: ProgressCallback | None = None,
    ) -> Shaped[Array, "batch *sample"]:
        """One sample per label.

        **Arguments:**

        - `predict`: the network as a [`Predict`][elt_zoo.sampling.Predict].
        - `labels`: the classes.
        - `loops`: an integer, an integer scalar array, an integer array with one count per step, or a
          [`LoopBudget`][elt_zoo.sampling.LoopBudget] with one of these for each branch. `predict` gets a Python int for
          an integer, and else a traced scalar. Where a count that the caller traces is below 1, predictions are NaN. A
          `predict` that remembers may be asked for no loops after the first step.
        - `key`: PRNG key; the same key gives the same samples.
        - `initial`: where to start, if not from pure noise or masks.
        - `callback`: called on the host as `callback(step, steps)` after every step; without it the program holds no
          callback.

        **Returns:** the samples.

        **Raises:** `ValueError`/`TypeError` for wrong loops, initial values or predictions.
        """
        return self._run(_Call(predict, labels, self._resolve(predict, loops), key, initial, callback), _nothing)[0]

    @checked
    def until(
        self,
        predict: Predict,
        labels: Int[Array, " batch"],
        *,
        fits: Callable[[int], int],
        loops: Loops,
        key: PRNGKeyArray,
        initial: Shaped[Array, "batch ..."] | None = None,
    ) -> tuple[Shaped[Array, "batch *sample"], int]:
        """Samples that come early if they have to: after any step the next one can be made the last, which takes the
        network's prediction as it is.

        The host decides between parts of the run, each of as many steps as it says. Three compiled programs serve every
        number of them. With all its steps the run gives what a call gives.

        **Arguments:** as a call; `fits`: called with the number of steps that are done; says how many more can be taken
        before the last one. Below 1 the next step is the last.

        **Returns:** the samples, and the number of steps that they took, the last one included.

        **Raises:** as a call.
        """
        call = _Call(predict, labels, self._resolve(predict, loops), key, initial, None)
        if initial is not None:
            self.check_initial(initial, labels)
        run, done = _begin(self, call), 0
        while (part := min(fits(done), self.steps - 1 - done)) > 0:
            run = jax.block_until_ready(_advance(self, call, run, jnp.asarray(done), jnp.asarray(done + part)))
            done += part
        samples = _finish(self, call, run, jnp.asarray(done))
        self.check_samples(samples)
        return samples, done + 1

    @checked
    def trajectory(
        self,
        predict: Predict,
        labels: Int[Array, " batch"],
        *,
        loops: Loops,
        key: PRNGKeyArray,
        initial: Shaped[Array, "batch ..."] | None = None,
        callback: ProgressCallback | None = None,
    ) -> Shaped[Array, "steps batch *sample"]:
        """The samples after every step, as far as they are known; the last entry is what a call returns.

        **Arguments**, **Raises:** as a call.
        """
        return self._run(_Call(predict, labels, self._resolve(predict, loops), key, initial, callback), _samples)[1]

    @checked
    def step_inputs(
        self,
        predict: Predict,
        labels: Int[Array, " batch"],
        *,
        loops: Loops,
        key: PRNGKeyArray,
        initial: Shaped[Array, "batch ..."] | None = None,
    ) -> tuple[Shaped[Array, "steps batch ..."], ...]:
        """What the network is asked at every step, to ask it again afterwards.

        **Arguments**, **Raises:** as a call. **Returns:** the inputs of `predict` before the labels.
        """
        return self._run(_Call(predict, labels, self._resolve(predict, loops), key, initial, None), _inputs)[1]

    def _resolve(self, predict: Predict, loops: Loops) -> BranchLoops:
        cached = isinstance(predict, RecallingPredict)
        return resolve_loops(loops, steps=self.steps, guidance=self.guidance, cached=cached)

    def _run(self, call: "_Call", keep: "_Keep") -> tuple[Array, Any]:
        if call.initial is not None:
            self.check_initial(call.initial, call.labels)
        samples, kept = _run(self, call, keep)
        if not isinstance(samples, Tracer):
            self.check_samples(samples)
        return samples, kept


class _Call(eqx.Module):
    """The arguments of one call."""

    predict: Predict
    labels: Int[Array, " batch"]
    loops: BranchLoops
    key: PRNGKeyArray
    initial: Shaped[Array, "batch ..."] | None
    callback: ProgressCallback | None


_Keep = Callable[[tuple[Array, ...], Array], Any]
"""What a run keeps of a step, from the inputs of `predict` and the samples after it."""


def _nothing(inputs: tuple[Array, ...], samples: Array) -> None:
    return None


def _inputs(inputs: tuple[Array, ...], samples: Array) -> tuple[Array, ...]:
    return inputs


def _samples(inputs: tuple[Array, ...], samples: Array) -> Array:
    return samples


@eqx.filter_jit
def _run(sampler: AbstractSampler, call: _Call, keep: _Keep) -> tuple[Shaped[Array, "batch *sample"], Any]:
    """The samples, and what is kept of every step, stacked."""
    steps = sampler.steps

    def one_step(carry, xs):
        run, reported = carry
        index, (now, step_key, scale) = xs
        inputs = sampler.inputs(run.state, now)
        prediction, memories = _predict(sampler, call, inputs, run.memories, index, scale)
        state = sampler.step(run.state, prediction, now, step_key)
        samples = sampler.output(state)
        reported = report(call.callback, index, steps, reported, samples)
        return (_Run(state, memories), reported), keep(inputs, samples)

    start = (_start(sampler, call), jnp.zeros((), jnp.int32))
    (run, _), kept = jax.lax.scan(one_step, start, (jnp.arange(steps), _steps(sampler, call)))
    return sampler.output(run.state), kept


class _Run(NamedTuple):
    """What one step leaves to the next."""

    state: Any
    memories: tuple[Any, Any]
    """Of the conditional and the unconditional branch; empty where nothing is remembered."""


def _start(sampler: AbstractSampler, call: _Call) -> _Run:
    """What there is before the first step."""
    state = sampler.init(call.labels, sampler.split_key(call.key)[0], call.initial)
    if not isinstance(call.predict, RecallingPredict):
        return _Run(state, ((), ()))
    inputs = sampler.inputs(state, _entry(sampler.table(), jnp.asarray(0)))
    blank = call.predict.blank(*inputs, call.labels)
    return _Run(state, (blank, () if sampler.guidance is None else blank))


_begin = eqx.filter_jit(_start)


@eqx.filter_jit
def _advance(sampler: AbstractSampler, call: _Call, run: _Run, start: Int[Array, ""], stop: Int[Array, ""]) -> _Run:
    """What there is after the steps from `start` on, before `stop`."""
    steps = _steps(sampler, call)

    def one_step(index: Int[Array, ""], run: _Run) -> _Run:
        now, key, scale = _entry(steps, index)
        prediction, memories = _predict(sampler, call, sampler.inputs(run.state, now), run.memories, index, scale)
        return _Run(sampler.step(run.state, prediction, now, key), memories)

    return jax.lax.fori_loop(start, stop, one_step, run)


@eqx.filter_jit
def _finish(sampler: AbstractSampler, call: _Call, run: _Run, index: Int[Array, ""]) -> Shaped[Array, "batch *sample"]:
    """The samples with this step as the last."""
    now, key, scale = _entry(_steps(sampler, call), index)
    prediction, _ = _predict(sampler, call, sampler.inputs(run.state, now), run.memories, index, scale)
    return sampler.finish(run.state, prediction, now, key)


def _steps(sampler: AbstractSampler, call: _Call) -> tuple[Any, Shaped[Array, "steps ..."], Any]:
    """What the steps need to know, their keys and the scales of guidance, each stacked over the steps."""
    scales = None if sampler.guidance is None else sampler.guidance.scales(sampler.steps)
    return sampler.table(), sampler.split_key(call.key)[1], scales


def _entry(steps: Any, index: Int[Array, ""]) -> Any:
    return jax.tree.map(lambda leaf: leaf[index], steps)


def _predict(
    sampler: AbstractSampler,
    call: _Call,
    inputs: tuple[Array, ...],
    memories: tuple[Any, Any],
    index: Int[Array, ""],
    scale: Float[Array, ""] | None,
) -> tuple[Float[Array, "batch *out"], tuple[Any, Any]]:
    """What the network says at one step, guided where there is guidance, in float32; and what it remembers of each
    branch.
    """
    labels, loops = call.labels, call.loops.at(index)
    of_condition, of_none = memories

    def ask(
        inputs: tuple[Array, ...], labels: Int[Array, " batch"], count: int | Int[Array, ""], memory: Any
    ) -> tuple[Array, Any]:
        if isinstance(call.predict, RecallingPredict):
            prediction, memory = call.predict.recall(memory, *inputs, labels, loops=count)
        else:
            prediction = call.predict(*inputs, labels, loops=count)
        prediction = prediction.astype(jnp.float32)
        least = 0 if isinstance(call.predict, RecallingPredict) else 1
        return prediction if isinstance(count, int) else jnp.where(count < least, jnp.nan, prediction), memory

    def conditional() -> tuple[Array, tuple[Any, Any]]:
        prediction, memory = ask(inputs, labels, loops.conditional, of_condition)
        return prediction, (memory, of_none)

    if sampler.guidance is None:
        return conditional()
    assert sampler.null_label is not None and scale is not None
    nulls = jnp.full_like(labels, sampler.null_label)

    def guided() -> tuple[Array, tuple[Any, Any]]:
        if loops.unconditional is None:
            doubled, both = jax.tree.map(
                lambda one, other: jnp.concatenate([one, other]), (inputs, of_condition), (inputs, of_none)
            )
            answer = ask(doubled, jnp.concatenate([labels, nulls]), loops.conditional, both)
            (cond, now), (uncond, now_none) = (
                jax.tree.map(lambda leaf, half=half: jnp.split(leaf, 2)[half], answer) for half in (0, 1)
            )
        else:
            cond, now = ask(inputs, labels, loops.conditional, of_condition)
            uncond, now_none = ask(inputs, nulls, loops.unconditional, of_none)
        return sampler.guide(cond, uncond, scale), (now, now_none)

    where = sampler.guidance.guided(sampler.steps)
    if where.all():
        return guided()
    return jax.lax.cond(jnp.asarray(where)[index], guided, conditional)
