import contextlib
import csv
import dataclasses
import shlex
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tqdm import tqdm

from .._optional import optional_import
from ..distributed import is_first
from ..storage import atomic_write
from ..trackers import AbstractTracker, TensorBoardTracker, Trackers, WandbTracker
from ..training import Report

OnReport = Callable[[Report], None]
_TENSORBOARD = "tensorboard"


def require_trackers(wandb: str | None) -> None:
    """**Raises:** `ImportError` if a project of Weights & Biases is named, and wandb is not installed."""
    if wandb is not None:
        optional_import("wandb", extra="wandb")


def open_trackers(
    folder: Path, name: str, *, taken: int, wandb: str | None, config: Mapping[str, Any]
) -> AbstractTracker:
    """The trackers of a training: TensorBoard where tensorboardX is installed, the extra `examples`, and Weights &
    Biases where a project is named.

    **Arguments:** `folder`: of the run; `name`: of the training in it; `taken`: steps taken already; `wandb`: the
    project; `config`: the knobs of the training.

    **Raises:** as [`WandbTracker`][elt_zoo.trackers.WandbTracker].
    """
    trackers: list[AbstractTracker] = []
    if wandb is not None:
        trackers.append(WandbTracker(folder, project=wandb, name=name, config=config))
    with contextlib.suppress(ImportError):
        trackers.append(TensorBoardTracker(folder / _TENSORBOARD / name, taken=taken))
    return Trackers(trackers)


def where_to_watch(folder: Path) -> str:
    """What to type to see the curves and pictures of a run while it trains."""
    try:
        optional_import("tensorboardX", extra="examples")
    except ImportError as missing:
        return f"No curves for TensorBoard: {missing}"
    logs = shlex.quote(str(folder / _TENSORBOARD))
    return f"Watch it in a browser: tensorboard --logdir {logs} (pip install tensorboard)"


@dataclasses.dataclass(frozen=True)
class Throughput:
    """How fast a training is.

    **Fields:** `flops`: floating-point operations of training on one example; `peak`: those that all its devices do in
    a second at most, `None` if it is not known; `until`, `flops_until`: up to a step, another number of operations, as
    in training with fewer loops.
    """

    flops: float
    peak: float | None = None
    until: int = 0
    flops_until: float = 0.0

    def of(self, report: Report) -> dict[str, float]:
        """`teraflops`, 10¹² operations a second, and `mfu`, model FLOP utilisation: their share of the peak."""
        rate = (self.flops_until if report.step <= self.until else self.flops) * report.examples_per_second
        speed = {"teraflops": rate / 1e12}
        return speed if self.peak is None else speed | {"mfu": rate / self.peak}


@contextlib.contextmanager
def metric_files(
    folder: Path, name: str, tracker: AbstractTracker | None = None, throughput: Throughput | None = None
) -> Iterator[Callable[[Report], None]]:
    """A context with a function that appends reports to `metrics-<name>.csv` and tells them to a tracker. Metrics that
    come later, such as those of more exits, get columns that are empty in the rows before.
    """
    file = folder / f"metrics-{name}.csv"
    file.touch()
    with file.open(newline="") as handle:
        columns = next(csv.reader(handle), [])

    def write(report: Report) -> None:
        pace = {key: value for key, value in report._asdict().items() if key not in ("step", "metrics")}
        values = report.metrics | pace | ({} if throughput is None else throughput.of(report))
        row = {"step": report.step} | values
        if more := [column for column in row if column not in columns]:
            _add_columns(file, more)
            columns.extend(more)
        with file.open("a", newline="") as handle:
            csv.DictWriter(handle, columns).writerow(row)
        if tracker is not None:
            tracker.log(report.step, values)

    yield write


def _add_columns(file: Path, more: list[str]) -> None:
    with file.open(newline="") as handle:
        header, *rows = list(csv.reader(handle)) or [[]]
    with atomic_write(file) as written, written.open("w", newline="") as handle:
        writer = csv.writer(handle)
        writer.writerow([*header, *more])
        writer.writerows([*row, *[""] * len(more)] for row in rows)


@contextlib.contextmanager
def progress_bar(
    name: str,
    *,
    steps: int,
    taken: int,
    show: tuple[str, ...],
    row: int = 0,
    throughput: Throughput | None = None,
) -> Iterator[Callable[[Report], None]]:
    """A context with a function that moves a bar and shows some of the metrics; before the first report it says that
    the program is being compiled.
    """
    with tqdm(total=steps, initial=taken, desc=f"{name}: compiling", position=row, unit="step") as bar:

        def move(report: Report) -> None:
            shown = {metric: f"{report.metrics[metric]:.3f}" for metric in show if metric in report.metrics}
            bar.set_description(name, refresh=False)
            shown["examples/s"] = f"{report.examples_per_second:.0f}"
            speed = {} if throughput is None else throughput.of(report)
            if "mfu" in speed:
                shown["MFU"] = f"{speed['mfu']:.1%}"
            bar.set_postfix(shown, refresh=False)
            bar.update(report.step - bar.n)

        yield move


@contextlib.contextmanager
def first_only(report: contextlib.AbstractContextManager[OnReport]) -> Iterator[OnReport]:
    """Process 0's context; in the others, one with a function that does nothing."""
    if is_first():
        with report as write:
            yield write
    else:
        yield lambda report: None
