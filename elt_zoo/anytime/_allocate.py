from collections.abc import Sequence

import numpy as np
from jaxtyping import Float


class Allocations:
    """The best loops of every step for every total, from one dynamic programme.

    With gap (k, l) the cost of giving step k its l loops, it finds for each total the loops of least summed gap, in
    O(steps · total · L_max). Of equal ones it takes those with more loops at the last steps.

    **Fields:** `gaps`: of shape (steps, L_max), entry l − 1 of a row for l loops; `least`: the summed gap of the best
    loops, for every total from `steps` to `steps`·L_max.
    """

    gaps: Float[np.ndarray, "steps loops"]
    least: Float[np.ndarray, " totals"]

    def __init__(self, gaps: Sequence[Sequence[float]] | Float[np.ndarray, "steps loops"]):
        """**Arguments:** `gaps`: finite numbers, of any sign.

        **Raises:** `ValueError` for other shapes or values.
        """
        self.gaps = np.asarray(gaps, np.float64)
        if self.gaps.ndim != 2 or self.gaps.size == 0 or not np.isfinite(self.gaps).all():
            raise ValueError(
                f"`Allocations(gaps)` has shape {self.gaps.shape}: it needs a finite number for every step and every "
                "number of loops."
            )
        steps, most = self.gaps.shape
        best = np.full(steps * most + 1, np.inf)
        best[0] = 0.0
        choices = []
        for row in self.gaps:
            # Entry (l − 1, t): l loops at this step, t − l at those before.
            before = np.full((most, len(best)), np.inf)
            for loops in range(1, most + 1):
                before[loops - 1, loops:] = best[:-loops]
            candidates = before + row[:, None]
            choices.append(most - np.argmin(candidates[::-1], axis=0))
            best = candidates.min(axis=0)
        self._choices = np.stack(choices)
        self.least = best[steps:]

    def loops(self, total: int) -> tuple[int, ...]:
        """The best loops of every step, `total` in sum.

        **Raises:** `ValueError` for a total below the steps, or above L_max at each.
        """
        steps, most = self.gaps.shape
        if not steps <= total <= steps * most:
            raise ValueError(
                f"`Allocations.loops({total})`: {steps} steps of 1 to {most} loops take {steps} to {steps * most}."
            )
        loops = []
        for choices in self._choices[::-1]:
            loops.append(int(choices[total]))
            total -= loops[-1]
        return tuple(reversed(loops))


def cached_steps(steps: Sequence[int], every: int) -> tuple[int, ...]:
    """The numbers of steps that are worth running loops at every n-th step alone: all but the smallest, if they have
    more steps than that.
    """
    return tuple(count for count in steps if 1 < every < count and (count > min(steps) or len(steps) == 1))


def spread_out(loops: Sequence[int], steps: int, every: int) -> tuple[int, ...]:
    """Loops of every n-th step → of all steps, 0 at the others."""
    return tuple(loops[step // every] if step % every == 0 else 0 for step in range(steps))
