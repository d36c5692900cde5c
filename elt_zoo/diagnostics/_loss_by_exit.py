import dataclasses

import numpy as np
from jaxtyping import Array, Float

from .._checks import checked
from ._sums import table


@dataclasses.dataclass(frozen=True)
class LossByExit:
    """The loss of every exit, within and beyond the loops of training. `str` of it is a table.

    **Fields:** `losses`: of exits 1, 2, …, as [`held_out_losses`][elt_zoo.diagnostics.held_out_losses] measures them,
    usually up to 2·L_max; `max_loops`: L_max.
    """

    losses: tuple[float, ...]
    max_loops: int

    @classmethod
    @checked
    def of(cls, losses: Float[Array, " loops"] | Float[np.ndarray, " loops"], *, max_loops: int) -> "LossByExit":
        """**Arguments:** `losses`: of exits 1, 2, …, more of them than `max_loops`; `max_loops`: L_max.

        **Raises:** `ValueError` if no loss is beyond L_max.
        """
        if not 1 <= max_loops < len(losses):
            raise ValueError(
                f"`LossByExit.of(max_loops={max_loops})` got the losses of {len(losses)} exits, none past L_max: "
                f"measure more, such as `exit_losses(…, loops={2 * max(max_loops, 1)})`."
            )
        return cls(tuple(np.asarray(losses).tolist()), max_loops)

    @property
    def best_exit(self) -> int:
        """The exit with the least loss, counted from 1."""
        return int(np.nanargmin(self.losses)) + 1

    @property
    def trained_loss(self) -> float:
        """The loss at L_max."""
        return self.losses[self.max_loops - 1]

    @property
    def degradation(self) -> float:
        """The largest loss beyond L_max relative to the loss at L_max: 0.05 is five percent more, a negative value
        means that the loss keeps falling.
        """
        return float(np.max(self.losses[self.max_loops :])) / self.trained_loss - 1.0

    def degrades(self, tolerance: float = 0.01) -> bool:
        """Whether an exit beyond L_max is worse than L_max by more than `tolerance`, or its loss is not a number."""
        return not self.degradation <= tolerance

    def __str__(self) -> str:
        rows = []
        for loops, loss in enumerate(self.losses, start=1):
            marks = ["best"] * (loops == self.best_exit) + ["L_max"] * (loops == self.max_loops)
            rows.append((str(loops), f"{loss:.4f}", f"{loss / self.trained_loss - 1:+.1%}", ", ".join(marks)))
        return table(("exit", "loss", "against L_max", ""), rows)
