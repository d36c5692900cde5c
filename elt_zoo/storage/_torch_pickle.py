"""The pickles of `torch.save`."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ._pickle import AbstractVocabulary, Ignored, PickledName, PickleError, set_items
from ._pickle import read_pickle as read
from ._tensor_file import BFLOAT16, WeightsError

STORAGES = {
    "DoubleStorage": np.dtype("<f8"),
    "FloatStorage": np.dtype("<f4"),
    "HalfStorage": np.dtype("<f2"),
    "BFloat16Storage": BFLOAT16,
    "LongStorage": np.dtype("<i8"),
    "IntStorage": np.dtype("<i4"),
    "ShortStorage": np.dtype("<i2"),
    "CharStorage": np.dtype("i1"),
    "ByteStorage": np.dtype("u1"),
    "BoolStorage": np.dtype("?"),
}


class PickledStorage(NamedTuple):
    """The numbers that tensors are views of: the name of their entry, their type and how many they are."""

    key: str
    dtype: np.dtype
    size: int


class PickledTensor(NamedTuple):
    """A view of a storage. Nothing but the storage's type has been checked."""

    storage: PickledStorage
    offset: Any
    shape: Any
    strides: Any


class _TorchVocabulary(AbstractVocabulary):
    names = frozenset(
        {
            ("collections", "OrderedDict"),
            ("argparse", "Namespace"),
            ("torch._utils", "_rebuild_tensor_v2"),
            ("torch._utils", "_rebuild_parameter"),
            *(("torch", name) for name in STORAGES),
        }
    )
    purpose = "plain tensors in tables"

    def call(self, function: PickledName, arguments: tuple[Any, ...]) -> Any:
        match function.name:
            case "_rebuild_tensor_v2":
                storage, offset, shape, strides = arguments[:4]
                return PickledTensor(storage, offset, shape, strides)
            case "_rebuild_parameter":
                return arguments[0]
            case "OrderedDict":
                table: dict[Any, Any] = {}
                for pair in arguments[0] if arguments else ():
                    set_items(table, list(pair))
                return table
            case "Namespace":
                return Ignored()
        raise TypeError(f"it calls {function.name}")

    def build(self, value: Any, state: Any) -> None:
        """Attributes of objects are no tensors that a table holds."""

    def persistent(self, identity: Any) -> PickledStorage:
        if isinstance(identity, tuple) and len(identity) == 5 and identity[0] == "storage":
            _, kind, key, _, size = identity
            if isinstance(kind, PickledName) and kind.name in STORAGES and isinstance(key, str) and type(size) is int:
                return PickledStorage(key, STORAGES[kind.name], size)
        raise PickleError("its pickle refers to an unknown kind of storage.")


def read_pickle(path: Path, content: bytes) -> Any:
    """The tables, lists and tensors that a pickle describes.

    **Raises:** `WeightsError` if it is damaged, or asks for anything else, before that is looked up.
    """
    try:
        return read(content, _TorchVocabulary())
    except PickleError as error:
        advice = " Save a `state_dict()`, or better a safetensors file." if "which could run code" in str(error) else ""
        raise WeightsError(f"{path}: {error}{advice}") from error
