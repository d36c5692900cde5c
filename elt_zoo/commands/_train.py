import dataclasses
import time
from pathlib import Path
from typing import Literal

from ..distributed import is_first, together
from ..evaluation import ReportOptions, report_run, watch
from ..families import ModelConfig
from ..recipes import (
    DIGITS,
    MOVING_DIGITS,
    Augmentation,
    Run,
    Task,
    TrainingOptions,
    clip_task,
    digits_task,
    image_task,
    where_to_watch,
)
from ..recipes import train as train_run
from ..tokenizers import Tokenizer, load_tokenizer
from ._processes import ProcessOptions


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainOptions(ProcessOptions, TrainingOptions):
    """Train an elastic looped transformer, sample it at every loop count, and measure what each count is worth."""

    data: str = DIGITS
    """`digits`, `moving-digits`, `cifar10`, `mnist`, or a path: the official files of the last two, ImageNet (folders
    or tar files), a folder of class folders with images or, with a video preset, with videos, UCF-101, or shards."""
    family: Literal["dit", "maskgit"] = "dit"
    """Diffusion over pixels or latents, or masked generation over tokens. Clips are always tokens."""
    tokenizer: Path | None = None
    """A folder that `convert` or `train-tokenizer` wrote: a VQGAN or 3D-VQ (masked), or an autoencoder (latents)."""
    heldout: int = 256
    """Examples to measure the loss on, kept from training where the data has no such part."""
    image_size: int | None = None
    """Height and width of the images, in pixels; default what preset and tokenizer want, or without a tokenizer the
    size of CIFAR-10 (32) and MNIST (28)."""
    random_crop: bool = True
    """Images in files: crop at random. CIFAR-10 and MNIST are never cropped."""
    flip: bool = True
    """Images: mirror half of them. MNIST never is."""
    exact_resize: bool = False
    """Images: resize as ADM did, to the last bit, instead of fast."""
    tokens: Literal["patches", "pixels"] = "patches"
    """Masked generation of digits: 16 tokens of 2 × 2 pixels from a codebook, or 64 single pixels."""
    stride: int = 1
    """Clips: frames of a video from one frame of a clip to the next."""
    fold: int = 1
    """Clips: which of UCF-101's three splits."""
    clips: int = 4096
    """Moving digits: different clips to train on."""
    samples: int | None = None
    """Samples per loop count to measure quality on, as many of each class; default 1,000 digits, else what is shown."""
    sample_seeds: int = 1
    """Sets of samples, each from its own noise, to average scores over."""

    def __post_init__(self):
        super().__post_init__()
        for name in ("heldout", "image_size", "stride", "clips", "samples", "sample_seeds"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"`--{name.replace('_', '-')} {value}` must be at least 1.")
        if self.fold not in (1, 2, 3):
            raise ValueError(f"`--fold {self.fold}`: UCF-101 has the splits 1, 2 and 3.")
        if self.data == DIGITS and self.samples is not None and (self.samples < 100 or self.samples % 10):
            raise ValueError(f"`--samples {self.samples}` must be a multiple of the 10 classes, and at least 100.")
        if self.data == DIGITS and self.tokenizer is not None:
            raise ValueError(f"`--tokenizer {self.tokenizer}` goes with `--data`; digits have their own tokens.")
        if self.data in (DIGITS, MOVING_DIGITS) and self.image_size is not None:
            raise ValueError(f"`--image-size {self.image_size}`: {self.data} have one size. Leave it out.")

    @property
    def config(self) -> ModelConfig:
        """The config before its sizes follow the data."""
        if self.data == MOVING_DIGITS:
            config = self.model(MOVING_DIGITS)
            if not video(config):
                raise ValueError(f"Preset {self.preset!r} is not for clips. Use elt-ucf101-6Nx4L or tiny-ucf101.")
            return config
        pixels = self.data == DIGITS and self.family == "maskgit" and self.tokens == "pixels"
        small = f"{'digits' if self.data == DIGITS else 'tiny'}-{self.family}{'-pixels' if pixels else ''}"
        config = self.model(small)
        if not video(config) and config.family != self.family:
            raise ValueError(f"Preset {self.preset!r} is for `--family {config.family}`, not {self.family}.")
        if self.data == DIGITS and video(config):
            raise ValueError(f"Preset {self.preset!r} is for clips, and `--data {DIGITS}` are images.")
        return config


def video(config: ModelConfig) -> bool:
    """Whether a config is for tokens of clips."""
    return len(config.example.shape) == 3 and config.family == "maskgit"


def open_task(options: TrainOptions, tokenizer: Tokenizer | None) -> Task:
    """The task that the options name: the config fitted to the data."""
    config, given = options.config, options.sampler.given
    described = {"tokenizer": str(options.tokenizer)}
    if options.data == DIGITS:
        return digits_task(config, pixels=options.tokens == "pixels", settings=given)
    if video(config):
        return clip_task(
            config,
            options.data,
            tokenizer=tokenizer,
            heldout=options.heldout,
            stride=options.stride,
            fold=options.fold,
            clips=options.clips,
            settings=given,
            described=described,
        )
    return image_task(
        config,
        options.data,
        tokenizer=tokenizer,
        heldout=options.heldout,
        augmentation=Augmentation(
            random_crop=options.random_crop, flip=options.flip, exact_resize=options.exact_resize
        ),
        size=options.image_size,
        settings=given,
        described=described,
    )


def train(options: TrainOptions) -> None:
    """`elt-zoo train`."""
    started = time.perf_counter()
    options.start()
    _ = options.config  # first, so that an unknown one is refused before anything is read
    tokenizer = None if options.tokenizer is None else load_tokenizer(options.tokenizer)
    task = together(lambda: open_task(options, tokenizer))
    if options.dry_run:
        if is_first():
            print(describe(options, task))
        return
    run = Run.of(options, task)
    if is_first():
        print(f"{run.computing}\n{where_to_watch(run.folder)}", flush=True)
    results = train_run(run, on_evaluate=watch(run))
    if not is_first():
        return
    if not all(trained.finished for trained in results.values()):
        print(f"Stopped on request; the state is saved. Run the same command again to resume {run.folder}.")
        return
    table = report_run(run, results, ReportOptions.of(task, samples=options.samples, sample_seeds=options.sample_seeds))
    seconds = time.perf_counter() - started
    print(
        f"\n{table}\nPictures, table, metrics and model are in {run.folder} ({seconds:.0f} s).\n"
        f"{where_to_watch(run.folder)}"
    )


def describe(options: TrainOptions, task: Task) -> str:
    """What a run would be: its data, its sampler, and what the model costs with the chosen batch, precision and remat.

    **Raises:** `ValueError` for what the run would refuse.
    """
    config, settings, run = task.config, task.settings, Run.of(options, task)
    data = f"{len(task.train):,} examples of {task.train.num_classes} classes in {task.data}"
    for name in run.objectives:
        run.stages(name)
    config.sampler(settings)
    costs = run.costs
    activations = costs.training_activation_bytes() / (options.accumulation or 1) / 2**20
    # A CPU may split the batch by itself.
    bound = "at most " if options.accumulation is None else ""
    return (
        f"{costs}\ndata: {data}\nsampler: {settings}\nprecision: {options.precision}, remat: {config.remat}, "
        f"activations of a training step: {bound}{activations:,.1f} MiB"
    )
