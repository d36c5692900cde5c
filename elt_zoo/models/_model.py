from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from .._checks import checked
from ..heads import Head
from ..looped import ExitRule, LoopCount, LoopedTransformer, StaticCount


class ElasticModel(eqx.Module):
    """A trunk and a head put together: one model, any number of loops.

    Every method takes the inputs of the head's `embed` for one example (`ids, label` for
    [`MaskGITHead`][elt_zoo.MaskGITHead], `x, time, label` for [`DiTHead`][elt_zoo.DiTHead]) and returns predictions.
    Start with `model(*inputs, loops=4)`. Each other method does to the trunk what the method of the same name of
    [`LoopedTransformer`][elt_zoo.LoopedTransformer] does, and takes the same counts. `key` turns dropout on.
    """

    head: Head
    trunk: LoopedTransformer
    max_loops: int = eqx.field(static=True)

    def __init__(self, head: Head, trunk: LoopedTransformer, *, max_loops: int):
        """**Arguments:** `head` and `trunk`, of one width; `max_loops`: L_max, the loops that the model is trained for.

        **Raises:** `TypeError` if head or trunk are something else, swapped for instance; `ValueError` if `max_loops`
        < 1.
        """
        if not isinstance(trunk, LoopedTransformer) or isinstance(head, LoopedTransformer):
            swapped = " They are swapped." if isinstance(head, LoopedTransformer) else ""
            raise TypeError(
                f"`ElasticModel(head, trunk)` got a `{type(head).__name__}` as head and a `{type(trunk).__name__}` as "
                f"trunk. It needs a head and a `LoopedTransformer`, in this order.{swapped}"
            )
        if not isinstance(head, Head):
            raise TypeError(
                f"`ElasticModel(head, trunk)` got a `{type(head).__name__}` as head. It needs a module with the "
                "methods `embed` and `__call__`, see `elt_zoo.heads.Head`."
            )
        if max_loops < 1:
            raise ValueError(f"`ElasticModel(max_loops={max_loops})` needs at least one loop.")
        self.head = head
        self.trunk = trunk
        self.max_loops = max_loops

    @checked
    def __call__(self, *inputs: Any, loops: LoopCount, key: PRNGKeyArray | None = None) -> PyTree[Array]:
        """The prediction after `loops` loops. A traced count is for inference only."""
        tokens, read, key = self._embed(inputs, key)
        return read(self.trunk(*tokens, loops=loops, key=key))

    @checked
    def at_exit(
        self, *inputs: Any, loops: LoopCount, max_loops: StaticCount, key: PRNGKeyArray | None = None
    ) -> PyTree[Array]:
        """The prediction after a traced number of loops, differentiable, at the cost of `max_loops`."""
        tokens, read, key = self._embed(inputs, key)
        return read(self.trunk.at_exit(*tokens, loops=loops, max_loops=max_loops, key=key))

    @checked
    def trajectory(self, *inputs: Any, loops: StaticCount, key: PRNGKeyArray | None = None) -> PyTree[Array]:
        """The predictions of exits 1 to `loops`, stacked along a new leading axis."""
        tokens, read, key = self._embed(inputs, key)
        return jax.vmap(read)(self.trunk.trajectory(*tokens, loops=loops, key=key))

    @checked
    def student_and_teacher(
        self, *inputs: Any, student_loops: LoopCount, max_loops: LoopCount, key: PRNGKeyArray | None = None
    ) -> tuple[PyTree[Array], PyTree[Array]]:
        """The predictions after `student_loops` and after `max_loops` loops, from one forward pass. A traced
        `max_loops` is for inference only.
        """
        tokens, read, key = self._embed(inputs, key)
        student, teacher = self.trunk.student_and_teacher(
            *tokens, student_loops=student_loops, max_loops=max_loops, key=key
        )
        return read(student), read(teacher)

    @checked
    def early_exit(
        self,
        *inputs: Any,
        rule: ExitRule,
        max_loops: StaticCount,
        min_loops: StaticCount = 1,
        on_states: bool = False,
        together: bool = False,
        differentiable: bool = False,
        key: PRNGKeyArray | None = None,
    ) -> tuple[PyTree[Array], Int[Array, ""]]:
        """Loops until a rule says that the prediction has settled.

        **Arguments:**

        - `inputs`, `key`: as for the other methods.
        - `rule`: called as `rule(previous_prediction, prediction)` after every loop; true means that `prediction` is
          the result. The previous prediction of the first loop is read from the tokens, which no training has made
          useful: with a rule that compares the two, use `min_loops=2`.
        - `max_loops`: the most loops to run.
        - `min_loops`: the loops to run before the exit may be taken, in [1, `max_loops`].
        - `on_states`: the rule is called with states of the trunk instead, which saves the head in every loop.
        - `together`, `differentiable`: as for [`LoopedTransformer.early_exit`][elt_zoo.LoopedTransformer.early_exit].

        **Returns:** the prediction at the exit and the number of loops it took.

        **Raises:** `ValueError` unless 1 ≤ `min_loops` ≤ `max_loops`.
        """
        tokens, read, key = self._embed(inputs, key)
        state, used = self.trunk.early_exit(
            *tokens,
            rule=rule,
            max_loops=max_loops,
            min_loops=min_loops,
            watch=None if on_states else read,
            together=together,
            differentiable=differentiable,
            key=key,
        )
        return read(state), used

    def unstacked(self) -> "ElasticModel":
        """The same model for inference with many unique layers, see
        [`LoopedTransformer.unstacked`][elt_zoo.LoopedTransformer.unstacked].
        """
        return ElasticModel(self.head, self.trunk.unstacked(), max_loops=self.max_loops)

    def _embed(self, inputs: tuple[Any, ...], key: PRNGKeyArray | None):
        """The trunk's arguments, the function that reads a prediction from a state, and the trunk's dropout key."""
        embed_key, trunk_key = (None, None) if key is None else jax.random.split(key)
        with jax.named_scope("embed"):
            tokens, conditioning = self.head.embed(*inputs, key=embed_key)
        return (tokens, conditioning), jax.named_scope("head")(lambda state: self.head(state, conditioning)), trunk_key


