from typing import Any, Protocol, runtime_checkable


@runtime_checkable
class SamplingPlan(Protocol):
    """How to sample, as a planner chose it."""

    @property
    def steps(self) -> int:
        """Sampling steps."""
        ...

    @property
    def budget(self) -> Any:
        """The loops of every step, as a sampler takes them."""
        ...

    @property
    def guidance(self) -> float:
        """The scale of guidance."""
        ...


@runtime_checkable
class Planner(Protocol):
    """What chooses how to sample in a given time, such as an [`anytime.Planner`][elt_zoo.anytime.Planner]."""

    @property
    def batches(self) -> tuple[int, ...]:
        """The batch sizes whose time it knows, rising."""
        ...

    def plan(self, milliseconds: float, *, batch: int) -> SamplingPlan:
        """The best way to sample one batch in so many milliseconds.

        **Raises:** `ValueError` if there is none.
        """
        ...

    def check(self, generator: Any) -> None:
        """**Raises:** `ValueError` if it was made for another generator."""
        ...
