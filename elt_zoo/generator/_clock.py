import math
import time
from collections.abc import Callable


class Clock:
    """The time of a call that samples batch after batch, each of which gets an even share of what is left."""

    def __init__(self, seconds: float, *, batches: int, now: Callable[[], float] = time.perf_counter):
        """**Arguments:** `seconds`: from now on; `batches`: that will be sampled; `now`: the time, in seconds."""
        self._now = now
        self._end = now() + seconds
        self._batches = batches

    def batch(self, number: int, steps: int) -> Callable[[int], int]:
        """How many steps of batch `number`, which starts now, fit before its last: a function of those that are done.

        A step is taken to be as long as those before it were on average, and the last one, with decoding, as long as
        two. The first step is taken alone, to time it, and then half of those that would fit, so that the clock is
        looked at again while there is a choice.
        """
        start = self._now()
        share = (self._end - start) / (self._batches - number)

        def fits(done: int) -> int:
            spent = self._now() - start
            if spent >= share:
                return 0
            each = spent / done if done else share / (steps + 1)
            left = math.floor((share - spent) / each) - 2
            return -(-left // 2) if done else min(left, 1)

        return fits
