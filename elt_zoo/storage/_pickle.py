"""Pickles read without Python's unpickler: what is not listed here does not happen."""

import abc
import dataclasses
import pickletools
from typing import Any, ClassVar, NamedTuple

_MAX_OPERATIONS = 20_000_000
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_VALUES = set(
    "INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT STRING BINSTRING SHORT_BINSTRING UNICODE BINUNICODE "
    "SHORT_BINUNICODE BINUNICODE8 BINBYTES SHORT_BINBYTES BINBYTES8 BYTEARRAY8".split()
)
_TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class PickleError(ValueError):
    """A pickle is damaged, or asks for something that is not allowed. Nothing of it was executed."""


class PickledName(NamedTuple):
    """A class or function that a pickle asks for. It is never looked up."""

    module: str
    name: str


class AbstractVocabulary(abc.ABC):
    """The names that the pickles of one program may use, and what each stands for here."""

    names: ClassVar[frozenset[tuple[str, str]]]
    """Modules and names. Any other is refused before it is looked up."""
    purpose: ClassVar[str]
    """What the pickles are read for, to end the message of a refusal."""

    @abc.abstractmethod
    def call(self, function: PickledName, arguments: tuple[Any, ...]) -> Any:
        """What a call of a known name stands for. It takes constant time: pickles may repeat it without end."""

    @abc.abstractmethod
    def build(self, value: Any, state: Any) -> None:
        """Gives an object its state, or ignores that. It takes constant time, too."""

    def persistent(self, identity: Any) -> Any:
        """What a reference to something outside the pickle stands for."""
        raise PickleError("its pickle refers to what lies outside of it.")


class Ignored:
    """Stands for what is no part of the data, such as training arguments."""


@dataclasses.dataclass
class _Machine:
    vocabulary: AbstractVocabulary
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


def read_pickle(content: bytes, vocabulary: AbstractVocabulary) -> Any:
    """The tables, lists, numbers and texts that a pickle describes, and what its vocabulary makes of names.

    **Raises:** `PickleError` if it is damaged, or asks for anything else, before that is looked up.
    """
    machine = _Machine(vocabulary)
    try:
        for count, (operation, argument, _) in enumerate(pickletools.genops(content)):
            if operation.name == "STOP":
                return machine.take(1)[0]
            if count > _MAX_OPERATIONS:
                raise ValueError("it is too long")
            _step(machine, operation.name, argument)
    except PickleError:
        raise
    except Exception as error:  # `pickletools` raises almost anything for what is no pickle.
        raise PickleError(f"its pickle is damaged: {error!r}"[:300]) from error
    raise PickleError("its pickle is damaged: it does not end.")


def _step(machine: _Machine, operation: str, argument: Any) -> None:
    stack, memo, vocabulary = machine.stack, machine.memo, machine.vocabulary
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
            set_items(table, machine.take_marked())
            stack.append(table)
        case "SETITEM":
            items = machine.take(2)
            set_items(stack[-1], items)
        case "SETITEMS":
            items = machine.take_marked()
            set_items(stack[-1], items)
        case "EMPTY_SET":
            stack.append(Ignored())
        case "ADDITEMS":
            machine.take_marked()
        case "BINPUT" | "LONG_BINPUT" | "PUT":
            memo[argument] = stack[-1]
        case "MEMOIZE":
            memo[len(memo)] = stack[-1]
        case "BINGET" | "LONG_BINGET" | "GET":
            stack.append(memo[argument])
        case "GLOBAL":
            stack.append(_known(vocabulary, *argument.split(" ", 1)))
        case "STACK_GLOBAL":
            stack.append(_known(vocabulary, *machine.take(2)))
        case "BINPERSID":
            stack.append(vocabulary.persistent(machine.take(1)[0]))
        case "REDUCE" | "NEWOBJ":
            function, arguments = machine.take(2)
            if not isinstance(function, PickledName) or not isinstance(arguments, tuple):
                raise TypeError("it calls what is no function")
            stack.append(vocabulary.call(function, arguments))
        case "BUILD":
            (state,) = machine.take(1)
            vocabulary.build(stack[-1], state)
        case _:
            raise PickleError(f"its pickle uses {operation}, which {vocabulary.purpose} do not need.")


def set_items(table: Any, items: list[Any]) -> None:
    """Puts keys and values, in turn, into a table. Keys that are neither texts nor numbers are left out."""
    if not isinstance(table, dict) or len(items) % 2:
        raise TypeError("it puts entries into what is no table")
    for key, value in zip(items[::2], items[1::2], strict=True):
        # Others name nothing, and the hash of a nested tuple takes time without end.
        if isinstance(key, str | int):
            table[key] = value


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise TypeError("it appends to what is no list")
    return value


def _known(vocabulary: AbstractVocabulary, module: Any, name: Any) -> PickledName:
    if not isinstance(module, str) or not isinstance(name, str) or (module, name) not in vocabulary.names:
        raise PickleError(
            f"its pickle asks for {str(module)[:80]}.{str(name)[:80]}, which could run code, so the file is refused. "
            f"Only {vocabulary.purpose} are read."
        )
    return PickledName(module, name)
