import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from ..families import ModelConfig, preset
from ..looped import Remat
from ..nn import AttentionKernel
from ..sharding import Gather
from ..training import LoopGrowth, OptimizerConfig, OptimizerKind
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
    ada_ln: bool = False
    """Masked: the class conditions the layers by adaLN, in place of being a token."""
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
    """A name of `elt_zoo.families.preset_names()`; default a small model. Its classes and sizes follow the data.
    Presets of a paper are trained as there, and those of bundled models as these were."""
    out: Path | None = None
    """Where the run goes; default `runs/<data>-<family>-<objective>`."""
    dry_run: bool = False
    """Open the data, build everything abstractly, print sizes, compute and memory, and stop."""

    steps: int | None = None
    """Training steps, each on one batch; the default depends on the data. More than before extend a finished run."""
    batch_size: int = 64
    seed: int = 0
    learning_rate: float | None = None
    """Peak; default the paper's 1e-4 for its presets, else a high one for small models."""
    optimizer: OptimizerKind | None = None
    """What turns gradients into updates: the paper's AdamW, or Muon for the matrices of the trunk. Default Muon
    on digits and for the presets of bundled models, which learn faster with it; else AdamW."""
    accumulation: int | None = None
    """Parts that a batch is split into to save memory; the step is that of the whole batch. Default 1, but for large
    batches on one CPU device as many as make it fastest."""
    ema_decay: float | None = None
    """Of the averaged parameters; default 0.9999 for a paper's preset, else a lower one for short runs."""
    label_drop: float = 0.1
    """Share of examples that lose their label, for guidance."""
    min_loops: int = 1
    """L_min, the student's earliest exit."""
    per_example: bool = False
    """Draw the student's exit for each example instead of once per batch."""
    student_weight: float | None = None
    """Of the student's terms in ILSD, in (0, 1]; less favours the last exit over the early ones. Default 1/4 on
    digits that stand still and for the presets of bundled models but `moving-digits`; else the paper's 1."""
    grow_from: int | None = None
    """Train with so many loops first, fewer than L_max, and with all of them later, after a second warm-up of the
    learning rate. The first stage costs less. Default all loops from the start."""
    grow_until: float | None = None
    """With `--grow-from`: the share of the steps with fewer loops, in (0, 1); default half."""
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
        if self.grow_from is not None and self.grow_from < 1:
            raise ValueError(f"`--grow-from {self.grow_from}` must be at least 1.")
        if self.grow_until is not None and not 0.0 < self.grow_until < 1.0:
            raise ValueError(f"`--grow-until {self.grow_until}` must be above 0 and below 1, a share of the steps.")
        if self.grow_until is not None and self.grow_from is None:
            raise ValueError(f"`--grow-until {self.grow_until}` goes with `--grow-from`, the loops until then.")
        if self.student_weight is not None and not 0.0 < self.student_weight <= 1.0:
            raise ValueError(f"`--student-weight {self.student_weight}` must be above 0 and at most 1.")
        if not 0.0 <= self.label_drop <= 1.0:
            raise ValueError(f"`--label-drop {self.label_drop}` must be in [0, 1].")
        if self.learning_rate is not None and not 0.0 < self.learning_rate < 1e6:
            raise ValueError(f"`--learning-rate {self.learning_rate}` must be a positive number.")
        if self.ema_decay is not None and not 0.0 <= self.ema_decay < 1.0:
            raise ValueError(f"`--ema-decay {self.ema_decay}` must be in [0, 1).")
        if self.new_classes and self.init_from is None:
            raise ValueError("`--new-classes` goes with `--init-from`.")

    @property
    def growth(self) -> LoopGrowth | None:
        """How the loops grow, if they do."""
        if self.grow_from is None:
            return None
        growth = LoopGrowth(start_loops=self.grow_from)
        return growth if self.grow_until is None else dataclasses.replace(growth, until=self.grow_until)

    def model(self, default: str) -> ModelConfig:
        """The preset that was named, or the default, with the sizes that were given."""
        return self.applied(preset(default if self.preset is None else self.preset))

    def defining(self) -> dict[str, Any]:
        """All options that define the run, of JSON's types: everything that is not known to be cosmetic."""
        known = {
            name: value
            for name, value in dataclasses.asdict(self).items()
            if name not in _COSMETIC and name not in _SIZES and not name.startswith("grow_")
        }
        # Only where loops grow: runs that were saved before they could are to resume.
        known |= {} if self.growth is None else {"growth": dataclasses.asdict(self.growth)}
        return {name: str(value) if isinstance(value, Path) else value for name, value in known.items()}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """What the options leave open until data and model are known.

    **Fields:** `steps`, `learning_rate`, `ema_decay`, `student_weight`: as in the options; `kind`: of the optimiser;
    `small`: a small model on a short run: warm-up, then a cosine to zero, instead of the paper's schedule.
    """

    steps: int
    learning_rate: float
    ema_decay: float
    small: bool
    kind: OptimizerKind = OptimizerKind.ADAMW
    student_weight: float = 1.0

    @classmethod
    def of(cls, options: TrainingOptions, config: ModelConfig, data: str) -> "Recipe":
        """The recipe of a run: what the options say, else the paper's for one of its presets, that of the bundled model
        for a preset of ours, or what suits the small data.
        """
        if options.preset is not None and options.preset.startswith(_PAPERS):
            paper, kind = config.training_defaults(), OptimizerKind.ADAMW
            default = cls(steps=paper.steps, learning_rate=paper.learning_rate, ema_decay=paper.ema_decay, small=False)
        else:
            of_data = _SMALL.get((data, config.family), _SMALL.get((data, ""), _Schedule()))
            own = _OF_PRESET.get(options.preset or "", of_data)
            kind, default = own.kind, cls(small=True, **dataclasses.asdict(own))
        names = ("steps", "learning_rate", "ema_decay", "student_weight")
        known = {name: value for name in names if (value := getattr(options, name)) is not None}
        return dataclasses.replace(default, kind=options.optimizer or kind, **known)

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


