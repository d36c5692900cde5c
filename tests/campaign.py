"""Tries to break the library, for as long as one likes: `python tests/campaign.py PART --count N --seed S`.

Parts: `kill` kills every writer at random operations and moments, `N` times each, and looks at what is left; `mutate`
reads `N` damaged files of all formats; `commands` gives `N` wrong commands; `resume` kills short trainings `N` times
and resumes them. A fault is one line; at the end a table counts attempts and faults. The exit code is 1 if there was a
fault.
"""

import argparse
import importlib
import shutil
import sys
import tempfile
import time
from pathlib import Path

from campaign_tally import Tally

PARTS = ("kill", "mutate", "commands", "resume")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--count", type=int, default=100, help="kills of each writer, files, commands or resumptions")
    parser.add_argument("--seed", type=int, default=0, help="of all that is drawn")
    parser.add_argument("--only", nargs="+", help="of `kill` and `mutate`: these writers or formats alone")
    parser.add_argument("--minutes", type=float, help="of `resume`: begin no run after that time")
    arguments = parser.parse_args()
    part = getattr(importlib.import_module(f"campaign_{arguments.part}"), arguments.part)
    tally, started = Tally(), time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="campaign-"))
    options = {name: getattr(arguments, name) for name in ("only", "minutes") if getattr(arguments, name) is not None}
    try:
        part(arguments.count, arguments.seed, tally, folder, **options)
    finally:
        seconds = time.monotonic() - started
        print(
            f"\n{arguments.part}, count {arguments.count}, seed {arguments.seed}, {seconds:.0f} s\n{tally}", flush=True
        )
        if tally.faults:
            print(f"What was met there is kept in {folder}.")
        else:
            shutil.rmtree(folder)
    sys.exit(1 if tally.faults else 0)


if __name__ == "__main__":
    main()
