"""Makes the pictures of the documentation that are samples of models.

    python -m pictures                                          # sheets and strips of the bundled models
    python -m pictures --film runs/loops/MNIST-dit-2Nx1L-vanilla-muon-rate_0.008-seed0/model     # the film of loops too

The film shows the bundled `mnist-dit` beside its layers without loops, which two commands train and measure:

    python -m reproduction.loops --data MNIST --mnist /data/mnist --steps 5500 --models "2 unique layers" \\
        "re-injected × 1/2"
    python -m reproduction.budgets --data MNIST --mnist /data/mnist

It samples every model of the page *Play with it* at all its loop counts and steps, and writes one sheet of samples for
each into docs/assets/play, with what the page says about them; draws how the models sample step by step into
docs/assets/strips; films clips into docs/assets/films, and loops into docs/assets/loops.gif. It takes about three
minutes on one core. Run it when a bundled model changes: a test fails until then.
"""

import argparse
from pathlib import Path

from ._films import FILMS, write_films
from ._loops_film import write_loops_film
from ._sheets import SHEETS, write_sheets
from ._strips import STRIPS, write_strips

_FOLDER = Path(__file__).parents[1] / "docs" / "assets"
BUDGETS = _FOLDER.parent / "reproduction" / "budgets-mnist.csv"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=_FOLDER, help="the folder to write to (default: docs/assets)")
    parser.add_argument(
        "--film", type=Path, metavar="UNLOOPED", help="the model of the same layers without loops, to film beside it"
    )
    arguments = parser.parse_args()
    folder = arguments.out
    write_sheets(folder / "play")
    write_strips(folder / "strips")
    write_films(folder / "films")
    made = [*(f"play/{sheet.model}.png" for sheet in SHEETS), *(f"strips/{strip.model}.png" for strip in STRIPS)]
    made += [f"films/{film.model}.gif" for film in FILMS]
    if arguments.film is not None:
        write_loops_film(arguments.film, BUDGETS, folder / "loops.gif")
        made.append("loops.gif")
    print(f"Saved {', '.join(made)} in {folder}.")
