"""Wrong commands of the tests' table in random order, some with one more thing wrong: each is refused in one line."""

import contextlib
import random
from pathlib import Path

from campaign_tally import Tally
from command_line import files_of, run
from test_wrong_commands import WRONG, make_here


def commands(count: int, seed: int, tally: Tally, folder: Path) -> None:
    """Gives as many wrong commands, all in this process."""
    rng, here, empty = random.Random(seed), folder / "here", folder / "empty"
    here.mkdir()
    empty.mkdir()
    make_here(here)
    before, always = files_of(here), _always_wrong()
    for _ in range(count):
        command, expected = rng.choice(WRONG)
        name = command.split()[0]
        others = [other for other in always.get(name, []) if other.split()[0] not in command.split()]
        if others and rng.random() < 0.5:
            command, expected = f"{command} {rng.choice(others)}", ""
        with contextlib.chdir(empty):
            problem = _problem(command.format(here=here), expected)
        if problem is None and (list(empty.iterdir()) or files_of(here) != before):
            problem = "it has written something"
        tally.add(name if name in always else "others", fault=problem and f"`{command}`: {problem}")


def _always_wrong() -> dict[str, list[str]]:
    """Options of each command that are wrong whatever the others are."""
    always: dict[str, list[str]] = {}
    for command, expected in WRONG:
        name, *arguments = command.split()
        options = always.setdefault(name, []) if name.islower() and name[0] != "-" else []
        if len(arguments) == 2 and "must be" in expected and "multiple" not in expected:
            options.append(" ".join(arguments))
    return {name: options for name, options in always.items() if options}


def _problem(command: str, expected: str) -> str | None:
    """What is wrong with how a command was refused."""
    try:
        refused = run(*command.split(), check=False)
    except BaseException as error:
        return f"it raised {error!r}"
    # What a file holds is no matter of how the command is spelled.
    codes = (1, 2) if expected in ("", "of an unknown format") else (2,)
    if refused.code not in codes:
        return f"exit code {refused.code}: {refused.errors[-200:]}"
    if not refused.errors.startswith("error: ") or refused.errors.count("\n") != 1:
        return f"not one line: {refused.errors[-300:]}"
    return None
