"""The trunk: N unique layers, applied L times (2604.09168)."""

import enum
from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree

from ._checks import checked
from .nn import PreNormLayer

State = Float[Array, "tokens dim"]
ExitRule = Callable[[State, State], Bool[Array, ""]]


class Remat(enum.StrEnum):
    """What the backward pass recomputes instead of storing.

    `NONE` stores every activation; `LOOP` stores the state at every loop boundary and recomputes a loop at a time;
    `LAYER` stores the state before every layer and recomputes a layer at a time.
    """

    NONE = "none"
    LOOP = "loop"
    LAYER = "layer"


class LoopedTransformer(eqx.Module):
    r"""N unique layers, applied L times: $F_{N,L}(x) = g^{L}(x)$ with $g = f_N \circ \dots \circ f_1$ (2604.09168,
    section 3).

    Parameters grow with N = `num_layers`, compute and effective depth N·L with L = `loops`. The trunk knows no
    modality: it maps tokens to tokens. The number of loops is an argument of each call:

    | call | loop count | differentiable | work done |
    |---|---|---|---|
    | `trunk(x, c, loops=4)` | Python int | yes | 4 loops; compile time independent of the count |
    | `trunk(x, c, loops=r)` | integer array | no | r loops; one compilation serves every count |
    | `trunk.at_exit(x, c, loops=r, max_loops=8)` | integer array | yes | 8 loops, the state frozen after r |
    | `trunk.early_exit(x, c, rule=…, max_loops=8)` | decided by a rule | on request | until the rule says stop |
    | `trunk.trajectory(x, c, loops=4)` | Python int | yes | 4 loops, all four states returned |
    | `trunk.student_and_teacher(x, c, student_loops=r, max_loops=4)` | both | yes | 4 loops, two states returned |

    All of them agree to float tolerance: the state after loop r is the same whichever way it is reached. Under
    `jax.vmap` integer arrays may hold one count per example.

    A layer is any Equinox module called as `layer(x)`, or as `layer(x, conditioning)` when the call passes
    conditioning. If it has a method `condition`, that runs once per call, outside the loop, and its result replaces the
    conditioning.

    With `num_loop_deltas` = K, each of the first K loops adds vectors of its own to the layers' vectors (biases, scales
    of norms); they start at zero, and the matrices stay shared. Loops after the K-th use the vectors of the K-th. The
    paper has none. They let a deep model that was turned into a looped one keep more of what its layers were.
    """

    layers: PyTree[Array]
    loop_deltas: PyTree[Array]
    num_layers: int = eqx.field(static=True)
    scan_layers: bool = eqx.field(static=True)
    unroll_loops: bool = eqx.field(static=True)
    remat: Remat = eqx.field(static=True)

    def __init__(
        self,
        layers: Sequence[eqx.Module],
        *,
        scan_layers: bool = False,
        unroll_loops: bool = False,
        remat: Remat = Remat.NONE,
        num_loop_deltas: int = 0,
    ):
        """Loops a list of layers. [`create`][elt_zoo.LoopedTransformer.create] builds the list from sizes.

        **Arguments:**

        - `layers`: the N unique layers in the order of application: Equinox modules of one structure, with arrays of
          the same shapes and dtypes. The trunk stacks them.
        - `scan_layers`: scan the layers inside a loop instead of unrolling them: compile time independent of N, at 12
          to 25% more time per step on a CPU.
        - `unroll_loops`: unroll the loops of a static count: faster steps, compile time proportional to L.
        - `remat`: what the backward pass recomputes.
        - `num_loop_deltas`: loops that get vectors of their own; default none.

        **Raises:** `ValueError` if the list is empty, the structures differ (naming the first layer that does), or
        `num_loop_deltas` < 0.
        """
        if len(layers) == 0:
            raise ValueError("`LoopedTransformer([])` needs at least one layer.")
        self.layers = _stack(layers)
        self.loop_deltas = _zero_deltas(self.layers, num_loop_deltas)
        self.num_layers = len(layers)
        self.scan_layers = scan_layers
        self.unroll_loops = unroll_loops
        self.remat = Remat(remat)

    @classmethod
    def create(
        cls,
        dim: int,
        num_layers: int,
        num_heads: int,
        *,
        mlp_dim: int | None = None,
        layer: Callable[..., eqx.Module] = PreNormLayer,
        scan_layers: bool = False,
        unroll_loops: bool = False,
        remat: Remat = Remat.NONE,
        num_loop_deltas: int = 0,
        key: PRNGKeyArray,
    ) -> "LoopedTransformer":
        """Builds the layers from their sizes, and loops them.

        **Arguments:**

        - `dim`: width of the tokens.
        - `num_layers`: N, the number of unique layers, at least 1.
        - `num_heads`: attention heads, a divisor of `dim`.
        - `mlp_dim`: hidden width of the MLP; default 4·`dim`.
        - `layer`: called as `layer(dim, num_heads, mlp_dim=…, key=…)` for each unique layer; default pre-norm. Pass
          another layer class, or a `functools.partial` of one to set more of its arguments.
        - `scan_layers`, `unroll_loops`, `remat`, `num_loop_deltas`: as for `LoopedTransformer`.
        - `key`: PRNG key, split among the layers.

        **Raises:** `ValueError` if `num_layers` < 1 or the heads do not divide the width.
        """
        if num_layers < 1:
            raise ValueError(f"`LoopedTransformer.create(num_layers={num_layers})` needs at least one layer.")
        mlp_dim = 4 * dim if mlp_dim is None else mlp_dim
        keys = jax.random.split(key, num_layers)
        return cls(
            [layer(dim, num_heads, mlp_dim=mlp_dim, key=key) for key in keys],
            scan_layers=scan_layers,
            unroll_loops=unroll_loops,
            remat=remat,
            num_loop_deltas=num_loop_deltas,
        )

    def unstacked(self) -> "LoopedTransformer":
        """The same trunk with its layers kept apart, for inference with many unique layers.

        XLA copies a layer's weights out of the stack in every call before it multiplies by them. With few layers and
        many loops that is little; in a deep model of one loop on a CPU it can take as long as the products themselves
        (`benchmarks/networks.py`). The copy needs as much memory again. Train, save and convert the stacked trunk.
        """
        if isinstance(self.layers, tuple):
            return self
        layers = tuple(_entry(self.layers, index) for index in range(self.num_layers))
        return eqx.tree_at(lambda trunk: trunk.layers, self, layers)

    @property
    def num_loop_deltas(self) -> int:
        """Loops that have vectors of their own; 0 for none."""
        return jax.tree.leaves(self.loop_deltas)[0].shape[1] if self.loop_deltas is not None else 0

    @checked
    def __call__(
        self,
        x: Float[Array, "tokens dim"],
        conditioning: PyTree[Array] = None,
        *,
        loops: int | Int[Array, ""],
        key: PRNGKeyArray | None = None,
    ) -> Float[Array, "tokens dim"]:
        """Applies the layers `loops` times.

        **Arguments:**

        - `x`: tokens.
        - `conditioning`: what the layers take besides tokens; computed into modulations once, before the loop.
        - `loops`: L ≥ 1. A Python int is a `lax.scan`, which can be differentiated. An integer array is a loop of
          traced length: one compilation for all counts, no work past the count, no reverse-mode derivative (use
          `at_exit` for that).
        - `key`: turns on the layers' dropout; another mask in every layer and loop.

        **Returns:** the state after the last loop.

        **Raises:** `ValueError` if a static count is below 1, a runtime error if a traced one is.
        """
        step = self._step(conditioning, key)
        if isinstance(loops, int):
            _check_count("loops", loops)
            return self._scan(lambda state, index: (step(state, index), None), x, loops)[0]
        loops = _check_traced_count("loops", loops)
        return jax.lax.fori_loop(jnp.zeros_like(loops), loops, lambda index, state: step(state, index), x)

    @checked
    def at_exit(
        self,
        x: Float[Array, "tokens dim"],
        conditioning: PyTree[Array] = None,
        *,
        loops: Int[Array, ""],
        max_loops: int,
        key: PRNGKeyArray | None = None,
    ) -> Float[Array, "tokens dim"]:
        """Applies the layers `loops` times by running `max_loops` and keeping the state still after `loops` of them.

        It can be differentiated, and under `jax.vmap` each example may have its own count; it costs `max_loops`
        whatever the counts are.

        **Arguments:** as `__call__`; `loops` in [1, `max_loops`].

        **Raises:** `ValueError` if `max_loops` < 1, a runtime error if a count is outside the range.
        """
        _check_count("max_loops", max_loops)
        loops = _check_traced_count("loops", loops, max_loops)
        step = self._step(conditioning, key)

        def body(state, index):
            return jnp.where(index < loops, step(state, index), state), None

        return self._scan(body, x, max_loops)[0]

    @checked
    def trajectory(
        self,
        x: Float[Array, "tokens dim"],
        conditioning: PyTree[Array] = None,
        *,
        loops: int,
        key: PRNGKeyArray | None = None,
    ) -> Float[Array, "loops tokens dim"]:
        """The state at every loop boundary: entry r − 1 is the state after r loops.

        **Arguments:** as `__call__`, with a static count. **Raises:** `ValueError` if the count is below 1.
        """
        _check_count("loops", loops)
        step = self._step(conditioning, key)

        def body(state, index):
            state = step(state, index)
            return state, state

        return self._scan(body, x, loops)[1]

    @checked
    def student_and_teacher(
        self,
        x: Float[Array, "tokens dim"],
        conditioning: PyTree[Array] = None,
        *,
        student_loops: Int[Array, ""],
        max_loops: int,
        key: PRNGKeyArray | None = None,
    ) -> tuple[Float[Array, "tokens dim"], Float[Array, "tokens dim"]]:
        """The states that Intra-Loop Self Distillation needs, from one forward pass (2604.09168, algorithm 1).

        **Arguments:** as `__call__`; `student_loops`: the student's exit L_int, in [1, `max_loops`], traced;
        `max_loops`: L_max.

        **Returns:** the state after `student_loops` loops and the state after `max_loops` loops.

        **Raises:** `ValueError` if `max_loops` < 1, a runtime error if `student_loops` is outside the range.
        """
        _check_count("max_loops", max_loops)
        student_loops = _check_traced_count("student_loops", student_loops, max_loops)
        step = self._step(conditioning, key)

        def body(carry, index):
            state, student = carry
            state = step(state, index)
            return (state, jnp.where(index + 1 == student_loops, state, student)), None

        (teacher, student), _ = self._scan(body, (x, jnp.zeros_like(x)), max_loops)
        return student, teacher

    @checked
    def early_exit(
        self,
        x: Float[Array, "tokens dim"],
        conditioning: PyTree[Array] = None,
        *,
        rule: ExitRule,
        max_loops: int,
        min_loops: int = 1,
        differentiable: bool = False,
        key: PRNGKeyArray | None = None,
    ) -> tuple[Float[Array, "tokens dim"], Int[Array, ""]]:
        """Loops until a rule says that the state has settled.

        **Arguments:**

        - `x`, `conditioning`, `key`: as `__call__`.
        - `rule`: called as `rule(previous_state, state)` after every loop; true means that `state` is the exit.
        - `max_loops`: the most loops to run.
        - `min_loops`: the loops to run before the rule is asked, in [1, `max_loops`].
        - `differentiable`: false stops as soon as the rule fires; in a batch under `jax.vmap`, as soon as it has fired
          for every example. True runs all `max_loops` with an active mask, so that the result can be differentiated.
          Both return the same.

        **Returns:** the exit's state and the number of loops it took.

        **Raises:** `ValueError` unless 1 ≤ `min_loops` ≤ `max_loops`.
        """
        if not 1 <= min_loops <= max_loops:
            raise ValueError(
                f"`early_exit(min_loops={min_loops}, max_loops={max_loops})` needs 1 <= min_loops <= max_loops."
            )
        step = self._step(conditioning, key)

        def advance(carry):
            state, used, _ = carry
            new = step(state, used)
            return new, used + 1, jnp.logical_and(used + 1 >= min_loops, rule(state, new))

        def body(carry, _):
            stepped = advance(carry)
            return jax.tree.map(lambda old, new: jnp.where(carry[2], old, new), carry, stepped), None

        start = (x, jnp.asarray(0, jnp.int32), jnp.asarray(False))
        if differentiable:
            state, used, _ = self._scan(body, start, max_loops)[0]
        else:
            state, used, _ = jax.lax.while_loop(
                lambda carry: jnp.logical_and(carry[1] < max_loops, jnp.logical_not(carry[2])), advance, start
            )
        return state, used

    def _step(self, conditioning: PyTree[Array], key: PRNGKeyArray | None) -> Callable[[State, Int[Array, ""]], State]:
        """The composite block g as a function of the state and the loop index, with all loop-invariant work done."""
        deltas, stacked = self.loop_deltas, self.layers
        apart = isinstance(stacked, tuple)
        conditional = hasattr(stacked[0] if apart else stacked, "condition")

        def condition(layer, delta):
            if conditioning is None or not conditional:
                return conditioning
            if delta is None:
                return layer.condition(conditioning)
            # The matrix products do not depend on the loop: more loops cost additions alone.
            return jax.vmap(lambda delta: _add(layer, delta).condition(conditioning))(delta)

        def apply(state, parts, loop_index, layer_index):
            layer, delta, modulation = parts
            if delta is not None:
                index = jnp.minimum(loop_index, self.num_loop_deltas - 1)
                layer = _add(layer, _entry(delta, index))
                modulation = _entry(modulation, index) if conditional else modulation
            arguments = (state,) if modulation is None else (state, modulation)
            options: dict[str, Any] = {}
            if key is not None:
                options["key"] = jax.random.fold_in(jax.random.fold_in(key, loop_index), layer_index)
            return layer(*arguments, **options)

        if self.remat == Remat.LAYER:
            apply = eqx.filter_checkpoint(apply, prevent_cse=False)

        if self.scan_layers and not apart:
            arrays, static = eqx.partition(stacked, eqx.is_array)
            modulations = jax.vmap(lambda layer, delta: condition(eqx.combine(layer, static), delta))(arrays, deltas)

            def step(state, loop_index):
                def body(state, parts):
                    layer, delta, modulation, layer_index = parts
                    return apply(state, (eqx.combine(layer, static), delta, modulation), loop_index, layer_index), None

                return jax.lax.scan(body, state, (arrays, deltas, modulations, jnp.arange(self.num_layers)))[0]

        else:
            # Sliced here, outside the loop, so that neither the slices nor their gradients' scatters repeat in it.
            layers = stacked if apart else [_entry(stacked, index) for index in range(self.num_layers)]
            parts = [(layer, delta := _entry(deltas, i), condition(layer, delta)) for i, layer in enumerate(layers)]

            def step(state, loop_index):
                for layer_index, layer in enumerate(parts):
                    state = apply(state, layer, loop_index, layer_index)
                return state

        return jax.checkpoint(step, prevent_cse=False) if self.remat == Remat.LOOP else step

    def _scan(self, body: Callable, start: PyTree[Array], loops: int) -> tuple[Any, Any]:
        return jax.lax.scan(body, start, jnp.arange(loops), unroll=loops if self.unroll_loops else 1)


