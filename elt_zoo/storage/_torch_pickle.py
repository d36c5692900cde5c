"""The pickles of `torch.save`, read without Python's unpickler: what is not listed here does not happen."""

import dataclasses
import pickletools
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

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
_MAX_OPERATIONS = 20_000_000
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_VALUES = set(
    "INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT STRING BINSTRING SHORT_BINSTRING UNICODE BINUNICODE "
    "SHORT_BINUNICODE BINUNICODE8 BINBYTES SHORT_BINBYTES BINBYTES8 BYTEARRAY8".split()
)
_TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_KNOWN = {
    ("collections", "OrderedDict"),
    ("argparse", "Namespace"),
    ("torch._utils", "_rebuild_tensor_v2"),
    ("torch._utils", "_rebuild_parameter"),
} | {("torch", name) for name in STORAGES}


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


class _Global(NamedTuple):
    module: str
    name: str


class _Other:
    """Stands for training arguments and the like."""


@dataclasses.dataclass
class _Machine:
    path: Path
    stack: list[Any] = dataclasses.field(default_factory=list)
    marks: list[int] = dataclasses.field(default_factory=list)
    memo: dict[int, Any] = dataclasses.field(default_factory=dict)

    def take(self, count: int) -> list[Any]:
        if count > len(self.stack) - (self.marks[-1] if self.marks else 0):
            raise ValueError("it takes more than it has put down")
        taken = self.stack[len(self.stack) - count :]
        del self.stack[len(self.stack) - count :]
        return taken

    def take_marked(self) -> list[Any]:
        mark = self.marks.pop()
        taken = self.stack[mark:]
        del self.stack[mark:]
        return taken


def read_pickle(path: Path, content: bytes) -> Any:
    """The tables, lists and tensors that a pickle describes.

    **Raises:** `WeightsError` if it is damaged, or asks for anything else, before that is looked up.
    """
    machine = _Machine(path)
    try:
        for count, (operation, argument, _) in enumerate(pickletools.genops(content)):
            if operation.name == "STOP":
                return machine.take(1)[0]
            if count > _MAX_OPERATIONS:
                raise ValueError("it is too long")
            _step(machine, operation.name, argument)
    except WeightsError:
        raise
    except Exception as error:  # `pickletools` raises almost anything for what is no pickle.
        raise WeightsError(f"{path}: its pickle is damaged: {error!r}"[:500]) from error
    raise WeightsError(f"{path}: its pickle is damaged: it does not end.")


def _step(machine: _Machine, operation: str, argument: Any) -> None:
    stack, memo = machine.stack, machine.memo
    match operation:
        case "PROTO" | "FRAME":
            pass
        case "MARK":
            machine.marks.append(len(stack))
        case _ if operation in _VALUES:
            stack.append(argument)
        case _ if operation in _CONSTANTS:
            stack.append(_CONSTANTS[operation])
        case _ if operation in _TUPLES:
            stack.append(tuple(machine.take(_TUPLES[operation])))
        case "TUPLE":
            stack.append(tuple(machine.take_marked()))
        case "EMPTY_LIST":
            stack.append([])
        case "LIST":
            stack.append(machine.take_marked())
        case "APPEND":
            (value,) = machine.take(1)
            _list(stack[-1]).append(value)
        case "APPENDS":
            values = machine.take_marked()
            _list(stack[-1]).extend(values)
        case "EMPTY_DICT":
            stack.append({})
        case "DICT":
            table: dict[Any, Any] = {}
            _set_items(table, machine.take_marked())
            stack.append(table)
        case "SETITEM":
            items = machine.take(2)
            _set_items(stack[-1], items)
        case "SETITEMS":
            items = machine.take_marked()
            _set_items(stack[-1], items)
        case "EMPTY_SET":
            stack.append(_Other())
        case "ADDITEMS":
            machine.take_marked()
        case "BINPUT" | "LONG_BINPUT" | "PUT":
            memo[argument] = stack[-1]
        case "MEMOIZE":
            memo[len(memo)] = stack[-1]
        case "BINGET" | "LONG_BINGET" | "GET":
            stack.append(memo[argument])
        case "GLOBAL":
            stack.append(_known(machine.path, *argument.split(" ", 1)))
        case "STACK_GLOBAL":
            stack.append(_known(machine.path, *machine.take(2)))
        case "BINPERSID":
            stack.append(_storage(machine.path, machine.take(1)[0]))
        case "REDUCE" | "NEWOBJ":
            function, arguments = machine.take(2)
            stack.append(_call(function, arguments))
        case "BUILD":
            # Attributes of objects, which are no tensors that a table holds.
            machine.take(1)
        case _:
            raise WeightsError(f"{machine.path}: its pickle uses {operation}, which PyTorch does not need for tensors.")


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise TypeError("it appends to what is no list")
    return value


def _set_items(table: Any, items: list[Any]) -> None:
    if not isinstance(table, dict) or len(items) % 2:
        raise TypeError("it puts entries into what is no table")
    for key, value in zip(items[::2], items[1::2], strict=True):
        # Others name no tensors, and the hash of a nested tuple takes time without end.
        if isinstance(key, str | int):
            table[key] = value


def _known(path: Path, module: Any, name: Any) -> _Global:
    if (module, name) not in _KNOWN:
        raise WeightsError(
            f"{path}: its pickle asks for {str(module)[:80]}.{str(name)[:80]}, which could run code, so the file is "
            "refused. Only plain tensors in tables are read: save a `state_dict()`, or better a safetensors file."
        )
    return _Global(module, name)


def _storage(path: Path, identity: Any) -> PickledStorage:
    if isinstance(identity, tuple) and len(identity) == 5 and identity[0] == "storage":
        _, kind, key, _, size = identity
        if isinstance(kind, _Global) and kind.name in STORAGES and isinstance(key, str) and type(size) is int:
            return PickledStorage(key, STORAGES[kind.name], size)
    raise WeightsError(f"{path}: its pickle refers to an unknown kind of storage.")


def _call(function: Any, arguments: Any) -> Any:
    if not isinstance(function, _Global) or not isinstance(arguments, tuple):
        raise TypeError("it calls what is no function")
    match function.name:
        case "_rebuild_tensor_v2":
            storage, offset, shape, strides = arguments[:4]
            return PickledTensor(storage, offset, shape, strides)
        case "_rebuild_parameter":
            return arguments[0]
        case "OrderedDict":
            table: dict[Any, Any] = {}
            for pair in arguments[0] if arguments else ():
                _set_items(table, list(pair))
            return table
        case "Namespace":
            return _Other()
    raise TypeError(f"it calls {function.name}")
