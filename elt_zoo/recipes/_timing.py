import contextlib
import time
from typing import Any, NamedTuple

import jax

from ..training import TrainState, TrainStep, jit_step
from ._options import ObjectiveName
from ._prepared import Prepared, Start
from ._run import Run
from ._tokenizer_options import TokenizerOptions
from ._tokenizer_run import PreparedTokenizer, TokenizerData

_TIMED_STEPS = 3


class Timing(NamedTuple):
    """How long a training takes on this machine, from its first steps.

    **Fields:** `name`: what is trained; `steps`: how many it takes; `batch_size`: examples of each; `compiling`:
    seconds of the first step; `seconds_per_step`: of each other one.
    """

    name: str
    steps: int
    batch_size: int
    compiling: float
    seconds_per_step: float

    @property
    def seconds(self) -> float:
        """Of the whole training, without its measurements."""
        return self.compiling + (self.steps - 1) * self.seconds_per_step


def time_tokenizer(options: TokenizerOptions, data: TokenizerData) -> Timing:
    """Times the first steps of a tokenizer's training, and throws them away.

    **Raises:** `ValueError` for options that the training would refuse.
    """
    prepared = PreparedTokenizer(options, data)
    with contextlib.closing(prepared.batches) as batches:
        return _time("tokenizer", options.recipe.steps, prepared.step, prepared.start(), next(batches))


def time_training(run: Run) -> list[Timing]:
    """Times the first steps of a run's trainings one after another, and throws them away.

    **Raises:** `ValueError` for options that the training would refuse.
    """
    start = Start(run)
    return [_time_objective(name, run, start) for name in run.objectives]


def _time_objective(name: ObjectiveName, run: Run, start: Start) -> Timing:
    prepared, before, stages = Prepared(name, run, start), 0, []
    with contextlib.closing(prepared.batches) as batches:
        batch, encode = next(batches), run.task.representation.encode
        batch = batch if encode is None else encode(batch)
        for end, step in prepared.steps.items():
            stages.append(_time(name, end - before, step, start(), batch))
            before = end
    # As one, whose steps take as long as those of all stages do on average.
    pace = sum(stage.steps * stage.seconds_per_step for stage in stages) / before
    return stages[0]._replace(steps=before, compiling=sum(stage.compiling for stage in stages), seconds_per_step=pace)


def _time(name: str, steps: int, step: TrainStep, state: TrainState, batch: Any) -> Timing:
    run = jit_step(step)
    started = time.perf_counter()
    state, _ = jax.block_until_ready(run(state, batch))
    compiled = time.perf_counter()
    for _ in range(_TIMED_STEPS):
        state, _ = jax.block_until_ready(run(state, batch))
    pace = (time.perf_counter() - compiled) / _TIMED_STEPS
    return Timing(name, steps, len(jax.tree.leaves(batch)[0]), compiled - started, pace)
