import contextlib
from concurrent.futures import ThreadPoolExecutor

from ..distributed import agree, is_first, together
from ..storage import FolderLock
from ..training import stop_on_signals
from ._folder import require_own
from ._options import ObjectiveName
from ._prepared import OnEvaluate, Prepared, Start, Trained
from ._reports import require_trackers
from ._run import Run


def train(run: Run, *, on_evaluate: OnEvaluate | None = None) -> dict[ObjectiveName, Trained]:
    """Trains with the run's objective and, to compare, its vanilla baseline; or resumes them.

    **Arguments:** `run`; `on_evaluate`: called every `options.evaluate_every` steps.

    **Returns:** what was trained, by objective.

    **Raises:** `ValueError` if the folder is not empty and holds no run, or another one; `FolderLocked` if another
    process trains in it; `TrainingDiverged`; `CheckpointError` if what was saved cannot be read; `ImportError` if
    Weights & Biases is asked for and not installed. Nothing is changed then.
    """
    together(lambda: require_trackers(run.options.wandb) if is_first() else None)
    agree({name: run.config(name) for name in run.objectives})
    start = Start(run)  # here and below wrong options are refused, before anything is written
    prepared = [Prepared(name, run, start) for name in run.objectives]
    lock = FolderLock(run.folder)

    def take() -> None:
        if is_first():
            require_own(run.folder)
            lock.acquire()

    together(take)
    # Both at once: each leaves much of a small machine idle. A signal stops both after their running step. Programs
    # for several devices would wait for each other.
    at_once = len(prepared) if all(one.layout is None for one in prepared) else 1
    with (
        contextlib.ExitStack() as stack,
        stop_on_signals() as stop,
        ThreadPoolExecutor(at_once) as pool,
    ):
        stack.callback(lock.release)
        jobs = [pool.submit(one.train, stop, row, on_evaluate) for row, one in enumerate(prepared)]
        try:
            return {one.name: job.result() for one, job in zip(prepared, jobs, strict=True)}
        except BaseException:
            stop.set()
            raise
