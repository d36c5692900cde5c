from typing import Any, Protocol, runtime_checkable

from jaxtyping import Array, Float, PRNGKeyArray, PyTree


@runtime_checkable
class Head(Protocol):
    """What gives a trunk its modality, one end on each side. All exits of a model share it, and it is not looped.

    Any Equinox module with these two methods is a head; nothing has to be inherited.
    """

    def embed(
        self, *inputs: Any, key: PRNGKeyArray | None = None
    ) -> tuple[Float[Array, "tokens dim"], PyTree[Array] | None]:
        """Inputs of one example → tokens for the trunk and conditioning for its layers (`None` for none)."""
        ...

    def __call__(self, state: Float[Array, "tokens dim"], conditioning: PyTree[Array] | None, /) -> PyTree[Array]:
        """State at any exit → prediction."""
        ...
