"""Pickles of tables with lists and NumPy arrays of bytes."""

import dataclasses
import math
from typing import Any, NamedTuple

import numpy as np

from ._pickle import AbstractVocabulary, PickledName, PickleError, read_pickle

_BYTES = ("u1", "|u1", "uint8")
_MAX_AXES = 8


class _Encoded(NamedTuple):
    """Bytes as Python 3 writes them for Python 2: a text to encode. Done late, as a pickle may ask for it often."""

    text: str


class _PickledType(NamedTuple):
    name: Any


@dataclasses.dataclass
class PickledArray:
    """An array of bytes in a pickle. Nothing of it has been checked before `read`."""

    state: Any = None

    def read(self) -> np.ndarray:
        """The array, uint8. It shares no memory with the pickle.

        **Raises:** `PickleError` if it is no array of bytes, or has more or fewer of them than its shape says.
        """
        match self.state:
            case (int(), tuple() as shape, _PickledType(name=str() as kind), fortran, str() | bytes() | _Encoded()):
                content = self.state[-1]
            case _:
                raise PickleError("its pickle holds an array without content.")
        if kind not in _BYTES:
            raise PickleError(f"its pickle holds an array of {kind[:20]!r}; only bytes ('u1') are read.")
        if len(shape) > _MAX_AXES or not all(type(size) is int and 0 <= size < 2**40 for size in shape):
            raise PickleError(f"its pickle holds an array of the impossible shape {str(shape)[:80]}.")
        text = content.text if isinstance(content, _Encoded) else content
        try:
            # Python 2 makes no difference between texts and bytes.
            data = text.encode("latin-1") if isinstance(text, str) else text
        except UnicodeEncodeError as error:
            raise PickleError("its pickle holds an array whose content is no string of bytes.") from error
        if math.prod(shape) != len(data):
            raise PickleError(f"its pickle holds an array of shape {shape}, but {len(data)} bytes.")
        return np.frombuffer(data, np.uint8).reshape(shape, order="F" if fortran is True else "C").copy()


class _NumPyVocabulary(AbstractVocabulary):
    names = frozenset(
        {
            ("numpy.core.multiarray", "_reconstruct"),
            ("numpy._core.multiarray", "_reconstruct"),
            ("numpy", "ndarray"),
            ("numpy", "dtype"),
            ("_codecs", "encode"),
        }
    )
    purpose = "tables, lists and arrays of bytes"

    def call(self, function: PickledName, arguments: tuple[Any, ...]) -> Any:
        match function.name, arguments:
            case "_reconstruct", _:
                return PickledArray()
            case "dtype", (name, *_):
                return _PickledType(name)
            case "encode", (str() as text, "latin1"):
                return _Encoded(text)
        raise TypeError(f"it calls {function.name} with other arguments than NumPy")

    def build(self, value: Any, state: Any) -> None:
        if isinstance(value, PickledArray):
            value.state = state


def read_numpy_pickle(content: bytes) -> Any:
    """Reads a pickle of plain data, protocol 4 or older, written by Python 2 or 3, without Python's unpickler: nothing
    is imported and nothing is called.

    **Arguments:** `content`: the bytes of the pickle.

    **Returns:** its tables, lists, texts and numbers, with a [`PickledArray`][elt_zoo.storage.PickledArray] for every
    array of bytes. Entries of tables whose keys are neither texts nor numbers are left out.

    **Raises:** `PickleError` if it is damaged, or asks for any name but those that NumPy needs for an array.
    """
    return read_pickle(content, _NumPyVocabulary())
