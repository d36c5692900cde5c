from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree

from .._checks import checked
from ..nn import PreNormLayer
from ._block import Block, State, make_block
from ._counts import LoopCount, StaticCount, poison, static_count, traced_count
from ._remat import Remat
from ._stack import apart, stack
from ._while_any import while_any

_PRELUDE, _CODA = 2**31, 2**31 + 1
"""Numbers that no loop has, for the keys of dropout."""
ExitRule = Callable[[Any, Any], Bool[Array, ""]]
"""Called with what it watches before and after a loop; true means that the example may leave."""


class LoopedTransformer(eqx.Module):
    r"""N unique layers, applied L times: $F_{N,L}(x) = g^{L}(x)$ with $g = f_N \circ \dots \circ f_1$
    ([2604.09168](https://arxiv.org/abs/2604.09168), section 3).

    Parameters grow with N = `num_layers`, compute and effective depth N·L with L = `loops`. The trunk knows no
    modality: it maps tokens to tokens. The number of loops is an argument of each call. Start with the first row of
    this table; the others are for the purposes that they name.

    | call | for | differentiable | work done |
    |---|---|---|---|
    | `trunk(x, c, loops=4)` | a fixed number of loops | yes | 4 loops; compile time independent of the number |
    | `trunk(x, c, loops=r)` | a traced `r`, at inference | no | r loops; one compilation serves every number |
    | `trunk.at_exit(x, c, loops=r, max_loops=8)` | a traced `r`, in training | yes | 8 loops, state kept after r |
    | `trunk.trajectory(x, c, loops=4)` | all exits | yes | 4 loops, all four states returned |
    | `trunk.student_and_teacher(x, c, student_loops=r, max_loops=4)` | ILSD | yes | 4 loops, two states returned |
    | `trunk.early_exit(x, c, rule=…, max_loops=8)` | a number that a rule decides | on request | until the rule holds |

    All of them agree to float tolerance: the state after loop r is the same whichever way it is reached. Under
    `jax.vmap` a traced number may differ between examples.

    A layer is any Equinox module called as `layer(x)`, or as `layer(x, conditioning)` when the call passes
    conditioning. If it has a method `condition`, the trunk calls that once, outside the loop, and passes the result in
    place of the conditioning.

    The trunk computes in the dtype of its tokens: floating-point arrays of the layers are cast to it inside the loop.
    With float32 layers and bfloat16 tokens, products run in bfloat16 and the gradients of the layers are summed over
    the loops in float32.

    Layers that do not loop may stand around the loop: those of the `prelude` map the tokens to the state that enters
    it, those of the `coda` map the state at an exit to what every call above returns for that exit. The paper has none.
    Looped language models have them ([2502.05171](https://arxiv.org/abs/2502.05171)).

    With `reinjection` ρ, every loop starts from (1 − ρ)·h + ρ·e, a mean of the state h and of the state e that entered
    the first loop (for which both are the same). In diffusion, loops past those of training then change predictions
    little. The paper has none. Looped language models add e in other ways (2502.05171).
    """

    layers: PyTree[Array]
    prelude: PyTree[Array]
    coda: PyTree[Array]
    num_layers: int = eqx.field(static=True)
    num_prelude: int = eqx.field(static=True)
    num_coda: int = eqx.field(static=True)
    reinjection: float = eqx.field(static=True)
    scan_layers: bool = eqx.field(static=True)
    unroll_loops: bool = eqx.field(static=True)
    remat: Remat = eqx.field(static=True)

    def __init__(
        self,
        layers: Sequence[eqx.Module],
        *,
        prelude: Sequence[eqx.Module] = (),
        coda: Sequence[eqx.Module] = (),
        reinjection: float = 0.0,
        scan_layers: bool = False,
        unroll_loops: bool = False,
        remat: Remat = Remat.AUTO,
    ):
        """Loops a list of layers. [`create`][elt_zoo.LoopedTransformer.create] builds the list from sizes.

        **Arguments:**

        - `layers`: the N unique layers in the order of application: Equinox modules of one structure, with arrays of
          the same shapes and dtypes. The trunk stacks them.
        - `prelude`, `coda`: layers applied once, before the loops and after the last one.
        - `reinjection`: share ρ of what entered the loops in what each of them starts from, in [0, 1).
        - `scan_layers`: scan the layers inside a loop instead of unrolling them: compile time independent of N, at 12
          to 25% more time per step on a CPU.
        - `unroll_loops`: unroll the loops of a static count: compile time proportional to L. Without effect under a
          `remat` that recomputes.
        - `remat`: what the backward pass recomputes; default what lies between matrix products, where loops are
          scanned.

        **Raises:** `ValueError` if `layers` is empty, the structures within a list differ (naming the first layer that
        does), or `reinjection` is outside [0, 1).
        """
        if len(layers) == 0:
            raise ValueError("`LoopedTransformer([])` needs at least one layer.")
        if not 0.0 <= reinjection < 1.0:
            raise ValueError(f"`LoopedTransformer(reinjection={reinjection})` must be in [0, 1).")
        self.layers = stack(layers)
        self.prelude = stack(prelude) if prelude else None
        self.coda = stack(coda) if coda else None
        self.num_layers = len(layers)
        self.num_prelude = len(prelude)
        self.num_coda = len(coda)
        self.reinjection = reinjection
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
        prelude: int = 0,
        coda: int = 0,
        residual_scale: float = 1.0,
        reinjection: float = 0.0,
        scan_layers: bool = False,
        unroll_loops: bool = False,
        remat: Remat = Remat.AUTO,
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
        - `prelude`, `coda`: numbers of layers before the loops and after the last one.
        - `residual_scale`: of the looped layers, which must take it as an argument if it is not 1. A layer that is
          applied L times adds L correlated branches to the state; 1/√L or 1/L keeps their sum in bounds.
        - `reinjection`, `scan_layers`, `unroll_loops`, `remat`: as for `LoopedTransformer`.
        - `key`: PRNG key, split among the layers.

        **Raises:** `ValueError` if `num_layers` < 1, `prelude` or `coda` < 0, or the heads do not divide the width.
        """
        if num_layers < 1 or prelude < 0 or coda < 0:
            raise ValueError(
                f"`LoopedTransformer.create(num_layers={num_layers}, prelude={prelude}, coda={coda})` needs at least "
                "one layer to loop, and no negative number of layers around it."
            )
        mlp_dim = 4 * dim if mlp_dim is None else mlp_dim

        def make(count: int, key: PRNGKeyArray, **options: Any) -> list[eqx.Module]:
            keys = jax.random.split(key, count)
            return [layer(dim, num_heads, mlp_dim=mlp_dim, key=key, **options) for key in keys]

        return cls(
            make(num_layers, key, **({} if residual_scale == 1.0 else {"residual_scale": residual_scale})),
            prelude=make(prelude, jax.random.fold_in(key, 1)),
            coda=make(coda, jax.random.fold_in(key, 2)),
            reinjection=reinjection,
            scan_layers=scan_layers,
            unroll_loops=unroll_loops,
            remat=remat,
        )

    def unstacked(self) -> "LoopedTransformer":
        """The same trunk with its layers kept apart, for inference with many unique layers.

        XLA copies a layer's weights out of the stack in every call before it multiplies by them. With few layers and
        many loops that is little; in a deep model of one loop on a CPU it can take as long as the products themselves
        (`benchmarks/networks.py`). The copy needs as much memory again. Train, save and convert the stacked trunk.
        """
        if isinstance(self.layers, tuple):
            return self
        stacks = (self.prelude, self.num_prelude), (self.layers, self.num_layers), (self.coda, self.num_coda)
        return eqx.tree_at(
            lambda trunk: (trunk.prelude, trunk.layers, trunk.coda),
            self,
            tuple(None if stacked is None else apart(stacked, count) for stacked, count in stacks),
            is_leaf=lambda leaf: leaf is None,
        )

    @checked
    def __call__(
        self,
        x: Float[Array, "tokens dim"],
        conditioning: PyTree[Array] = None,
        *,
        loops: LoopCount,
        key: PRNGKeyArray | None = None,
    ) -> Float[Array, "tokens dim"]:
        """Applies the layers `loops` times.

        **Arguments:**

        - `x`: tokens.
        - `conditioning`: what the layers take besides tokens.
        - `loops`: L ≥ 1. A Python or NumPy integer is static: a `lax.scan`, which can be differentiated. A JAX array
          is traced: one compilation serves every number, nothing runs past the last loop, and reverse-mode
          differentiation is not possible (use `at_exit` for that).
        - `key`: turns on the layers' dropout, with another mask in every layer and loop.

        **Returns:** the state after the last loop.

        **Raises:** `TypeError` if `loops` is a truth value; `ValueError` if the number is below 1; where it is traced,
        the result is NaN instead.
        """
        if not isinstance(loops, jax.Array):
            count = static_count("loops", loops)
            start, block, leave = self._parts(x, conditioning, key, count)
            return leave(self._scan(lambda state, index: (block(state, index), None), start, count)[0])
        count = traced_count("loops", loops)
        start, block, leave = self._parts(x, conditioning, key)
        start = poison(start, count < 1)
        return leave(jax.lax.fori_loop(jnp.zeros_like(count), count, lambda index, state: block(state, index), start))

    @checked
    def at_exit(
        self,
        x: Float[Array, "tokens dim"],
        conditioning: PyTree[Array] = None,
        *,
        loops: LoopCount,
        max_loops: StaticCount,
        key: PRNGKeyArray | None = None,
    ) -> Float[Array, "tokens dim"]:
        """Runs `max_loops` loops and returns the state at one exit, the state after `loops` of them.

        It can be differentiated, and under `jax.vmap` each example may have its own exit. It costs `max_loops` loops
        whatever the exit is.

        **Arguments:** as `__call__`; `loops`: traced or static, in [1, `max_loops`].

        **Raises:** `ValueError` if `max_loops` < 1 or `loops` is outside the range; where `loops` is traced, the result
        is NaN instead.
        """
        max_loops = static_count("max_loops", max_loops)
        loops = traced_count("loops", loops, max_loops)
        start, block, leave = self._parts(x, conditioning, key, max_loops)

        def body(state, index):
            return jnp.where(index < loops, block(state, index), state), None

        return poison(leave(self._scan(body, start, max_loops)[0]), (loops < 1) | (loops > max_loops))

    @checked
    def trajectory(
        self,
        x: Float[Array, "tokens dim"],
        conditioning: PyTree[Array] = None,
        *,
        loops: StaticCount,
        key: PRNGKeyArray | None = None,
    ) -> Float[Array, "loops tokens dim"]:
        """The state at every loop boundary: entry r − 1 is the state after r loops.

        **Arguments:** as `__call__`, with a static number of loops.

        **Raises:** `ValueError` if it is below 1.
        """
        _, states, leave = self._states(x, conditioning, key, static_count("loops", loops))
        return jax.vmap(leave)(states)

    @checked
    def loop_states(
        self,
        x: Float[Array, "tokens dim"],
        conditioning: PyTree[Array] = None,
        *,
        loops: StaticCount,
    ) -> Float[Array, "states tokens dim"]:
        """The state that enters the loops and the state after each: `loops` + 1 of them, before any coda, to look at
        what a loop does. Without a coda, those after the first are the `trajectory`.

        **Arguments:** as `__call__`, with a static number of loops.

        **Raises:** `ValueError` if it is below 1.
        """
        start, states, _ = self._states(x, conditioning, None, static_count("loops", loops))
        return jnp.concatenate([start[None], states])

    @checked
    def student_and_teacher(
        self,
        x: Float[Array, "tokens dim"],
        conditioning: PyTree[Array] = None,
        *,
        student_loops: LoopCount,
        max_loops: LoopCount,
        key: PRNGKeyArray | None = None,
    ) -> tuple[Float[Array, "tokens dim"], Float[Array, "tokens dim"]]:
        """The two states that Intra-Loop Self Distillation needs, from one forward pass
        ([2604.09168](https://arxiv.org/abs/2604.09168), algorithm 1).

        **Arguments:** as `__call__`; `student_loops`: the student's exit L_int, traced or static, in [1, `max_loops`];
        `max_loops`: L_max, static, or traced for inference only.

        **Returns:** the state after `student_loops` loops and the state after `max_loops` loops.

        **Raises:** `ValueError` if `max_loops` < 1 or `student_loops` is outside the range; where `student_loops` is
        traced, the student's state is NaN instead, and where `max_loops` is, the teacher's.
        """
        static = not isinstance(max_loops, jax.Array)
        limit = static_count("max_loops", max_loops) if static else None
        student_loops = traced_count("student_loops", student_loops, limit)
        start, block, leave = self._parts(x, conditioning, key, limit)

        def advance(index, carry):
            state, student = carry
            state = block(state, index)
            return state, jnp.where(index + 1 == student_loops, state, student)

        both = (start, jnp.full_like(x, jnp.nan))
        if limit is not None:
            teacher, student = self._scan(lambda carry, index: (advance(index, carry), None), both, limit)[0]
        else:
            count = traced_count("max_loops", max_loops)
            teacher, student = jax.lax.fori_loop(jnp.zeros_like(count), count, advance, both)
            teacher = poison(teacher, count < 1)
        return leave(student), leave(teacher)

    @checked
    def early_exit(
        self,
        x: Float[Array, "tokens dim"],
        conditioning: PyTree[Array] = None,
        *,
        rule: ExitRule,
        max_loops: StaticCount,
        min_loops: StaticCount = 1,
        watch: Callable[[Float[Array, "tokens dim"]], PyTree[Array]] | None = None,
        together: bool = False,
        differentiable: bool = False,
        key: PRNGKeyArray | None = None,
    ) -> tuple[Float[Array, "tokens dim"], Int[Array, ""]]:
        """Loops until a rule says that the state has settled.

        [`ElasticModel.early_exit`][elt_zoo.ElasticModel.early_exit] has rules on predictions. Layers of a coda map the
        state once the rule holds; what the rule sees has passed them only if `watch` is given.

        **Arguments:**

        - `x`, `conditioning`, `key`: as `__call__`.
        - `rule`: called as `rule(previous_state, state)` after every loop; true means that `state` is the exit. The
          previous state of the first loop is what enters the loops.
        - `max_loops`: the most loops to run.
        - `min_loops`: the loops to run before the exit may be taken, in [1, `max_loops`].
        - `watch`: what the rule sees, as a function of an exit's state; default the state itself, before any coda.
        - `differentiable`: false stops as soon as the rule holds; in a batch under `jax.vmap`, each loop runs those
          examples that have not left (with one `jax.vmap`: two nested ones run more than they need). True runs all
          `max_loops` and keeps the state of the exit, so that the result can be differentiated. Both return the same.
        - `together`: promises that under `jax.vmap` the rule says the same for all examples, as one that averages over
          the named axis does. Then nothing is gathered.

        **Returns:** the exit's state and the number of loops it took.

        **Raises:** `ValueError` unless 1 ≤ `min_loops` ≤ `max_loops`.
        """
        min_loops, max_loops = static_count("min_loops", min_loops), static_count("max_loops", max_loops)
        if min_loops > max_loops:
            raise ValueError(
                f"`early_exit(min_loops={min_loops}, max_loops={max_loops})` needs 1 <= min_loops <= max_loops."
            )
        start, block, leave = self._parts(x, conditioning, key, max_loops if differentiable else None)

        def look(state):
            return state if watch is None else watch(leave(state))

        def advance(carry):
            state, seen, used, _ = carry
            state = block(state, used)
            now = look(state)
            return state, now, used + 1, jnp.logical_and(used + 1 >= min_loops, rule(seen, now))

        def body(carry, _):
            left = carry[-1]
            return jax.tree.map(lambda old, new: jnp.where(left, old, new), carry, advance(carry)), None

        carry = (start, look(start), jnp.asarray(0, jnp.int32), jnp.asarray(False))
        if differentiable:
            state, _, used, _ = self._scan(body, carry, max_loops)[0]
        else:
            state, _, used, _ = (jax.lax.while_loop if together else while_any)(
                lambda carry: jnp.logical_and(carry[2] < max_loops, jnp.logical_not(carry[3])), advance, carry
            )
        return leave(state), used

    def _parts(
        self, x: State, conditioning: PyTree[Array], key: PRNGKeyArray | None, loops: int | None = None
    ) -> tuple[State, Block, Callable[[State], State]]:
        """The state that enters the loops, the block that they repeat, and what comes after. `loops` is the length of
        the scan that the block will be in, if it is one.
        """

        def block_of(layers: PyTree[Array], num_layers: int, key: Any, times: int | None) -> Block:
            return make_block(
                layers,
                conditioning,
                key,
                num_layers=num_layers,
                dtype=x.dtype,
                scan_layers=self.scan_layers,
                remat=self.remat.resolve(times, unrolled=self.unroll_loops),
                single=times == 1,
            )

        def once(layers: PyTree[Array], num_layers: int, index: int) -> Callable[[State], State]:
            if not num_layers:
                return lambda state: state
            block = block_of(layers, num_layers, None if key is None else jax.random.fold_in(key, index), 1)
            name = "prelude" if index == _PRELUDE else "coda"
            return jax.named_scope(name)(lambda state: block(state, jnp.asarray(0)))

        start = once(self.prelude, self.num_prelude, _PRELUDE)(x)
        block = block_of(self.layers, self.num_layers, key, loops)

        def reinjecting(state: State, loop: Int[Array, ""]) -> State:
            return block(state + self.reinjection * (start - state), loop)

        return (
            start,
            jax.named_scope("loop")(reinjecting if self.reinjection else block),
            once(self.coda, self.num_coda, _CODA),
        )

    def _states(
        self, x: State, conditioning: PyTree[Array], key: PRNGKeyArray | None, loops: int
    ) -> tuple[State, Float[Array, "loops tokens dim"], Callable[[State], State]]:
        """The state that enters the loops, those after each loop, and what comes after the last one."""
        start, block, leave = self._parts(x, conditioning, key, loops)

        def body(state, index):
            state = block(state, index)
            return state, state

        return start, self._scan(body, start, loops)[1], leave

    def _scan(self, body: Callable, start: PyTree[Array], loops: int) -> tuple[Any, Any]:
        unroll = self.unroll_loops and self.remat.resolve(loops, unrolled=True) == Remat.NONE
        return jax.lax.scan(body, start, jnp.arange(loops), unroll=loops if unroll else 1)
