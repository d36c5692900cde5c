from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool


def pareto_front(costs: Sequence[float], figures: Sequence[float]) -> Bool[np.ndarray, " points"]:
    """Which points are worth having: no other point costs no more and is no worse, and better in one of the two.

    **Arguments:** `costs`: lower is better, such as FLOPs per sample; `figures`: lower is better, such as FID (negate
    what should be high), one for each cost.

    **Returns:** `True` for the points of the front, in the order given. Of equal points all are on it, or none.

    **Raises:** `ValueError` for unequal numbers, or values that are not numbers.
    """
    if len(costs) != len(figures):
        raise ValueError(f"`pareto_front` got {len(costs)} costs and {len(figures)} figures; a point has one of each.")
    if np.isnan(costs).any() or np.isnan(figures).any():
        raise ValueError("`pareto_front` got values that are not numbers, which are neither better nor worse.")
    front = np.zeros(len(costs), bool)
    best, best_cost = np.inf, np.nan
    # By cost, the better figure first: on the front is what beats all cheaper points, or equals the last that did.
    for index in np.lexsort((figures, costs)):
        if figures[index] < best:
            best, best_cost = figures[index], costs[index]
            front[index] = True
        elif figures[index] == best and costs[index] == best_cost:
            front[index] = True
    return front
