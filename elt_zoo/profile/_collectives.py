import dataclasses
from collections import defaultdict

from ._hlo import Instruction, computations, executed, type_bytes

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Collective:
    """The collectives of one kind that a compiled program executes.

    **Fields:**

    - `kind`: "all-gather", "all-reduce", "reduce-scatter", "all-to-all" or "collective-permute".
    - `count`: how many the program executes: in a loop one for each time round, and one where the number of loops is
      known only when the program runs.
    - `arrays`: how many arrays they move; XLA joins small ones into one collective.
    - `size`: bytes of these arrays on one chip: what all-gathers return and reduce-scatters take, so the whole arrays.
    """

    kind: str
    count: int
    arrays: int
    size: int


def collectives_of(text: str) -> tuple[Collective, ...]:
    """The collectives that a program executes, by kind.

    **Arguments:** `text`: of the compiled program, as `jax.stages.Compiled.as_text` returns it.
    """
    program = computations(text)
    types = {name: {each.name: each.type for each in body} for name, body in program.items()}
    found: dict[str, list[tuple[int, int, int]]] = defaultdict(list)
    for instruction, where, times in executed(program):
        if is_collective(instruction):
            kind = instruction.operation.removesuffix("-start")
            operands = [types[where][name] for name in instruction.operands]
            found[_meant(kind, where)].append((times, len(operands), _size(instruction, operands)))
    return tuple(
        Collective(
            kind=kind,
            count=sum(times for times, _, _ in found[kind]),
            arrays=sum(times * arrays for times, arrays, _ in found[kind]),
            size=sum(times * size for times, _, size in found[kind]),
        )
        for kind in KINDS
        if kind in found
    )


def _meant(kind: str, computation: str) -> str:
    # The TPU compiler writes a reduce-scatter as an all-reduce and a slice in a computation of this name.
    return "reduce-scatter" if kind == "all-reduce" and computation.startswith("all-reduce-scatter") else kind


def _size(instruction: Instruction, operands: list[str]) -> int:
    given, returned = sum(map(type_bytes, operands)), type_bytes(instruction.type)
    if instruction.operation in ("all-gather-start", "collective-permute-start"):
        returned -= given  # the result of these holds their operands as well
    return max(given, returned)


def is_collective(instruction: Instruction) -> bool:
    """Whether an instruction begins to move arrays between devices."""
    return instruction.operation.removesuffix("-start") in KINDS
