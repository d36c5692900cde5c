"""Makes the pictures of the documentation that are samples of models.

    python -m pictures

It samples every model of the page *Play with it* at all its loop counts and steps, and writes one sheet of samples for
each into docs/assets/play, with what the page says about them. It takes about a minute on one core. Run it when a
bundled model changes: a test fails until then.
"""

import argparse
from pathlib import Path

from ._sheets import SHEETS, write_sheets

_FOLDER = Path(__file__).parents[1] / "docs" / "assets" / "play"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=_FOLDER, help="the folder to write to (default: docs/assets/play)")
    folder = parser.parse_args().out
    write_sheets(folder)
    print(f"Saved {', '.join(f'{sheet.model}.png' for sheet in SHEETS)} in {folder}.")
