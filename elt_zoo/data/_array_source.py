import numpy as np
from jaxtyping import Int

from ._batches import Batch
from ._source import AbstractSource, Visit


class ArraySource(AbstractSource):
    """Arrays in memory as a source of [`Batch`][elt_zoo.data.Batch] entries without the batch axis."""

    batched = True
    in_memory = True

    def __init__(
        self,
        examples: np.ndarray,
        labels: Int[np.ndarray, " examples"],
        class_names: tuple[str, ...] | None = None,
    ):
        """**Arguments:** `examples`, `labels`: arrays of equal length; `class_names`: by default "0", "1", … up to the
        largest label.

        **Raises:** `ValueError` if there are no examples, or not one label per example.
        """
        if len(examples) == 0 or len(examples) != len(labels):
            raise ValueError(
                f"`ArraySource` got {len(examples)} examples and {len(labels)} labels; it needs one label each."
            )
        self._examples = examples
        self._labels = labels
        self.class_names = tuple(map(str, range(int(labels.max()) + 1))) if class_names is None else class_names

    def __len__(self) -> int:
        return len(self._labels)

    def read(self, visit: Visit) -> Batch:
        """Returns one example and its label."""
        return Batch(self._examples[visit.index], self._labels[visit.index])

    def read_batch(self, visits: list[Visit]) -> Batch:
        """Returns several examples, stacked."""
        rows = [visit.index for visit in visits]
        return Batch(self._examples[rows], self._labels[rows])

    def name(self, index: int) -> str:
        """Returns "example" and its number."""
        return f"example {index}"
