"""Makes the pictures of the documentation that are samples of models.

    python -m pictures                                          # sheets and strips of the bundled models
    python -m pictures --film runs/elastic runs/unlooped        # the film of loops too

The film is of two runs of `elt-zoo train`:

    elt-zoo train --optimizer muon --steps 4000 --student-weight 0.25 --out runs/elastic
    elt-zoo train --optimizer muon --steps 4000 --objective vanilla --max-loops 1 --out runs/unlooped

It samples every model of the page *Play with it* at all its loop counts and steps, and writes one sheet of samples for
each into docs/assets/play, with what the page says about them; draws how the models sample step by step into
docs/assets/strips; films clips into docs/assets/films; and films an elastic model beside its baselines, loop by loop,
into docs/assets/loops.gif. It takes about two minutes on one core. Run it when a bundled model changes: a test fails
until then.
"""

import argparse
from pathlib import Path

from ._films import FILMS, write_films
from ._loops_film import write_loops_film
from ._sheets import SHEETS, write_sheets
from ._strips import STRIPS, write_strips

_FOLDER = Path(__file__).parents[1] / "docs" / "assets"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=_FOLDER, help="the folder to write to (default: docs/assets)")
    parser.add_argument(
        "--film", type=Path, nargs=2, metavar=("RUN", "UNLOOPED"), help="two finished runs, looped and not, to film"
    )
    arguments = parser.parse_args()
    folder = arguments.out
    write_sheets(folder / "play")
    write_strips(folder / "strips")
    write_films(folder / "films")
    made = [*(f"play/{sheet.model}.png" for sheet in SHEETS), *(f"strips/{strip.model}.png" for strip in STRIPS)]
    made += [f"films/{film.model}.gif" for film in FILMS]
    if arguments.film is not None:
        looped, unlooped = arguments.film
        write_loops_film(looped, unlooped, folder / "loops.gif")
        made.append("loops.gif")
    print(f"Saved {', '.join(made)} in {folder}.")
