import dataclasses
import math
from pathlib import Path

import numpy as np

from ..anytime import Plan, Planner, PlanningData, load_planner, loops_text, make_planner, quality_text
from ..evaluation import EvaluatorOptions, Samples, heldout_task, make_evaluator
from ..figures import plot_plans
from ..generator import Generator, load
from ..recipes import DIGITS, open_source
from ..storage import require_writable
from ..tokenizers import load_tokenizer

_ROWS = 12


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlanOptions(EvaluatorOptions):
    """Find the best steps and loops of a saved model for any time on this machine."""

    model: str = "digits-dit"
    """A folder that `elt_zoo.save` wrote, a bundled model, or one on the hub, hf://owner/name@revision."""
    tokenizer: Path | None = None
    """The folder of the tokenizer or autoencoder, where the model was saved without."""
    milliseconds: tuple[float, ...] = ()
    """Times to plan for; default those between the fastest plan and the best one."""
    batch: int = 1
    """Samples at a time."""
    steps: tuple[int, ...] = ()
    """Numbers of sampling steps to choose from; default as the model was measured, half and a quarter of it."""
    guidance: float | None = None
    """Scale of guidance: 1 is none; default as the model was measured."""
    measurements: Path | None = None
    """A JSON file: read if it is there, else what was measured is written to it."""
    plot: Path | None = None
    """Also draw quality against time, to a PNG."""

    heldout_data: str | None = None
    """Real data that the model has not seen, `cifar10`, `mnist` or a folder; digits have theirs. With it, `--reference`
    or `--reference-data` measures samples, and steps are chosen as well."""
    heldout: int = 360
    """Held-out examples to use."""
    samples: int = 1000
    """Samples that are measured for each number of steps, with one loop and with L_max."""
    sets: int = 2
    """How many times, each from its own noise."""
    seed: int = 0

    def __post_init__(self):
        super().__post_init__()
        for name in ("batch", "heldout", "samples", "sets"):
            if getattr(self, name) < 1:
                raise ValueError(f"`--{name} {getattr(self, name)}` must be at least 1.")
        for milliseconds in self.milliseconds:
            if not 0 < milliseconds < math.inf:
                raise ValueError(f"`--milliseconds {milliseconds}` must be a positive number.")
        if any(count < 1 for count in self.steps):
            raise ValueError(f"`--steps {' '.join(map(str, self.steps))}` must be at least 1.")
        if self.guidance is not None and not math.isfinite(self.guidance):
            raise ValueError(f"`--guidance {self.guidance}` must be a finite number; 1 is no guidance.")
        if self.seed < 0:
            raise ValueError(f"`--seed {self.seed}` must be 0 or more.")
        if self.plot is not None and self.plot.suffix.lower() != ".png":
            raise ValueError(f"`--plot {self.plot}` must end in .png: it will be a picture.")


def plan(options: PlanOptions) -> None:
    """`elt-zoo plan`."""
    for path in (options.plot, options.measurements):
        if path is not None:
            require_writable(path)
    generator = load(options.model)
    if options.tokenizer is not None:
        generator = dataclasses.replace(generator, tokenizer=load_tokenizer(options.tokenizer))
    planner = _planner(options, generator)
    print(planner.latency(options.batch), end="\n\n")
    frontier = planner.frontier(batch=options.batch)
    if options.milliseconds:
        shown = [planner.plan(milliseconds, batch=options.batch) for milliseconds in options.milliseconds]
    else:
        chosen = np.unique(np.linspace(0, len(frontier) - 1, min(_ROWS, len(frontier))).round().astype(int))
        shown = [frontier[index] for index in chosen]
    print(_table(shown))
    if options.plot is not None:
        rows = [dataclasses.asdict(each) for each in frontier]
        plot_plans(options.plot, rows, title=f"{options.model}, {options.batch} at a time")
        print(f"Saved {options.plot}.")


def _planner(options: PlanOptions, generator: Generator) -> Planner:
    """The planner of the file of measurements, or one that measures now."""
    file = options.measurements
    if file is not None and file.exists():
        planner = load_planner(file, generator)
        steps = {by_steps.steps for by_steps in planner.quality.by_steps}
        guidance = planner.guidance if options.guidance is None else options.guidance
        if (options.steps and set(options.steps) != steps) or guidance != planner.guidance:
            raise ValueError(
                f"{file} was measured for the steps {sorted(steps)} at guidance {planner.guidance:g}: ask for these, "
                "or give another `--measurements`."
            )
        return planner
    planner = make_planner(
        generator,
        _data(options, generator),
        batches=(options.batch,),
        steps=options.steps or None,
        guidance=options.guidance,
        samples=options.samples,
        sets=options.sets,
        seed=options.seed,
    )
    if file is not None:
        planner.save(file)
    return planner


def _data(options: PlanOptions, generator: Generator) -> PlanningData | None:
    """What a planner judges samples by; `None` for the digits, which have theirs."""
    data, shape = generator.metadata.get("data"), generator.pixels.shape
    if options.heldout_data is None:
        if data == DIGITS:
            return None
        raise ValueError("`--heldout-data` is missing: real data that the model has not seen, such as a folder.")
    frames = shape[0] if len(shape) == 4 else None
    source = open_source(options.heldout_data, split="heldout", size=shape[-2], frames=frames)
    heldout = heldout_task(generator, source, options.heldout).heldout
    if data != DIGITS and options.reference is None and options.reference_data is None:
        return PlanningData(examples=heldout.examples, labels=heldout.labels)
    evaluator = make_evaluator(options, data=data, shape=shape, folder=Path("runs"))
    evaluator.check(options.samples)

    def distance(pixels: np.ndarray, labels: np.ndarray) -> float:
        return evaluator([Samples(pixels, labels)])[evaluator.distance]

    return PlanningData(examples=heldout.examples, labels=heldout.labels, distance=distance, measure=evaluator.distance)


def _table(plans: list[Plan]) -> str:
    header = ("time (ms)", "1 in 20 over", "steps", "loops of each", plans[0].measure)
    rows = [
        (
            f"{plan.milliseconds:.3g}",
            f"{plan.late_milliseconds:.3g}",
            str(plan.steps),
            loops_text(plan.loops),
            quality_text(plan),
        )
        for plan in plans
    ]
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in (header, *rows)
    )
