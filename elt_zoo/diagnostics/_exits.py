import abc
from typing import ClassVar, NamedTuple

import numpy as np
from jaxtyping import Array, Float

from ._sums import AbstractSums, table


class ExitColumn(NamedTuple):
    """One measure of the exits, as a column of a table."""

    name: str
    """The column's name in `rows`."""
    title: str
    """The column's title in the printed table."""
    values: Float[Array, " exits"]
    """A value for each exit, or for each exit but the first if it compares an exit with the one before."""
    form: str
    """How a value is printed, such as `".1%"`."""
    curve: str | None = None
    """The legend of its curve in a plot of the shares; `None` if it has no curve."""


class AbstractExits(AbstractSums):
    """What the exits of a model say about the same corrupted examples, and what each loop changes.

    A subclass has sums as its fields and says in `columns` what follows from them. `a + b` merges two batches, `rows`
    is a table for files, `str` one to print.
    """

    share_of: ClassVar[str]
    """What the shares are shares of, such as "masked tokens"."""

    @abc.abstractmethod
    def columns(self) -> list[ExitColumn]:
        """The measures, in the order of the table."""

    def rows(self) -> list[dict[str, int | float | None]]:
        """One row for each exit: `exit`, counted from 1, and the columns by name. The first exit has `None` where a
        column compares with the exit before.
        """
        columns = self._padded()
        return [
            {"exit": index + 1} | {column.name: values[index] for column, values in columns}
            for index in range(len(columns[0][1]))
        ]

    def __str__(self) -> str:
        columns = self._padded()
        rows = [
            [str(index + 1)]
            + ["" if values[index] is None else format(values[index], column.form) for column, values in columns]
            for index in range(len(columns[0][1]))
        ]
        return table(["exit", *(column.title for column, _ in columns)], rows)

    def _padded(self) -> list[tuple[ExitColumn, list[float | None]]]:
        """The columns, each with a value or `None` for every exit."""
        columns = [(column, np.asarray(column.values).tolist()) for column in self.columns()]
        exits = max(len(values) for _, values in columns)
        return [(column, [None] * (exits - len(values)) + values) for column, values in columns]
