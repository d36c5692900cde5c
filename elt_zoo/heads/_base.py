from typing import Any, Protocol, runtime_checkable

from jaxtyping import Array, Float, PyTree


@runtime_checkable
class Head(Protocol):
    """What gives a trunk its modality, one end on each side. All exits of a model share it, and it is not looped.

    Any Equinox module with these two methods is a head; nothing has to be inherited.
    """

    def embed(self, *inputs: Any, **options: Any) -> tuple[Float[Array, "tokens dim"], Any]:
        """Inputs of one example → tokens for the trunk and conditioning for its layers (`None` for none). The one
        option is `key`, a PRNG key that turns dropout on, or `None`.
        """
        ...

    def __call__(self, state: Float[Array, "tokens dim"], conditioning: Any, /) -> PyTree[Array]:
        """State at any exit → prediction."""
        ...