@dataclasses.dataclass(frozen=True)
class _Schedule:
    """How a small model is trained; the defaults are for data that nothing is known of."""

    steps: int = 1000
    learning_rate: float = 2e-3
    ema_decay: float = 0.995
    kind: OptimizerKind = OptimizerKind.ADAMW
    student_weight: float = 1.0


_DIGITS_DIT = _Schedule(steps=1500, learning_rate=8e-3, kind=OptimizerKind.MUON, student_weight=0.25)
_DIGITS_MASKGIT = _Schedule(
    steps=2000, learning_rate=8e-3, ema_decay=0.998, kind=OptimizerKind.MUON, student_weight=0.25
)
_MOVING_DIGITS = _Schedule(steps=1200, learning_rate=8e-3, kind=OptimizerKind.MUON)
# How the names of presets with a paper's recipe begin.
_PAPERS = ("elt-", "maskgit-", "magvit-", "dit-")
# By data and family.
_SMALL: Mapping[tuple[str, str], _Schedule] = {
    (DIGITS, "dit"): _DIGITS_DIT,
    (DIGITS, "maskgit"): _DIGITS_MASKGIT,
    (DIGITS, ""): _Schedule(learning_rate=4e-3),
    (MOVING_DIGITS, ""): _MOVING_DIGITS,
}
# How the bundled models were trained: as the study of loops recommends, except for `moving-digits`.
_OF_PRESET: Mapping[str, _Schedule] = {
    "digits-dit": _DIGITS_DIT,
    "digits-maskgit": _DIGITS_MASKGIT,
    "moving-digits": _MOVING_DIGITS,
    "mnist-dit": _Schedule(steps=5500, learning_rate=8e-3, kind=OptimizerKind.MUON, student_weight=0.25),
    "cifar10-dit": _Schedule(steps=1500, learning_rate=8e-3, kind=OptimizerKind.MUON, student_weight=0.25),
    "cifar10-maskgit": _Schedule(steps=1500, learning_rate=8e-3, kind=OptimizerKind.MUON, student_weight=0.25),
}
