import dataclasses
import itertools
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..sampling import LoopBudget, Loops, linear_budget
from ..storage import foreign_entries, read_json, write_json
from ..training import config_differences

_BRANCH = r"\d+(?:-\d+)?"
_LOOPS = re.compile(rf"{_BRANCH}(?:/{_BRANCH})?")
_PROTOCOL = "protocol.json"


@dataclasses.dataclass(frozen=True)
class Cell:
    """One way to sample: `loops` as the command line spells them, sampling steps, the scale of guidance (1 is none)."""

    loops: str
    steps: int
    guidance: float

    def __post_init__(self):
        if self.steps < 1:
            raise ValueError(f"`--steps {self.steps}` must be at least 1.")
        if not math.isfinite(self.guidance):
            raise ValueError(f"`--guidance {self.guidance}` must be a finite number; 1 is no guidance.")
        if re.search(r"(?<!\d)0+(?!\d)", self.loops):
            raise ValueError(f"`--loops {self.loops}` asks for no loop at all: use at least 1.")
        if not _LOOPS.fullmatch(self.loops):
            raise ValueError(
                f"`--loops {self.loops}` is no loop schedule: 4 is a count, 1-4 a ramp from the first sampling step to "
                "the last, 4/1 loops of the conditional and of the unconditional branch (either may be a ramp)."
            )
        if "/" in self.loops and not self.guided:
            raise ValueError(
                f"`--loops {self.loops}` gives loops to the unconditional branch, which is never run without guidance "
                "(scale 1). Set `--guidance`, or measure the two in grids of their own."
            )

    @property
    def guided(self) -> bool:
        """At scale 1 guidance is the conditional prediction alone, and the other branch is not run."""
        return self.guidance != 1.0

    @property
    def key(self) -> str:
        """The cell in a file's name."""
        return f"loops{self.loops.replace('/', '_')}-steps{self.steps}-guidance{self.guidance:g}"

    @property
    def budget(self) -> Loops:
        """What the sampler takes: arrays of counts, so that all cells of equal steps share one compiled program."""
        branches = []
        for branch in self.loops.split("/"):
            start, _, stop = branch.partition("-")
            branches.append(linear_budget(int(start), int(stop or start), self.steps))
        return branches[0] if len(branches) == 1 else LoopBudget(*branches)


def grid(loops: Sequence[str], steps: Sequence[int], guidance: Sequence[float]) -> list[Cell]:
    """Every combination once, loops changing fastest: they share a program."""
    cells = itertools.product(steps, guidance, loops)
    return list(dict.fromkeys(Cell(schedule, count, scale) for count, scale, schedule in cells))


class CellStore:
    """The measured cells of one protocol: a JSON file for each, in the folder `cells`.

    A folder belongs to one protocol. Files are whole or not there at all, so a run may stop at any time.
    """

    def __init__(self, folder: Path, protocol: Mapping[str, Any]):
        """**Arguments:** `folder`: created if missing; `protocol`: all that must be equal for cells to be compared, of
        JSON's types.

        **Raises:** `ValueError` if the folder holds cells of another protocol, with every difference, or other files.
        """
        self.check(folder, protocol)
        self.folder = folder
        self.protocol = json.loads(json.dumps(protocol))
        (folder / "cells").mkdir(parents=True, exist_ok=True)
        if not (folder / _PROTOCOL).exists():
            write_json(folder / _PROTOCOL, self.protocol)

    @staticmethod
    def check(folder: Path, protocol: Mapping[str, Any] | None = None) -> None:
        """Refuses a folder that `CellStore` would refuse, and changes nothing. Without a protocol, any will do."""
        file = folder / _PROTOCOL
        if file.exists():
            given = None if protocol is None else json.loads(json.dumps(protocol))
            if given is not None and (differences := config_differences(read_json(file), given)):
                raise ValueError(
                    f"{folder} holds an evaluation under another protocol, which differs in:\n  "
                    + "\n  ".join(differences)
                    + "\nMeasures of both do not compare. Use the same settings to go on with it, or another `--out`. "
                    "Nothing was changed."
                )
        elif set(foreign_entries(folder)) - {"cells"}:
            raise ValueError(
                f"{folder} is not empty and holds no evaluation. Choose another `--out`; nothing was changed."
            )

    def __contains__(self, cell: Cell) -> bool:
        return self._file(cell).exists()

    def write(self, cell: Cell, result: Mapping[str, Any]) -> None:
        """Saves what was measured, with the cell and the protocol."""
        write_json(self._file(cell), {"cell": dataclasses.asdict(cell), **result, "protocol": self.protocol})

    def read(self) -> Iterator[dict[str, Any]]:
        """All measured cells, those of earlier grids too, by steps, guidance and name.

        **Raises:** `ValueError` for a damaged file.
        """
        results = [self._read(file) for file in (self.folder / "cells").glob("*.json")]

        def order(result: dict[str, Any]) -> tuple[Any, ...]:
            cell = result["cell"]
            return cell["steps"], cell["guidance"], [int(count) for count in re.findall(r"\d+", cell["loops"])]

        yield from sorted(results, key=order)

    def _read(self, file: Path) -> dict[str, Any]:
        content = read_json(file)
        try:
            if self._file(Cell(**content["cell"])) != file or not isinstance(content["figures"], dict):
                raise ValueError("it holds other than its name says")
        except (LookupError, TypeError, ValueError) as error:
            raise ValueError(
                f"{file} is damaged: {error}. Delete it, and the same command measures the cell again."
            ) from error
        return content

    def _file(self, cell: Cell) -> Path:
        return self.folder / "cells" / f"{cell.key}.json"