class BatchedPredict(eqx.Module):
    """A model as the `predict` function that samplers call: a leading batch axis on every input, one loop count for
    all.
    """

    model: Callable[..., PyTree[Array]]

    @checked
    def __call__(self, *inputs: Any, loops: LoopCount) -> PyTree[Array]:
        """**Arguments:** the model's inputs with a batch axis each, and the loop count. **Returns:** batched
        predictions.
        """
        return jax.vmap(lambda *example: self.model(*example, loops=loops))(*inputs)


class CachedPredict(eqx.Module):
    """A model as the `predict` function that samplers call, which at steps of no loops takes over what the loops of the
    last other step added to the tokens: a [`RecallingPredict`][elt_zoo.sampling.RecallingPredict].

    Such a step costs the embedding and the head. Caches of features across steps do the same for diffusion transformers
    (FORA, [2407.01425](https://arxiv.org/abs/2407.01425); TeaCache, [2411.19108](https://arxiv.org/abs/2411.19108)).
    They need no training.
    """

    model: ElasticModel

    def __call__(self, *inputs: Any, loops: LoopCount) -> PyTree[Array]:
        """As of [`BatchedPredict`][elt_zoo.models.BatchedPredict]: nothing is remembered."""
        return self.recall(self.blank(*inputs), *inputs, loops=loops)[0]

    @checked
    def blank(self, *inputs: Any) -> Float[Array, "batch tokens dim"]:
        """**Arguments:** the model's inputs with a batch axis each. **Returns:** the memory before the first step: NaN,
        since there is nothing to take over.
        """
        tokens = jax.eval_shape(lambda *inputs: jax.vmap(self.model.head.embed)(*inputs)[0], *inputs)
        return jnp.full(tokens.shape, jnp.nan, tokens.dtype)

    @checked
    def recall(
        self, memory: Float[Array, "batch tokens dim"], *inputs: Any, loops: LoopCount
    ) -> tuple[PyTree[Array], Float[Array, "batch tokens dim"]]:
        """**Arguments:** `memory`: what the last loops added; the model's inputs with a batch axis each, and the loop
        count, which may be 0 if it is traced.

        **Returns:** batched predictions, and the memory for the next step.
        """
        tokens, conditioning = jax.vmap(self.model.head.embed)(*inputs)

        def run() -> tuple[Array, Array]:
            states = jax.vmap(lambda *example: self.model.trunk(*example, loops=loops))(tokens, conditioning)
            return states, states - tokens

        def take_over() -> tuple[Array, Array]:
            return tokens + memory, memory

        states, memory = jax.lax.cond(loops > 0, run, take_over) if isinstance(loops, jax.Array) else run()
        return jax.vmap(self.model.head)(states, conditioning), memory
