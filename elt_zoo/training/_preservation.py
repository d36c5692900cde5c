import dataclasses
import datetime
from collections.abc import Mapping
from typing import Any

import orbax.checkpoint as ocp


@dataclasses.dataclass
class _Saved:
    """A checkpoint as Orbax's policies want to know it."""

    step: int
    time: datetime.datetime
    metrics: dict[str, Any] | None = None


@dataclasses.dataclass(frozen=True)
class Preservation:
    """Which checkpoints stay, by Orbax's preservation policies: the newest `keep`, the multiples of `every_steps`, and
    the first one and from then on one every `every_hours`.
    """

    keep: int
    every_steps: int | None = None
    every_hours: float | None = None

    def to_remove(self, times: Mapping[int, datetime.datetime]) -> list[int]:
        """The steps of the checkpoints that no rule keeps.

        **Arguments:** `times`: when each was saved, by step, in UTC.
        """
        rules = ocp.checkpoint_managers
        kept: list[ocp.checkpoint_managers.PreservationPolicy] = [rules.LatestN(self.keep)]
        if self.every_steps is not None:
            kept.append(rules.EveryNSteps(self.every_steps))
        if self.every_hours is not None:
            kept.append(rules.EveryNSeconds(max(round(3600 * self.every_hours), 1)))
        saved = [_Saved(step, time) for step, time in sorted(times.items())]
        preserved = rules.AnyPreservationPolicy(kept).should_preserve(saved, context=rules.PreservationContext())
        return [one.step for one, stays in zip(saved, preserved, strict=True) if not stays]
