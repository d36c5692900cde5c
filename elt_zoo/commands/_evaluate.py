import dataclasses
import math
from pathlib import Path

import jax

from ..data import AbstractSource
from ..distributed import is_first, together
from ..evaluation import (
    CellStore,
    EvaluatorOptions,
    SamplePlan,
    evaluate_grid,
    grid,
    heldout_task,
    make_evaluator,
    report_loops,
)
from ..generator import Generator, load
from ..metrics import VideoProtocol
from ..recipes import DIGITS, open_source
from ..storage import require_writable_folder
from ..tokenizers import load_tokenizer
from ._processes import ProcessOptions


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateOptions(ProcessOptions, EvaluatorOptions):
    """Measure a saved model at every loop count, number of steps and scale of guidance: quality, compute, and what the
    loops do."""

    model: str = "digits-dit"
    """A folder that `elt_zoo.save` wrote, a bundled model, or one on the hub, hf://owner/name@revision."""
    tokenizer: Path | None = None
    """The folder of the tokenizer or autoencoder, where the model was saved without."""
    out: Path | None = None
    """Where the results go; default `runs/evaluate-<model>`."""

    loops: tuple[str, ...] = ("1", "2", "3", "4", "6", "8")
    """4: a count; 1-4: from the first sampling step to the last; 4/1: of the conditional and of the unconditional
    branch."""
    steps: tuple[int, ...] = ()
    """Sampling steps; default as the model was measured."""
    guidance: tuple[float, ...] = ()
    """Scales s in unconditional + s·(conditional − unconditional); 1 is none. Default as the model was measured."""

    samples: int | None = None
    """For each cell, the classes in turn; default 1,000 digits, 50,000 images, or as the protocol of clips says."""
    repeats: int | None = None
    """Sets of samples to average over; default 1, or as the protocol of clips says."""
    seed: int = 0
    batch_size: int | None = None
    """Samples at a time; other batches are other samples. Default 250 digits, 64 images, 16 clips."""
    devices: int | None = None
    """Devices of each process that share every batch; default all. Several processes share the batches."""
    export: bool = False
    """Also write the samples of every cell to `samples/<cell>.npz`, which ADM's evaluator reads."""

    diagnostics: bool = True
    """Also report what the loops do, in the folder `loops`."""
    heldout_data: str | None = None
    """Real data that the model has not seen, `cifar10`, `mnist` or a folder, for the losses of its exits; digits have
    theirs."""
    heldout: int = 360
    """Held-out examples to use."""
    heldout_copies: int = 4
    """How often each is corrupted."""
    heldout_batch: int = 60
    """Held-out examples at a time."""

    def __post_init__(self):
        super().__post_init__()
        if not self.loops:
            raise ValueError("`--loops` names no loop counts.")
        for name in ("samples", "repeats", "batch_size", "devices", "heldout", "heldout_copies", "heldout_batch"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"`--{name.replace('_', '-')} {value}` must be at least 1.")
        if self.seed < 0:
            raise ValueError(f"`--seed {self.seed}` must be 0 or more.")
        if not all(map(math.isfinite, self.guidance)):
            raise ValueError(f"`--guidance {' '.join(map(str, self.guidance))}` must be finite numbers.")

    @property
    def folder(self) -> Path:
        """Where the results go."""
        return self.out or Path("runs") / f"evaluate-{Path(self.model).resolve().name}"


def evaluate(options: EvaluateOptions) -> None:
    """`elt-zoo evaluate`."""
    options.start()
    generator = together(lambda: load_generator(options))
    settings, data, folder = generator.settings, generator.metadata.get("data"), options.folder
    if is_first():
        require_writable_folder(folder)
        CellStore.check(folder)
    cells = grid(options.loops, options.steps or (settings.steps,), options.guidance or (settings.guidance,))
    for cell in cells:  # refuses steps and scales that the sampler cannot take
        generator.sampler(steps=cell.steps, guidance=cell.guidance)
    shape = generator.pixels.shape
    plan = sample_plan(options, data, shape)
    heldout = heldout_source(options, data, shape) if options.diagnostics and is_first() else None
    if heldout is not None:
        heldout_task(generator, heldout, 1)  # refuses data that do not fit before anything is measured
    evaluator = make_evaluator(options, data=data, shape=shape, folder=folder)
    text = evaluate_grid(
        generator, cells, evaluator, plan, folder, name=Path(options.model).name, export=options.export
    )
    if not is_first():
        return
    print(text)
    if options.diagnostics:
        text = report_loops(
            folder / "loops",
            generator,
            heldout=heldout,
            examples=options.heldout,
            copies=options.heldout_copies,
            batch_size=options.heldout_batch,
            seed=options.seed,
        )
        print(f"{text}\n" if text else "Without `--heldout-data` there are no losses of exits.\n")
    print(f"Tables, plots and samples are in {folder}.")


def load_generator(options: EvaluateOptions) -> Generator:
    """What to measure."""
    generator = load(options.model)
    if options.tokenizer is None:
        return generator
    return dataclasses.replace(generator, tokenizer=load_tokenizer(options.tokenizer))


def sample_plan(options: EvaluateOptions, data: str | None, shape: tuple[int, ...]) -> SamplePlan:
    """As many samples as were asked for, or as are usual."""
    repeats = 1
    if data == DIGITS:
        samples, batch = 1000, 250
    elif len(shape) == 3:
        samples, batch = 50_000, 64
    else:
        protocol = VideoProtocol.magvit() if options.protocol == "magvit" else VideoProtocol.stylegan_v()
        samples, repeats, batch = protocol.samples, protocol.repeats, 16
    samples = samples if options.samples is None else options.samples
    devices = options.devices or jax.local_device_count()
    return SamplePlan(
        samples=samples,
        batch_size=options.batch_size or -(-min(batch, samples) // devices) * devices,
        devices=devices,
        seed=options.seed,
        repeats=options.repeats or repeats,
    )


def heldout_source(options: EvaluateOptions, data: str | None, shape: tuple[int, ...]) -> AbstractSource | None:
    """The data that the options name, the held-out digits for a model of digits, or none."""
    name = options.heldout_data or (DIGITS if data == DIGITS else None)
    frames = shape[0] if len(shape) == 4 else None
    return None if name is None else open_source(name, split="heldout", size=shape[-2], frames=frames)
