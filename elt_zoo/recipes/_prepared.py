import contextlib
import dataclasses
import functools
import json
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, UInt32

from ..data import UnreadableLog, training_batches
from ..distributed import first_says, is_first, together
from ..families import ModelConfig, config_from_dict
from ..generator import load
from ..models import ElasticModel
from ..objectives import AbstractObjective
from ..profile import peak_flops
from ..sharding import one_copy, shard_batch
from ..storage import read_json, write_json
from ..trackers import AbstractTracker, Trackers
from ..training import (
    FitResult,
    Precision,
    Report,
    TrainState,
    config_differences,
    fit,
    jit_step,
    make_optimizer,
    make_train_step,
)
from ._init_from import init_from
from ._options import ObjectiveName
from ._reports import Throughput, first_only, metric_files, open_trackers, progress_bar
from ._run import Run


class Look(NamedTuple):
    """What a look at a model while it trains has found, for the trackers.

    **Fields:** `values`: numbers by name; `pictures`: PNG files by name.
    """

    values: Mapping[str, float]
    pictures: Mapping[str, Path]


OnEvaluate = Callable[[str, int, ElasticModel], Look | None]
"""Called while training as `on_evaluate(objective, step, averaged_model)`. The look that it returns goes to the
trackers.
"""
_SHOWN = ("loss", "student", "teacher", "final", "distillation", "lambda", "gradient_norm")


class Trained(NamedTuple):
    """What a run leaves: the averaged model, whether all steps were taken, and the pace."""

    model: ElasticModel
    finished: bool
    seconds_per_step: float


class Start:
    """Makes the state before the first step, which is that of every objective of a run: by one program for them all.
    Array by array it would take some ninety.
    """

    def __init__(self, run: Run):
        self._run, self._lock = run, threading.Lock()
        self.optimizer = make_optimizer(run.optimizer)
        self._source = None if run.options.init_from is None else load(run.options.init_from).model
        # As an argument: a compiler would compute the numbers of a key that it knows, one by one.
        self._key_data = jax.random.key_data(jax.random.key(run.options.seed))
        layout = run.layout
        shapes = eqx.filter_eval_shape if layout is None else layout.abstract
        self.abstract: TrainState = shapes(self.compute, self._source, self._key_data)
        self._make = eqx.filter_jit(self.compute) if layout is None else functools.partial(layout.create, self.compute)

    def compute(self, source: ElasticModel | None, key_data: UInt32[Array, " words"]) -> TrainState:
        """The state that starts from a saved model, or from parameters drawn with a key alone."""
        build_key, train_key = jax.random.split(jax.random.wrap_key_data(key_data))
        model = self._run.task.config.build(key=build_key)
        if source is not None:
            model = init_from(model, source, new_classes=self._run.options.new_classes)
        return TrainState.create(model, self.optimizer, key=train_key)

    def __call__(self) -> TrainState:
        """A new copy of the state, which a step may consume."""
        with self._lock:  # the objectives' threads would compile it at once
            return self._make(self._source, self._key_data)


