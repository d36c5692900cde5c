"""What the diagnostics ask of a model, so that a model of your own can be measured too."""

from typing import Any, Protocol, runtime_checkable

from jaxtyping import Array, PyTree


@runtime_checkable
class HasExits(Protocol):
    """A model whose exits can be asked for predictions, such as [`ElasticModel`][elt_zoo.ElasticModel]."""

    def trajectory(self, *inputs: Any, loops: int) -> PyTree[Array]:
        """**Arguments:** `inputs` of one example; `loops`.

        **Returns:** the predictions of exits 1 to `loops`, stacked along a new leading axis.
        """
        ...


@runtime_checkable
class HasStates(Protocol):
    """A model whose states can be looked at, such as [`ElasticModel`][elt_zoo.ElasticModel]: it has a head with `embed`
    and a trunk with `loop_states`, and predicts when it is called.
    """

    @property
    def head(self) -> Any: ...

    @property
    def trunk(self) -> Any: ...

    def __call__(self, *inputs: Any, loops: Any) -> PyTree[Array]: ...
