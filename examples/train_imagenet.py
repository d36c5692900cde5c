"""Train an elastic looped transformer, sample it at every loop count, and measure what each count is worth.

    python examples/train_imagenet.py                        # digits, diffusion, ILSD beside its vanilla twin
    python examples/train_imagenet.py --family maskgit    # digits, masked generation
    python examples/train_imagenet.py --data /data/imagenet --family maskgit --tokenizer models/maskgit-vqgan \\
        --preset elt-XL-7Nx4L --batch-size 512 --steps 675000
    python examples/train_imagenet.py --preset elt-XL-7Nx4L --family maskgit --dry-run

With no arguments it trains on the 1,797 real digits that come with scikit-learn: about four minutes on two CPU cores.
`--data` takes ImageNet's folders or its original tar files, any folder of class folders, or the shards that
`precompute.py` wrote. The run goes to `runs/<name>`: pictures of samples at every loop count, a plot and a table of
quality against loops and compute, the trained model, the metrics, and `summary.json` with every knob. Run it again to
resume an interrupted run.
"""

import dataclasses
import time
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import tyro
from datasets import Opened, open_images
from measure import report
from runs import Recipe, Run, Trained, TrainingOptions, train
from samplers import make_sampler
from tasks import Representation, Task, as_latents, as_pixels, as_tokens, make_task

from elt_zoo.data import (
    ArraySource,
    Batch,
    ShardedLatents,
    ShardedTokens,
    digits_to_pixels,
    first_examples,
    load_digits,
    to_pixels,
)
from elt_zoo.families import DiTConfig, MaskGITConfig, ModelConfig, preset
from elt_zoo.metrics import DigitsEvaluator
from elt_zoo.profile import profile
from elt_zoo.storage import WeightsError
from elt_zoo.tokenizers import (
    AbstractTokenizer,
    AutoencoderKL,
    AutoencoderKLConfig,
    GreyLevels,
    PatchCodebook,
    load_tokenizer,
)

_CODEBOOK_IMAGES = 512
_PATCH = 4


@dataclasses.dataclass(frozen=True)
class Config(TrainingOptions):
    """Train an elastic looped transformer and measure every exit."""

    family: Literal["dit", "maskgit"] = "dit"
    """Diffusion over pixels or latents, or masked generation over tokens."""
    data: str = "digits"
    """`digits`, the folder of ImageNet (class folders or tar files), any folder of class folders, or shards."""
    tokenizer: Path | None = None
    """A folder that `convert.py` or `train_tokenizer.py` wrote: a VQGAN (masked) or an autoencoder (diffusion over
    latents). Without one, images are pixels (diffusion) or patches from a k-means codebook (masked)."""
    heldout: int = 256
    """Images to measure the loss on, of the `val` folder if there is one, else kept from training."""
    exact_resize: bool = False
    """Resize as ADM did, to the last bit, instead of fast."""
    tokens: Literal["patches", "pixels"] = "patches"
    """Masked generation on digits: 16 tokens of 2 × 2 pixels from a codebook, or 64 single pixels."""
    samples: int = 1000
    """Digits: samples per loop count to measure quality on, as many of each class."""

    def __post_init__(self):
        if self.samples < 100 or self.samples % 10:
            raise ValueError(f"`--samples {self.samples}` must be a multiple of the 10 classes, and at least 100.")
        if self.digits and self.tokenizer is not None:
            raise ValueError(f"`--tokenizer {self.tokenizer}` goes with `--data`; digits have tokens of their own.")

    @property
    def digits(self) -> bool:
        return self.data == "digits"

    @property
    def model(self) -> ModelConfig:
        """The preset, before its sizes follow the data."""
        name = self.preset
        if name is None:
            pixels = self.digits and self.family == "maskgit" and self.tokens == "pixels"
            name = f"{'digits' if self.digits else 'tiny'}-{self.family}{'-pixels' if pixels else ''}"
        config = preset(name)
        if config.family != self.family:
            raise ValueError(f"Preset {name!r} is for `--family {config.family}`, not {self.family}.")
        return config

    @property
    def folder(self) -> Path:
        name = "digits" if self.digits else Path(self.data).resolve().name
        return self.out or Path("runs") / f"{name}-{self.family}-{self.objective}"

    @property
    def recipe(self) -> Recipe:
        masked = self.family == "maskgit"
        if self.preset is not None:
            default = Recipe(steps=675_000 if masked else 500_000, learning_rate=1e-4, ema_decay=0.9999, small=False)
        elif self.digits:
            rate, decay = (6e-3, 0.998) if masked else (8e-3, 0.995)
            default = Recipe(steps=2000 if masked else 1000, learning_rate=rate, ema_decay=decay, small=True)
        else:
            default = Recipe(steps=1000, learning_rate=2e-3, ema_decay=0.995, small=True)
        return default.resolved(self)


