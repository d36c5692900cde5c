import contextlib
import csv
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from tqdm import tqdm

from .._optional import optional_import
from ..training import Report


@contextlib.contextmanager
def metric_files(folder: Path, name: str) -> Iterator[Callable[[Report], None]]:
    """A context with a function that appends reports to `metrics-<name>.csv` and to TensorBoard's event files.

    Without tensorboardX, the extra `examples`, it writes the CSV alone.
    """
    board = _board(folder / "tensorboard" / name)
    with (folder / f"metrics-{name}.csv").open("a", newline="") as handle, board as scalars:
        writer = csv.writer(handle)

        def write(report: Report) -> None:
            pace = {key: value for key, value in report._asdict().items() if key not in ("step", "metrics")}
            values = report.metrics | pace
            if handle.tell() == 0:
                writer.writerow(["step", *values])
            writer.writerow([report.step, *values.values()])
            handle.flush()
            scalars(values, report.step)

        yield write


@contextlib.contextmanager
def _board(folder: Path) -> Iterator[Callable[[Mapping[str, float], int], None]]:
    try:
        writer_class = optional_import("tensorboardX", extra="examples").SummaryWriter
    except ImportError:
        yield lambda values, step: None
        return
    with writer_class(str(folder)) as board:

        def write(values: Mapping[str, float], step: int) -> None:
            for metric, value in values.items():
                board.add_scalar(metric, value, step)

        yield write


@contextlib.contextmanager
def progress_bar(
    name: str, *, steps: int, taken: int, show: tuple[str, ...], row: int = 0
) -> Iterator[Callable[[Report], None]]:
    """A context with a function that moves a bar and shows some of the metrics; before the first report it says that
    the program is being compiled.
    """
    with tqdm(total=steps, initial=taken, desc=f"{name}: compiling", position=row, unit="step") as bar:

        def move(report: Report) -> None:
            shown = {metric: f"{report.metrics[metric]:.3f}" for metric in show if metric in report.metrics}
            bar.set_description(name, refresh=False)
            bar.set_postfix(shown | {"examples/s": f"{report.examples_per_second:.0f}"}, refresh=False)
            bar.update(report.step - bar.n)

        yield move