class Prepared:
    """A run with one objective, checked and ready to begin at its start."""

    def __init__(self, name: ObjectiveName, run: Run, start: Start):
        self.name: ObjectiveName = name
        self.run = run
        self.start = start
        options, recipe, task = run.options, run.recipe, run.task
        if options.batch_size > len(task.train):
            raise ValueError(
                f"`--batch-size {options.batch_size}` cannot be filled: there are {len(task.train):,} training "
                "examples. Use at most as many."
            )
        self.layout = run.layout
        mesh = None if self.layout is None else self.layout.mesh
        if mesh is not None and options.batch_size % mesh.size:
            raise ValueError(
                f"`--batch-size {options.batch_size}` cannot be split over {mesh.size} devices; use a multiple."
            )
        stages = run.stages(name)
        for pause in segments(0, recipe.steps, options.evaluate_every, also=tuple(stages)):
            if self.traced and self.traced[0] < pause < self.traced[1]:
                raise ValueError(
                    f"`--trace-steps {self.traced[0] + 1} {self.traced[1]}`: the run pauses after step {pause}, to "
                    "look at the model or to change its loops. Trace steps before or after it."
                )
        self.speed = self.throughput(stages)
        self.steps = {  # by the number of steps after which the stage ends
            end: make_train_step(
                start.optimizer,
                objective,
                task.config.corruption(label_drop=options.label_drop),
                total_steps=recipe.steps,
                ema_decay=recipe.ema_decay,
                precision=Precision(jnp.dtype(options.precision)),
                dropout=task.config.dropout > 0.0,
                accumulation=options.accumulation,
                prepare=task.representation.prepare,
                layout=self.layout,
                attention=options.attention,
            )
            for end, objective in stages.items()
        }
        self.batches = training_batches(
            task.train,
            batch_size=options.batch_size // jax.process_count(),
            seed=options.seed,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
            workers=options.workers,
            unreadable=UnreadableLog(options.max_unreadable),
            put=None if mesh is None else functools.partial(shard_batch, mesh=mesh),
        )

    def train(self, stop: threading.Event, row: int, on_evaluate: OnEvaluate | None) -> Trained:
        run, steps = self.run, self.run.recipe.steps
        folder, config = run.folder / "checkpoints" / self.name, run.config(self.name)
        family = type(run.task.config)
        together(lambda: extend(folder / "run.json", config, family) if is_first() else None)
        options = run.options
        checkpoints = options.checkpoints(folder, config, name=self.name)
        if first_says(checkpoints.latest_step()) is None:
            state = self.start()
        else:
            state, position = checkpoints.restore(self.start.abstract)
            self.batches.set_state(position)
        taken, speed = int(state.step), self.speed
        bar = progress_bar(self.name, steps=steps, taken=taken, show=_SHOWN, row=row, throughput=speed)
        with (
            self.trackers(taken) as tracker,
            first_only(bar) as move,
            first_only(metric_files(run.folder, self.name, tracker, speed)) as write,
            checkpoints,
            contextlib.closing(self.batches),
        ):

            def on_report(report: Report) -> None:
                move(report)
                write(report)

            result, start = FitResult(state, taken >= steps, 0.0), taken
            compiled = {last: jit_step(step) for last, step in self.steps.items()}
            # Where no step is left, too: what a killed process left behind is removed then.
            checkpoints.claim(step=taken)
            for end in segments(taken, steps, run.options.evaluate_every, also=(*self.traced, *compiled)):
                step = next(step for last, step in compiled.items() if end <= last)
                with self.trace(start, end):
                    result = fit(
                        result.state,
                        step,
                        self.batches,
                        total_steps=end,
                        log_every=run.options.log_every,
                        on_report=on_report,
                        checkpoints=checkpoints,
                        encode=run.task.representation.encode,
                        stop=stop,
                    )
                start = end
                if not result.finished or (stop.is_set() and jax.process_count() == 1):
                    break
                if on_evaluate is not None and run.options.evaluate_every and end % run.options.evaluate_every == 0:
                    look(functools.partial(on_evaluate, self.name, end), self.averaged(result.state), tracker, end)
        return Trained(self.averaged(result.state), int(result.state.step) >= steps, result.seconds_per_step)

    def throughput(self, stages: Mapping[int, AbstractObjective]) -> Throughput:
        """What a report's examples per second mean in operations."""
        devices, costs = self.run.devices, self.run.costs
        peak = peak_flops(devices[0].device_kind) if self.run.options.precision == "bfloat16" else None

        def flops(loops: int) -> int:
            exits = {"ilsd": 2, "deep_supervision": loops}.get(self.name, 1)
            return dataclasses.replace(costs, loops=loops).training_flops(exits=exits)

        first, last = (flops(stages[end].max_loops) for end in (min(stages), max(stages)))
        peak = None if peak is None else peak * len(devices)
        return Throughput(last, peak, until=min(stages), flops_until=first)

    @property
    def traced(self) -> tuple[int, ...]:
        """The steps after which a trace begins and ends: those of the run's own objective."""
        steps = self.run.options.trace_steps
        return () if steps is None or self.name != self.run.objectives[0] else (steps[0] - 1, steps[1])

    def trace(self, start: int, end: int) -> contextlib.AbstractContextManager[Any]:
        """Records what the devices do between two steps, if they are those to trace."""
        if (start, end) != self.traced or not is_first():
            return contextlib.nullcontext()
        return jax.profiler.trace(str(self.run.folder / "trace"))

    def trackers(self, taken: int) -> AbstractTracker:
        """Process 0's trackers; in the others, one that does nothing."""

        def opened() -> AbstractTracker:
            run, config = self.run, self.run.config(self.name)
            if not is_first():
                return Trackers()
            return open_trackers(run.folder, self.name, taken=taken, wandb=run.options.wandb, config=config)

        return together(opened)

    def averaged(self, state: TrainState) -> ElasticModel:
        """The averaged model on one device, for reports."""
        return state.ema if self.layout is None else one_copy(state.ema)


def look(
    on_evaluate: Callable[[ElasticModel], Look | None], model: ElasticModel, tracker: AbstractTracker, step: int
) -> None:
    """Process 0's look at the model, for which the others wait."""
    seen = together(lambda: on_evaluate(model) if is_first() else None)
    if seen is not None:
        tracker.log(step, seen.values)
        for name, file in seen.pictures.items():
            tracker.log_picture(step, name, file)


def segments(taken: int, steps: int, every: int | None, also: tuple[int, ...] = ()) -> Iterator[int]:
    """Where a run pauses, for looks at the model and other reasons, its end included."""
    looks = () if every is None else range((taken // every + 1) * every, steps, every)
    yield from sorted({pause for pause in (*looks, *also, steps) if taken < pause <= steps})


def extend(file: Path, config: Mapping[str, Any], family: type[ModelConfig]) -> None:
    """Lets a run go on to more steps: if a saved run config differs in nothing but fewer `steps`, the new one takes its
    place. The learning rate, λ and the loops, if they grow, then follow the schedules of the longer run.

    Options of models that are newer than the run count as off, and so do those that are gone.
    """
    if not file.is_file():
        return
    saved, config = read_json(file), json.loads(json.dumps(config))  # with lists for tuples, as they are saved
    if not isinstance(saved, dict) or not isinstance(saved.get("steps"), int) or saved["steps"] > config["steps"]:
        return
    same = {**saved, "steps": config["steps"]}
    with contextlib.suppress(KeyError, TypeError, ValueError):  # what is no config of a model is left to differ
        same["model"] = json.loads(json.dumps(config_from_dict(saved["model"], family=family).to_dict()))
    if saved != config and not config_differences(same, config):
        write_json(file, config)