def digits_task(config: Config) -> Task:
    """Digits in memory: pixels, or ids of a codebook fitted to them."""
    train, heldout = load_digits("train"), load_digits("heldout")
    pixels, heldout_pixels = digits_to_pixels(train.images), digits_to_pixels(heldout.images)
    representation, tokenizer = Representation(decode=lambda samples: samples), None
    if isinstance(config.model, MaskGITConfig):
        size = config.model.codebook_size
        if config.tokens == "patches":
            tokenizer = PatchCodebook.fit(pixels, codebook_size=size)
        else:
            tokenizer = GreyLevels((8, 8, 1), size)
        encode = jax.jit(jax.vmap(tokenizer.encode))
        pixels, heldout_pixels = np.asarray(encode(pixels)), np.asarray(encode(heldout_pixels))
        representation = Representation(decode=jax.vmap(tokenizer.decode), codebook_size=size)
    return make_task(
        config.model,
        ArraySource(pixels, train.labels),
        Batch(heldout_pixels, heldout.labels),
        representation,
        settings=config.sampler,
        tokenizer=tokenizer,
        digits=True,
        loss_bias=config.loss_bias,
        label_smoothing=config.label_smoothing,
    )


def images_task(config: Config) -> Task:
    """Images on the disk, or what was precomputed from them."""
    tokenizer = None if config.tokenizer is None else load_tokenizer(config.tokenizer)
    model = config.model
    opened = open_images(
        config.data,
        size=image_size(model, tokenizer),
        heldout=config.heldout,
        exact=config.exact_resize,
        tokenizer=tokenizer,
    )
    unfit = ShardedLatents if isinstance(model, MaskGITConfig) else ShardedTokens
    if isinstance(opened.shards, unfit):
        kind = opened.shards.index.kind
        raise ValueError(
            f"`--data {config.data}` holds {kind}, which `--family {config.family}` does not take: masked "
            "generation needs tokens, diffusion latents or pixels."
        )
    heldout = first_examples(opened.heldout, config.heldout)
    if isinstance(model, MaskGITConfig):
        tokenizer, representation = tokens_of(opened, model, tokenizer)
    else:
        representation = latents_or_pixels_of(opened, tokenizer)
    return make_task(
        model,
        opened.train,
        heldout,
        representation,
        settings=config.sampler,
        tokenizer=tokenizer,
        loss_bias=config.loss_bias,
        label_smoothing=config.label_smoothing,
    )


def tokens_of(opened: Opened, model: MaskGITConfig, tokenizer: Any) -> tuple[AbstractTokenizer | None, Representation]:
    """Precomputed ids, a given tokenizer, or a codebook of patches fitted to the first images."""
    if isinstance(opened.shards, ShardedTokens):
        return tokenizer, as_tokens(tokenizer, opened.shards.codebook_size)
    if tokenizer is None:
        images = to_pixels(first_examples(opened.plain, _CODEBOOK_IMAGES)).examples
        tokenizer = PatchCodebook.fit(np.asarray(images), codebook_size=model.codebook_size, patch_size=_PATCH)
    return tokenizer, as_tokens(tokenizer, tokenizer.codebook_size)