def _stack(layers: Sequence[eqx.Module]) -> PyTree[Array]:
    """Stacks same-structured layers along a new leading axis; everything but arrays must be equal in all of them."""
    arrays, statics = zip(*[eqx.partition(layer, eqx.is_array) for layer in layers], strict=True)
    for index, (array, static) in enumerate(zip(arrays, statics, strict=True)):
        shapes, first = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), (array, arrays[0]))
        if not eqx.tree_equal(static, statics[0]) or not _same(shapes, first):
            raise ValueError(
                "The layers of a `LoopedTransformer` must share one structure, but layer "
                f"{index} differs from layer 0: {layers[index]} against {layers[0]}. Build all of them with the same "
                "class and sizes."
            )
    return eqx.combine(jax.tree.map(lambda *leaves: jnp.stack(leaves), *arrays), statics[0])


def _zero_deltas(layers: PyTree[Array], loops: int) -> PyTree[Array]:
    """Zeros (layers, loops, dim) for the vectors of stacked layers, and nothing for their other arrays."""
    if loops < 0:
        raise ValueError(f"`num_loop_deltas={loops}` is a number of loops: 0 for none, L_max for all trained ones.")
    vectors = eqx.filter(layers, lambda leaf: eqx.is_inexact_array(leaf) and leaf.ndim == 2)
    if loops == 0 or not jax.tree.leaves(vectors):
        return None
    return jax.tree.map(lambda leaf: jnp.zeros((leaf.shape[0], loops, leaf.shape[1]), leaf.dtype), vectors)


def _add(layer: PyTree, deltas: PyTree[Array]) -> Any:
    return jax.tree.map(
        lambda leaf, delta: leaf if delta is None else leaf + delta, layer, deltas, is_leaf=lambda leaf: leaf is None
    )


def _entry(tree: PyTree, index: int | Int[Array, ""]) -> Any:
    return jax.tree.map(lambda leaf: leaf[index] if eqx.is_array(leaf) else leaf, tree)


def _same(a: PyTree, b: PyTree) -> bool:
    return jax.tree.structure(a) == jax.tree.structure(b) and jax.tree.leaves(a) == jax.tree.leaves(b)


def _check_count(name: str, count: int) -> None:
    if count < 1:
        raise ValueError(f"`{name}={count}`: a looped transformer runs at least one loop. Use `{name}=1` or more.")


def _check_traced_count(name: str, count: Int[Array, ""], limit: int | None = None) -> Int[Array, ""]:
    """A traced count cannot raise while tracing, so the check runs with the program."""
    outside = count < 1 if limit is None else (count < 1) | (count > limit)
    bounds = "at least 1" if limit is None else f"in [1, {limit}]"
    return eqx.error_if(count, outside, f"`{name}` of a looped transformer must be {bounds}.")
