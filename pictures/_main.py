"""Makes the pictures of the documentation that are samples of models.

    python -m pictures                                  # sheets and strips of the models that come with the library
    python -m pictures --run runs/digits-dit-ilsd       # the film of loops too, from a run of `elt-zoo train`

It samples every model of the page *Play with it* at all its loop counts and steps, and writes one sheet of samples for
each into docs/assets/play, with what the page says about them; draws how the models sample step by step into
docs/assets/strips; and films a run's model beside its vanilla baseline, loop by loop, into docs/assets/loops.gif. It
takes about two minutes on one core. Run it when a bundled model changes: a test fails until then.
"""

import argparse
from pathlib import Path

from ._film import write_film
from ._sheets import SHEETS, write_sheets
from ._strips import STRIPS, write_strips

_FOLDER = Path(__file__).parents[1] / "docs" / "assets"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=_FOLDER, help="the folder to write to (default: docs/assets)")
    parser.add_argument("--run", type=Path, help="a finished run of images with a vanilla baseline, for the film")
    arguments = parser.parse_args()
    folder = arguments.out
    write_sheets(folder / "play")
    write_strips(folder / "strips")
    made = [*(f"play/{sheet.model}.png" for sheet in SHEETS), *(f"strips/{strip.model}.png" for strip in STRIPS)]
    if arguments.run is not None:
        write_film(arguments.run, folder / "loops.gif")
        made.append("loops.gif")
    print(f"Saved {', '.join(made)} in {folder}.")
