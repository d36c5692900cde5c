from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool


def pareto_front(costs: Sequence[float], figures: Sequence[float]) -> Bool[np.ndarray, " points"]:
    """Marks the points of the Pareto front. A point is on it unless another point is at least as good in both cost and
    figure, and better in one of them.

    **Arguments:** `costs`: lower is better, such as FLOPs per sample; `figures`: one for each cost, lower is better,
    such as FID (negate a score where higher is better).

    **Returns:** `True` for the points of the front, in the order given. Equal points are all on it or all off it.

    **Raises:** `ValueError` for unequal numbers, or values that are not numbers.
    """
    if len(costs) != len(figures):
        raise ValueError(f"`pareto_front` got {len(costs)} costs and {len(figures)} figures; a point has one of each.")
    if np.isnan(costs).any() or np.isnan(figures).any():
        raise ValueError("`pareto_front` got values that are not numbers, which are neither better nor worse.")
    front = np.zeros(len(costs), bool)
    best, best_cost = np.inf, np.nan
    # By cost, then by figure: a point is on the front if it beats all cheaper points or equals the last that did.
    for index in np.lexsort((figures, costs)):
        if figures[index] < best:
            best, best_cost = figures[index], costs[index]
            front[index] = True
        elif figures[index] == best and costs[index] == best_cost:
            front[index] = True
    return front
