"""Where the examples write what `fit` reports."""

import contextlib
import csv
from collections.abc import Callable, Iterator
from pathlib import Path

from tensorboardX import SummaryWriter
from tqdm import tqdm

from elt_zoo.training import Report


@contextlib.contextmanager
def metric_files(folder: Path, name: str) -> Iterator[Callable[[Report], None]]:
    """Appends reports to `metrics-<name>.csv` and to TensorBoard's event files."""
    file = folder / f"metrics-{name}.csv"
    with file.open("a", newline="") as handle, SummaryWriter(str(folder / "tensorboard" / name)) as board:
        writer = csv.writer(handle)

        def write(report: Report) -> None:
            pace = {key: value for key, value in report._asdict().items() if key not in ("step", "metrics")}
            values = report.metrics | pace
            if handle.tell() == 0:
                writer.writerow(["step", *values])
            writer.writerow([report.step, *values.values()])
            handle.flush()
            for metric, value in values.items():
                board.add_scalar(metric, value, report.step)

        yield write


@contextlib.contextmanager
def progress_bar(
    name: str, *, steps: int, taken: int, show: tuple[str, ...], row: int = 0
) -> Iterator[Callable[[Report], None]]:
    """A bar that shows some of the metrics, on a row of its own among others."""
    with tqdm(total=steps, initial=taken, desc=name, position=row, unit="step") as bar:

        def move(report: Report) -> None:
            shown = {metric: f"{report.metrics[metric]:.3f}" for metric in show if metric in report.metrics}
            bar.set_postfix(shown | {"examples/s": f"{report.examples_per_second:.0f}"}, refresh=False)
            bar.update(report.step - bar.n)

        yield move
