import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from ..families import ModelConfig, preset
from ..looped import Remat
from ..nn import AttentionKernel
from ..sharding import Gather
from ..training import OptimizerConfig, OptimizerKind
from ._checkpoint_options import CHECKPOINT_OPTIONS, CheckpointOptions
from ._open import DIGITS, MOVING_DIGITS

ObjectiveName = Literal["ilsd", "vanilla", "deep_supervision", "random_depth"]
# What a run may change without being another run: where it goes, and what is shown and saved on the way.
_COSMETIC = frozenset(
    {"out", "dry_run", "compare", "objective", "preset", "workers", "max_unreadable", "log_every"}
    | CHECKPOINT_OPTIONS
    | {"evaluate_every", "sampler", "samples", "sample_seeds"}
    | {"coordinator", "processes", "process", "start_timeout", "mesh", "wandb", "trace_steps", "attention"}
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplerOptions:
    """How to sample. What is not given is the default of the family and the data."""

    steps: int | None = None
    """Sampling steps."""
    guidance: float | None = None
    """Scale of guidance: 1 is the conditional model alone, 0 the unconditional one."""
    clip_x0: float | None = None
    """Diffusion: the range to which steps clip their prediction."""
    ancestral: bool | None = None
    """Diffusion: DDPM's noisy steps instead of DDIM's deterministic ones."""
    temperature_bias: float | None = None
    temperature_scale: float | None = None
    """Masked: the temperature falls from bias + scale to bias."""
    confidence_noise: float | None = None
    """Masked: noise on the confidence; more gives more varied, less clean samples."""

    @property
    def given(self) -> dict[str, Any]:
        """The settings that were given."""
        return {name: value for name, value in dataclasses.asdict(self).items() if value is not None}


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshOptions:
    """How the devices of all processes share the work. Together the two sizes are the number of devices."""

    data: int | None = None
    """Devices that split the batch alone; default all that are left."""
    fsdp: int = 1
    """Devices that split the batch, and parameters, their average and the optimiser's state as well."""
    gather: Gather = Gather.STEP
    """Put parameters together once a step, for all loops, or in every loop, which needs less memory."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SizeOptions:
    """Sizes that replace those of the preset."""

    dim: int | None = None
    """Width d."""
    num_layers: int | None = None
    """N, unique layers."""
    max_loops: int | None = None
    """L_max, loops in training."""
    num_heads: int | None = None
    """Attention heads, a divisor of the width."""
    prelude: int | None = None
    """Layers before the loops."""
    coda: int | None = None
    """Layers after the last loop."""
    residual_scale: float | None = None
    """Of the branches of the layers that loop, in (0, 1]."""
    reinjection: float | None = None
    """Share of what entered the loops in what each of them starts from, in [0, 1)."""
    num_loop_deltas: int | None = None
    """Loops that add vectors of their own to the layers' vectors, at most L_max."""
    loop_embedding: bool | None = None
    """Tell the layers which loop they are in, by a vector added to their conditioning. Diffusion."""
    rms_norm: bool = False
    """RMS norms in the trunk's layers, in place of layer norms."""
    qk_norm: bool = False
    """RMS norms of queries and keys."""
    swiglu: bool = False
    """Gated MLPs in the trunk's layers, with two thirds of an MLP's hidden width."""
    rotary: bool = False
    """Turn queries and keys by their positions in the grid of tokens, beside the positions that are added."""
    patch_size: int | None = None
    """Diffusion: pixels along each side of a patch."""
    codebook_size: int | None = None
    """Masked, without a tokenizer: codes of the k-means codebook."""
    dropout: float | None = None
    remat: Remat | None = None
    """What the backward pass computes again instead of storing."""
    noise_shift: float | None = None
    """Diffusion: shift of the cosine noise schedule."""
    loss_bias: float | None = None
    """Diffusion: b of the sigmoid weighting."""
    label_smoothing: float | None = None
    """Masked: of the cross-entropy."""

    def applied(self, config: ModelConfig) -> ModelConfig:
        """The config with these sizes.

        **Raises:** `ValueError` for a size that the family does not have.
        """
        # What is not given has the default: `None`, or `False` of a flag, which leaves what the preset says.
        fields = dataclasses.fields(SizeOptions)
        given = {field.name: value for field in fields if (value := getattr(self, field.name)) is not field.default}
        unknown = [name for name in given if not hasattr(config, name)]
        if unknown:
            raise ValueError(f"`--{unknown[0].replace('_', '-')}` is no size of the family {config.family!r}.")
        return dataclasses.replace(config, **given)


_SIZES = tuple(field.name for field in dataclasses.fields(SizeOptions))


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingOptions(CheckpointOptions, SizeOptions):
    """The knobs of a training run that do not depend on the data."""

    objective: ObjectiveName = "ilsd"
    """What to train for."""
    compare: bool = True
    """On the small data that comes with the library: also train the vanilla baseline, from the same start on the same
    batches, and plot both. On other data give the baseline its own run, with `--objective vanilla`."""
    preset: str | None = None
    """A name of `elt_zoo.families.preset_names()`; default a small model. Its classes and sizes follow the data."""
    out: Path | None = None
    """Where the run goes; default `runs/<data>-<family>-<objective>`."""
    dry_run: bool = False
    """Open the data, build everything abstractly, print sizes, compute and memory, and stop."""

    steps: int | None = None
    """Training steps, each on one batch; the default depends on the data. More than before extend a finished run."""
    batch_size: int = 64
    seed: int = 0
    learning_rate: float | None = None
    """Peak; default the paper's 1e-4 with `--preset`, else a high one for small models."""
    optimizer: OptimizerKind | None = None
    """What turns gradients into updates: the paper's AdamW, or Muon for the matrices of the trunk. Default Muon on
    moving digits, which learn faster with it, else AdamW."""
    accumulation: int | None = None
    """Parts that a batch is split into to save memory; the step is that of the whole batch. Default 1, but for large
    batches on one CPU device as many as make it fastest."""
    ema_decay: float | None = None
    """Of the averaged parameters; default 0.9999 with `--preset`, else a lower one for short runs."""
    label_drop: float = 0.1
    """Share of examples that lose their label, for guidance."""
    min_loops: int = 1
    """L_min, the student's earliest exit."""
    per_example: bool = False
    """Draw the student's exit for each example instead of once per batch."""
    student_weight: float = 1.0
    """Of the student's terms in ILSD, in (0, 1]; less than the paper's 1 favours the last exit over the early ones."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """What the network computes in; parameters stay float32."""
    attention: AttentionKernel = AttentionKernel.AUTO
    """The kernel of self-attention; by default what suits the device, the precision and the sizes. The run says which
    it is."""
    init_from: str | None = None
    """A saved or bundled model to start from: its parameters, where names and shapes agree."""
    new_classes: bool = False
    """With `--init-from`: start the class table afresh if the data has other classes."""

    workers: int | None = None
    """Threads that read ahead; default one for each core where files are decoded."""
    max_unreadable: int = 100
    """Files that may be unreadable before training stops; each is named in the log and another takes its place."""

    sampler: SamplerOptions = dataclasses.field(default_factory=SamplerOptions)
    mesh: MeshOptions = dataclasses.field(default_factory=MeshOptions)

    log_every: int = 50
    """Steps between two reports."""
    trace_steps: tuple[int, int] | None = None
    """The first and the last step to record with JAX's profiler, into `trace` in the run. Step 1 compiles."""
    evaluate_every: int | None = None
    """Steps between two looks while training, each at the held-out loss of every exit and at samples; default at the
    end only. They go to files in the run and to the trackers."""
    wandb: str | None = None
    """A project of Weights & Biases to send metrics and pictures to. Needs the extra `wandb`, and an account or
    WANDB_MODE=offline."""

    def __post_init__(self):
        super().__post_init__()
        for name in ("steps", "batch_size", "accumulation", "log_every", "evaluate_every"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"`--{name.replace('_', '-')} {value}` must be at least 1.")
        for name in ("workers", "max_unreadable", "seed"):
            value = getattr(self, name)
            if value is not None and value < 0:
                raise ValueError(f"`--{name.replace('_', '-')} {value}` must be 0 or more.")
        if self.trace_steps is not None and not 1 <= self.trace_steps[0] <= self.trace_steps[1]:
            raise ValueError(
                f"`--trace-steps {self.trace_steps[0]} {self.trace_steps[1]}` needs a first step of at least 1, and a "
                "last one that is not before it."
            )
        if self.accumulation is not None and self.batch_size % self.accumulation:
            raise ValueError(
                f"`--batch-size {self.batch_size}` must be a multiple of `--accumulation {self.accumulation}`, the "
                "parts that a batch is split into."
            )
        if self.min_loops < 1:
            raise ValueError(f"`--min-loops {self.min_loops}` must be at least 1.")
        if not 0.0 < self.student_weight <= 1.0:
            raise ValueError(f"`--student-weight {self.student_weight}` must be above 0 and at most 1.")
        if not 0.0 <= self.label_drop <= 1.0:
            raise ValueError(f"`--label-drop {self.label_drop}` must be in [0, 1].")
        if self.learning_rate is not None and not 0.0 < self.learning_rate < 1e6:
            raise ValueError(f"`--learning-rate {self.learning_rate}` must be a positive number.")
        if self.ema_decay is not None and not 0.0 <= self.ema_decay < 1.0:
            raise ValueError(f"`--ema-decay {self.ema_decay}` must be in [0, 1).")
        if self.new_classes and self.init_from is None:
            raise ValueError("`--new-classes` goes with `--init-from`.")

    def model(self, default: str) -> ModelConfig:
        """The preset that was named, or the default, with the sizes that were given."""
        return self.applied(preset(default if self.preset is None else self.preset))

    def defining(self) -> dict[str, Any]:
        """All options that define the run, of JSON's types: everything that is not known to be cosmetic."""
        known = {
            name: value
            for name, value in dataclasses.asdict(self).items()
            if name not in _COSMETIC and name not in _SIZES
        }
        return {name: str(value) if isinstance(value, Path) else value for name, value in known.items()}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """What the options leave open until data and model are known.

    **Fields:** `steps`, `learning_rate`, `ema_decay`: as in the options; `kind`: of the optimiser; `small`: a small
    model on a short run: warm-up, then a cosine to zero, instead of the paper's schedule.
    """

    steps: int
    learning_rate: float
    ema_decay: float
    small: bool
    kind: OptimizerKind = OptimizerKind.ADAMW

    @classmethod
    def of(cls, options: TrainingOptions, config: ModelConfig, data: str) -> "Recipe":
        """The recipe of a run: what the options say, the paper's for a named preset, else what suits the small data."""
        if options.preset is not None:
            paper = config.training_defaults()
            default = cls(steps=paper.steps, learning_rate=paper.learning_rate, ema_decay=paper.ema_decay, small=False)
        else:
            steps, rate, decay = _SMALL.get((data, config.family), _SMALL.get((data, ""), (1000, 2e-3, 0.995)))
            default = cls(steps=steps, learning_rate=rate, ema_decay=decay, small=True)
        given = {name: getattr(options, name) for name in ("steps", "learning_rate", "ema_decay")}
        known = {name: value for name, value in given.items() if value is not None}
        muon = options.preset is None and data == MOVING_DIGITS
        kind = options.optimizer or (OptimizerKind.MUON if muon else OptimizerKind.ADAMW)
        return dataclasses.replace(default, kind=kind, **known)

    def optimizer(self, config: ModelConfig) -> OptimizerConfig:
        """The optimiser as the recipe has it."""
        if self.small:
            small = OptimizerConfig.digits(total_steps=self.steps, learning_rate=self.learning_rate)
            return dataclasses.replace(small, kind=self.kind)
        paper = config.training_defaults()
        return OptimizerConfig(
            kind=self.kind,
            learning_rate=self.learning_rate,
            total_steps=self.steps,
            warmup_steps=min(paper.warmup_steps, self.steps // 10),
            b1=paper.b1,
            b2=paper.b2,
            weight_decay=paper.weight_decay,
            clip_norm=paper.clip_norm,
        )


# Steps, learning rate and decay of the average, by data and family.
_SMALL: Mapping[tuple[str, str], tuple[int, float, float]] = {
    (DIGITS, "dit"): (1000, 8e-3, 0.995),
    (DIGITS, "maskgit"): (2000, 6e-3, 0.998),
    (DIGITS, ""): (1000, 4e-3, 0.995),
    (MOVING_DIGITS, ""): (1200, 8e-3, 0.995),
}
