"""The example that forecasts a series: what it prints, against values that are computed here."""

import re

import numpy as np
import pytest
from command_line import run_example


def table(output, first):
    """The rows of the table whose first column is `first`."""
    lines = output.split(f"| {first} |")[1].split("\n\n")[0].splitlines()[2:]
    return {cells[0]: cells[1:] for cells in ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)}


@pytest.mark.slow
def test_the_table_holds_every_forecast_and_last_year_is_what_it_was():
    co2 = pytest.importorskip("statsmodels.datasets.co2")
    sizes = ("--dim", 16, "--num-layers", 1, "--max-loops", 2)
    output = run_example("forecast.py", "--steps", 2, "--seeds", 1, "--batch-size", 8, *sizes).output
    rows = table(output, "forecast")
    ours = ["1 layers, no loops", "2 unique layers", "1 layers, ILSD, L = 1", "1 layers, ILSD, L = 2"]
    assert list(rows) == ["last year", "last year and its growth", *ours]
    assert all(float(rows[name][0]) > 0 for name in ours)

    # What came after each week from 1987 on, against the same week a year before, moved by the median error before.
    series = co2.load_pandas().data["co2"].interpolate()
    starts = range(156, len(series) - 51)
    change = {start: series.to_numpy()[start : start + 52] - series.to_numpy()[start - 52 : start] for start in starts}
    known = [change[start] for start in starts if series.index[start + 51] < np.datetime64("1987-01-01")]
    heldout = [change[start] for start in starts if series.index[start] >= np.datetime64("1987-01-01")]
    error = np.abs(np.stack(heldout) - np.median(known, axis=0)).mean()
    assert float(rows["last year"][1]) == pytest.approx(error, abs=6e-4)
    assert f"{len(known)} training windows, {len(heldout)} held-out ones" in output

    (seed,) = table(output, "seed").values()
    for cell in seed:
        middle, low, high = map(float, re.findall(r"[+-]\d\.\d\d", cell))
        assert -1 <= low <= high <= 1 and -1 <= middle <= 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--seeds", 0), "`--seeds 0` must be at least 1"),
        (("--batch-size", 0), "`--batch-size 0` must be at least 1"),
        (("--max-loops", 1), "`--max-loops 1` leaves no exit to compare"),
    ],
)
def test_wrong_options_are_said_in_one_line(arguments, said):
    finished = run_example("forecast.py", *arguments, check=False)
    assert finished.code == 2 and said in finished.errors and finished.errors.count("\n") == 1
