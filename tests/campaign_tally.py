"""What a campaign counts, for each writer, format or kind of command."""

from collections import Counter


class Tally:
    """Attempts, faults and other outcomes by name. A fault is printed when it is met, in one line."""

    def __init__(self):
        self._rows: dict[str, Counter[str]] = {}

    @property
    def faults(self) -> int:
        return sum(row["faults"] for row in self._rows.values())

    def add(self, name: str, outcome: str | None = None, fault: str | None = None) -> None:
        """Counts an attempt, its outcome, and with `fault` says what was wrong."""
        row = self._rows.setdefault(name, Counter())
        row["attempts"] += 1
        if outcome is not None:
            row[outcome] += 1
        if fault is not None:
            row["faults"] += 1
            print(f"FAULT {name}: {' '.join(fault.split())[:1000]}", flush=True)

    def note(self, name: str, outcome: str) -> None:
        """Counts something that is no attempt of its own."""
        self._rows.setdefault(name, Counter())[outcome] += 1

    def __str__(self) -> str:
        seen = dict.fromkeys(key for row in self._rows.values() for key in row)
        columns = ["attempts", "faults", *sorted(seen.keys() - {"attempts", "faults"})]
        total: Counter[str] = sum(self._rows.values(), Counter())
        lines = [[name, *(str(row[key]) for key in columns)] for name, row in [*self._rows.items(), ("total", total)]]
        widths = [max(map(len, column)) for column in zip(["", *columns], *lines, strict=True)]
        return "\n".join(
            "  ".join(cell.ljust(width) if cell == line[0] else cell.rjust(width) for cell, width in cells)
            for line in [["", *columns], *lines]
            for cells in [list(zip(line, widths, strict=True))]
        )
