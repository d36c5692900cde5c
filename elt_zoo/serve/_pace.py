import collections

import numpy as np

_BATCHES = 100
_SECONDS = 30.0
_SHARE = 0.9


class Pace:
    """How many times as long as they should batches took of late: a machine has other things to do now and then.

    Nine of ten of the last hundred batches, and of the last half minute, took at most so long; 1 where that is less.
    """

    def __init__(self):
        self._ratios: collections.deque[tuple[float, float]] = collections.deque(maxlen=_BATCHES)

    def observe(self, now: float, ratio: float) -> None:
        """Takes note of a batch that has ended.

        **Arguments:** `now`: seconds; `ratio`: what it took, over what it should have taken at most.
        """
        self._ratios.append((now, ratio))

    def at(self, now: float) -> float:
        """The pace of what begins now, at least 1."""
        while self._ratios and self._ratios[0][0] < now - _SECONDS:
            self._ratios.popleft()
        ratios = [ratio for _, ratio in self._ratios]
        return max(float(np.quantile(ratios, _SHARE)), 1.0) if ratios else 1.0