def latents_or_pixels_of(opened: Opened, autoencoder: Any) -> Representation:
    """Precomputed posteriors, a given autoencoder, or the pixels themselves."""
    if isinstance(opened.shards, ShardedLatents) or autoencoder is not None:
        scale = AutoencoderKLConfig().scaling_factor if autoencoder is None else autoencoder.config.scaling_factor
        return as_latents(autoencoder, scale)
    return as_pixels()


def image_size(model: ModelConfig, tokenizer: AbstractTokenizer | AutoencoderKL | None) -> int:
    """Height and width of the images that the preset and the tokenizer together want."""
    if isinstance(model, MaskGITConfig):
        if isinstance(tokenizer, AutoencoderKL):
            raise ValueError("`--family maskgit` needs a tokenizer of discrete tokens, and this is an autoencoder.")
        return model.grid[0] * _PATCH if tokenizer is None else tokenizer.shape[0]
    assert isinstance(model, DiTConfig)
    if isinstance(tokenizer, AutoencoderKL):
        return model.shape[0] * tokenizer.config.downsampling
    if tokenizer is not None:
        raise ValueError("`--family dit` takes an autoencoder or none, and this tokenizer has discrete tokens.")
    if model.shape[-1] != 3:
        raise ValueError(
            f"This preset diffuses over latents of {model.shape[-1]} channels: give `--tokenizer` the folder of an "
            "autoencoder, or choose a preset of pixels such as tiny-dit."
        )
    return model.shape[0]


def main(config: Config) -> None:
    if config.dry_run:
        sampler = make_sampler(config.model, config.sampler.resolved(config.model, digits=config.digits))
        guided = sampler.guidance is not None
        print(profile(config.model, batch=config.batch_size, steps=sampler.steps, guidance=guided))
        return
    started = time.perf_counter()
    task = digits_task(config) if config.digits else images_task(config)
    compare = config.compare and config.digits
    data = {"data": config.data, "tokenizer": str(config.tokenizer), "examples": len(task.train)}
    run = Run(config, config.recipe, task, config.folder, data, compare)
    results = train(run)
    if not all(trained.finished for trained in results.values()):
        print(f"Stopped on request; the state is saved. Run the same command again to resume {run.folder}.")
        return
    if config.digits:
        table, note = report_digits(run, results, config.samples)
    else:
        table, note = report(run, results, heldout_batch=config.batch_size), ""
    seconds = time.perf_counter() - started
    print(f"\n{table}{note}\nPictures, table, metrics and model are in {run.folder} ({seconds:.0f} s).")


def report_digits(run: Run, results: dict[Any, Trained], samples: int) -> tuple[str, str]:
    """The report with the quality of digits, and what real digits score."""
    evaluator = DigitsEvaluator()
    floor = evaluator.floor()

    def quality(pixels: np.ndarray, classes: np.ndarray) -> dict[str, float]:
        measured = evaluator(pixels, classes)
        return {
            "digits_frechet_distance": measured.frechet_distance,
            "accuracy": measured.accuracy,
            "nearest_train_distance": measured.nearest_distance,
        }

    described = {
        "name": "digits Fréchet distance of elt_zoo.metrics.DigitsEvaluator (not FID)",
        "floors": {"digits_frechet_distance": floor["heldout"]},
        "real_digits": floor,
    }
    table = report(
        run, results, samples=samples, quality=quality, evaluator=described, heldout_copies=4, heldout_batch=1440
    )
    note = f"\nReal held-out digits: distance {floor['heldout']:.2f}, accuracy {floor['heldout_accuracy']:.3f}."
    return table, note


if __name__ == "__main__":
    try:
        main(tyro.cli(Config, description=__doc__))
    except (ValueError, FileNotFoundError, FileExistsError, WeightsError) as error:
        raise SystemExit(f"error: {error}") from None
