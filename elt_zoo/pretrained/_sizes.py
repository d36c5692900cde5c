"""Sizes of a network, read off the names and shapes of a file's tensors."""

import contextlib
import re
from collections.abc import Iterator

from ..storage import TensorFile, WeightsError


def count_parts(file: TensorFile, pattern: str) -> int:
    """How many parts a list has, by the numbers in the names of its tensors (the group of the pattern). Parts are
    counted: a large number in a name makes no large network.
    """
    return len({match[1] for name in file if (match := re.match(pattern, name))})


@contextlib.contextmanager
def sizes_of(file: TensorFile) -> Iterator[None]:
    """Makes a config that refuses the sizes of a file an error of the file.

    **Raises:** `WeightsError` in place of `ValueError`.
    """
    try:
        yield
    except (ValueError, TypeError, ArithmeticError) as error:
        raise WeightsError(f"{file.path}: no network has the sizes of its tensors: {error}") from error
