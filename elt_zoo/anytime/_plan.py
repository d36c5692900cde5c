import dataclasses

from jaxtyping import Array, Int

from ..sampling import table_budget


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """How to sample in a given time, with what that should take and give. `str` of it is a line.

    **Fields:**

    - `batch`: samples at a time.
    - `steps`: sampling steps.
    - `loops`: of each step; 0 where it takes over what the loops of the last one added.
    - `guidance`: the scale; 1 is none.
    - `milliseconds`: the predicted median time of a call that samples one batch.
    - `late_milliseconds`: the time that one call in 200 is predicted to exceed. It is within the budget.
    - `quality`: the predicted distance; lower is better.
    - `error`: the standard error of `quality`; `None` if it is not known.
    - `measure`: the name of the distance.
    """

    batch: int
    steps: int
    loops: tuple[int, ...]
    guidance: float
    milliseconds: float
    late_milliseconds: float
    quality: float
    error: float | None
    measure: str

    @property
    def budget(self) -> Int[Array, " steps"]:
        """The loops as [`Generator.sample`][elt_zoo.Generator.sample] takes them."""
        return table_budget(self.loops)

    def __str__(self) -> str:
        return (
            f"{self.steps} steps of {loops_text(self.loops)} loops: {self.milliseconds:.3g} ms "
            f"(one in 200 over {self.late_milliseconds:.3g} ms), {self.measure} {quality_text(self)}"
        )


def loops_text(loops: tuple[int, ...]) -> str:
    """Runs of equal counts in short: 1×3 2×5 is three steps of one loop, then five of two."""
    runs: list[list[int]] = []
    for count in loops:
        if runs and runs[-1][0] == count:
            runs[-1][1] += 1
        else:
            runs.append([count, 1])
    return " ".join(f"{count}×{times}" if times > 1 else str(count) for count, times in runs)


def quality_text(plan: Plan) -> str:
    """The predicted quality with its standard error."""
    return f"{plan.quality:.4g}" if plan.error is None else f"{plan.quality:.3f} ± {plan.error:.3f}"
