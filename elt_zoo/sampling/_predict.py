from typing import Any, Protocol, runtime_checkable

from jaxtyping import Array


@runtime_checkable
class Predict(Protocol):
    """What a sampler asks at every step: a function, or a module such as
    [`BatchedPredict(model)`][elt_zoo.models.BatchedPredict].

    `predict(*inputs, labels, loops=…) -> prediction`: the sampler's inputs and the labels, all with a batch axis, and
    the loop count, a Python int or a traced scalar. The sampler says what its inputs are and what prediction it
    expects. Where the branches of guidance share a call, its batch is twice as large.
    """

    def __call__(self, *args: Any, **kwargs: Any) -> Array: ...


@runtime_checkable
class RecallingPredict(Predict, Protocol):
    """A [`Predict`][elt_zoo.sampling.Predict] that remembers something from one step to the next, such as
    [`CachedPredict(model)`][elt_zoo.models.CachedPredict].

    The sampler hands each step the memory that the step before left, one of its own for each branch of guidance. Where
    the branches share a call, their memories are concatenated like its inputs: every array has a leading batch axis.
    """

    def blank(self, *inputs: Any) -> Any:
        """The memory before the first step.

        **Arguments:** `inputs`: the sampler's inputs and the labels.
        """
        ...

    def recall(self, memory: Any, *inputs: Any, loops: Any) -> tuple[Array, Any]:
        """The prediction, and the memory for the next step.

        **Arguments:** `memory`: of the step before; `inputs`, `loops`: as of a call.
        """
        ...
