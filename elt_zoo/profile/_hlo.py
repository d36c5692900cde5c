"""What XLA's text of a compiled program says: its computations, and how often each of them runs."""

import math
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

ENTRY = "ENTRY"
"""The name under which `computations` has the program's entry."""

_OPENS = re.compile(r"^(ENTRY )?%?([\w.\-]+) .*\{$")
_ASSIGNS = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*)$")
_CALLED = re.compile(r"(?:to_apply|calls|body|condition|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_ARRAY = re.compile(r"\b(pred|[a-z]+(\d+)\w*)\[([\d,]*)\]")
_TRIPS = re.compile(r'known_trip_count":\{"n":"(\d+)"')


class Instruction(NamedTuple):
    """One line of a program.

    **Fields:** `name`; `type`: of its result, as XLA writes it; `operation`, such as "all-gather" or "fusion";
    `inside`: the text in its brackets; `rest`: the text after them.
    """

    name: str
    type: str
    operation: str
    inside: str
    rest: str

    @property
    def operands(self) -> tuple[str, ...]:
        """The instructions of its computation that it reads."""
        return tuple(re.findall(r"%([\w.\-]+)", self.inside))

    @property
    def called(self) -> tuple[str, ...]:
        """The computations that it runs. The end of an asynchronous operation names again what its start has run."""
        if self.operation.endswith(("-done", "-update")):
            return ()
        branches = [name.strip(" %") for names in _BRANCHES.findall(self.rest) for name in names.split(",")]
        return (*_CALLED.findall(self.rest), *branches)


Computations = Mapping[str, list[Instruction]]


def computations(text: str) -> Computations:
    """The computations of a program by their names, in the order of its text."""
    found: dict[str, list[Instruction]] = {}
    current: list[Instruction] = []
    for line in text.splitlines():
        if opened := _OPENS.match(line):
            current = found.setdefault(ENTRY if opened[1] else opened[2], [])
        elif assigned := _ASSIGNS.match(line):
            current.append(_instruction(assigned[1], assigned[2]))
    return found


def _instruction(name: str, text: str) -> Instruction:
    text = re.sub(r"/\*.*?\*/", "", text)
    end = _closing(text, 0) + 1 if text.startswith("(") else text.index(" ")
    type_, text = text[:end], text[end:].lstrip()
    opens = text.index("(")
    closes = _closing(text, opens)
    return Instruction(name, type_, text[:opens], text[opens + 1 : closes], text[closes + 1 :])


def _closing(text: str, start: int) -> int:
    """The index of the bracket that closes the one at `start`."""
    depth = 0
    for index in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[index], 0)
        if depth == 0:
            return index
    raise ValueError(f"A bracket is not closed in {text[start : start + 80]!r}.")


def type_bytes(type_: str) -> int:
    """Memory of the arrays of a type, such as `f32[8,128]{1,0}` or a tuple of them, without padding."""
    without_layouts = re.sub(r"\{[^}]*\}", "", type_)
    return sum(
        math.prod(map(int, filter(None, sizes.split(",")))) * (8 if kind == "pred" else int(bits)) // 8
        for kind, bits, sizes in _ARRAY.findall(without_layouts)
    )


def executed(program: Computations, name: str = ENTRY, times: int = 1) -> Iterator[tuple[Instruction, str, int]]:
    """Every instruction that runs, with its computation and how often: in the body of a loop as often as the loop
    goes round, once where that is not known before the program runs; and all branches of a conditional.
    """
    for instruction in program.get(name, ()):
        yield instruction, name, times
        inner = times * (trips(program, instruction) or 1) if instruction.operation == "while" else times
        for called in instruction.called:
            yield from executed(program, called, inner)


def trips(program: Computations, loop: Instruction) -> int | None:
    """How often the body of a `while` runs; `None` where the program's text does not tell."""
    if known := _TRIPS.search(loop.rest):
        return int(known[1])
    # The TPU compiler writes no count. The loops of a `jax.lax.scan` count from 0, while below a constant.
    condition = re.search(r"condition=%?([\w.\-]+)", loop.rest)
    inside = list(program.get(condition[1], ())) if condition else []
    if not inside or inside[-1].operation != "compare" or "direction=LT" not in inside[-1].rest:
        return None
    limits = {each.name: each.inside for each in inside if each.operation == "constant"}
    return next((int(limits[name]) for name in inside[-1].operands if name in limits), None)
