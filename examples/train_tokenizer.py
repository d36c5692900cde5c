"""Train a tokenizer with a learned codebook: a VQGAN for images or a MAGVIT-style 3D-VQ for video.

    python examples/train_tokenizer.py                        # real digits, 16 × 16 pixels → 4 × 4 tokens
    python examples/train_tokenizer.py --data moving-digits   # clips of 8 × 16 × 16 pixels → 4 × 4 × 4 tokens
    python examples/train_tokenizer.py --data moving-digits --kind image --out runs/frames
    python examples/train_tokenizer.py --data moving-digits --inflate runs/frames/tokenizer
    python examples/train_tokenizer.py --data /data/ucf101 --kind video --preset paper --adversarial 0.1

The run goes to `runs/tokenizer-<data>-<kind>`: the tokenizer (its average, read it with `load_tokenizer`), held-out
pictures above their reconstructions, the metrics, and `summary.json` with the quality on held-out data. Run it again to
resume an interrupted run. Adversarial and perceptual terms are off by default; `--preset paper` takes the published
sizes, which want an accelerator.
"""

import contextlib
import dataclasses
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import tyro
from datasets import DIGITS, MOVING_DIGITS, open_clips, open_images
from pictures import save_reconstructions
from reports import metric_files, progress_bar

from elt_zoo.data import (
    AbstractSource,
    ArraySource,
    Batch,
    MovingDigits,
    Visit,
    digits_to_pixels,
    load_digits,
    to_pixels,
    training_batches,
)
from elt_zoo.pretrained import load_inception
from elt_zoo.tokenizer_training import (
    AbstractCodebookRule,
    Adversary,
    DiscriminatorConfig,
    EMACodebook,
    GradientCodebook,
    ReconstructionLoss,
    TokenizerQuality,
    VQTokenizer,
    create_tokenizer_state,
    evaluate_tokenizer,
    make_tokenizer_step,
)
from elt_zoo.tokenizers import MaskGITVQGAN, Shortcut, VQ3DConfig, VQGANConfig, inflate, load_tokenizer, save_tokenizer
from elt_zoo.training import (
    Checkpoints,
    Decay,
    OptimizerConfig,
    Precision,
    Report,
    TrainState,
    fit,
    jit_step,
    make_optimizer,
    stop_on_signals,
)


@dataclasses.dataclass(frozen=True)
class Config:
    """Train a tokenizer and measure it on held-out data."""

    data: str = DIGITS
    """`digits`, `moving-digits`, or the path of images or videos, see `datasets.py`."""
    kind: Literal["image", "video"] | None = None
    """Default: video for moving digits, else images. `image` with moving digits trains on their frames."""
    preset: Literal["small", "paper"] = "small"
    """Sizes for a CPU, or those of the published networks."""
    codebook_size: int | None = None
    """K; default 128 (small) or 1,024."""
    inflate: Path | None = None
    """The folder of an image tokenizer to start a 3D-VQ from; it must have the same widths, blocks and codebook."""
    out: Path | None = None
    """Where the run goes; by default `runs/tokenizer-<data>-<kind>`."""

    steps: int | None = None
    """Default 1,000 (images) or 800 (clips) for small sizes, else 100,000."""
    batch_size: int | None = None
    """Clips or images. Default 64 (images) or 16 (clips) for small sizes, else 128."""
    learning_rate: float | None = None
    """Default 5e-3 for small sizes, else 1e-4."""
    ema_decay: float | None = None
    """Default 0.98 for small sizes, else 0.999."""
    seed: int = 0
    precision: Literal["float32", "bfloat16"] = "float32"

    codebook: Literal["ema", "gradient"] = "ema"
    """Codes are moving averages of their latents, or move by gradients."""
    commitment: float = 0.25
    code_decay: float = 0.95
    """Of the averages over batches."""
    revive_below: float = 0.03
    """Codes chosen by less than this share of their due are replaced."""

    l1: float = 0.0
    l2: float = 1.0
    perceptual: float = 0.0
    """Weight of the distance between Inception features; needs `--inception`."""
    inception: Path | None = None
    """Weights of the Inception network, `pt_inception-2015-12-05-6726825d.pth`."""
    adversarial: float = 0.0
    """Weight of the adversarial term, 0 for none; MAGVIT takes 0.1."""
    adversarial_start: int = 0
    """Step from which the discriminator plays."""
    r1: float = 0.0
    lecam: float = 0.001

    heldout: int = 320
    """Examples to measure quality on."""
    checkpoint_every: int = 500
    log_every: int = 25

    def __post_init__(self):
        if self.inflate is not None and not self.video:
            raise ValueError("`--inflate` starts a 3D-VQ: train on clips, with `--kind video`.")
        if self.video and self.data == DIGITS:
            raise ValueError("`--kind video` needs clips: use `--data moving-digits`, or the path of videos.")
        if self.perceptual > 0.0 and self.inception is None:
            raise ValueError(f"`--perceptual {self.perceptual}` needs the network's weights, `--inception FILE`.")

    @property
    def video(self) -> bool:
        return self.data == MOVING_DIGITS if self.kind is None else self.kind == "video"

    @property
    def folder(self) -> Path:
        return self.out or Path("runs") / f"tokenizer-{Path(self.data).name}-{'video' if self.video else 'image'}"

    @property
    def network(self) -> VQGANConfig | VQ3DConfig:
        """Sizes of the tokenizer. The image network of clips has those that `inflate` asks for."""
        small, clips = self.preset == "small", self.data == MOVING_DIGITS
        if self.video:
            network = _SMALL_VIDEO if small else VQ3DConfig()
        elif clips:
            video = _SMALL_VIDEO if small else VQ3DConfig()
            network = VQGANConfig(
                image_size=video.shape[1],
                num_res_blocks=video.num_enc_res_blocks,
                shortcut=Shortcut.INPUT,
                **{name: getattr(video, name) for name in _SHARED},
            )
        else:
            network = VQGANConfig() if not small else _DIGITS_SIZES if self.data == DIGITS else _SMALL_IMAGE
        size = network.codebook_size if self.codebook_size is None else self.codebook_size
        return dataclasses.replace(network, codebook_size=size)

    @property
    def recipe(self) -> "Recipe":
        """The knobs whose defaults depend on the data and the sizes."""
        if self.preset == "paper":
            default = Recipe(steps=100_000, batch_size=128, learning_rate=1e-4, ema_decay=0.999)
        else:
            steps, batch_size = (800, 16) if self.video or self.data == MOVING_DIGITS else (1000, 64)
            default = Recipe(steps=steps, batch_size=batch_size, learning_rate=5e-3, ema_decay=0.98)
        given = {name: getattr(self, name) for name in dataclasses.asdict(default)}
        return dataclasses.replace(default, **{name: value for name, value in given.items() if value is not None})

    def run_config(self) -> dict[str, Any]:
        """What two runs must share for one to resume the other."""
        cosmetic = ("out", "heldout", "checkpoint_every", "log_every")
        knobs = {name: value for name, value in dataclasses.asdict(self).items() if name not in cosmetic}
        paths = {name: str(value) for name, value in knobs.items() if isinstance(value, Path)}
        return knobs | paths | dataclasses.asdict(self.recipe) | {"network": dataclasses.asdict(self.network)}


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What `Config` leaves open until the data and the sizes are known."""

    steps: int
    batch_size: int
    learning_rate: float
    ema_decay: float


_SMALL_IMAGE = VQGANConfig(
    image_size=32,
    filters=16,
    channel_multipliers=(1, 2, 4),
    num_res_blocks=1,
    embedding_dim=16,
    codebook_size=128,
    groups=8,
    shortcut=Shortcut.INPUT,
)
_DIGITS_SIZES = dataclasses.replace(_SMALL_IMAGE, image_size=16)
_SMALL_VIDEO = VQ3DConfig(
    shape=(8, 16, 16),
    filters=16,
    channel_multipliers=(1, 2, 2),
    temporal_downsample=(True, False),
    num_enc_res_blocks=1,
    num_dec_res_blocks=1,
    embedding_dim=16,
    codebook_size=128,
    groups=8,
)
_SHARED = ("filters", "channel_multipliers", "embedding_dim", "codebook_size", "groups")


class Data(NamedTuple):
    """What to train on and what to measure on."""

    train: AbstractSource
    heldout: AbstractSource


class Outcome(NamedTuple):
    """A tokenizer, the average over training; whether training is complete; and seconds per step."""

    tokenizer: VQTokenizer
    finished: bool
    seconds_per_step: float


def open_data(config: Config) -> Data:
    """The sources of a config."""
    network = config.network
    if config.data == MOVING_DIGITS:
        frames, size = network.shape[:2] if isinstance(network, VQ3DConfig) else (8, network.image_size)
        train = MovingDigits("train", frames=frames, size=size)
        return Data(train, MovingDigits("heldout", frames=frames, size=size, augment=False))
    if isinstance(network, VQ3DConfig):
        opened = open_clips(config.data, shape=(*network.shape, 3), heldout=config.heldout)
        return Data(opened.train, opened.heldout)
    size = network.image_size
    if config.data != DIGITS:
        opened = open_images(config.data, size=size, heldout=config.heldout)
        return Data(opened.train, opened.heldout)

    def enlarged(split: Literal["train", "heldout"]) -> ArraySource:
        digits = load_digits(split)
        pixels = digits_to_pixels(digits.images)
        shape = (len(pixels), size, size, 1)
        smooth = np.asarray(jnp.clip(jax.image.resize(pixels, shape, "cubic"), -1.0, 1.0))
        return ArraySource(np.repeat(smooth, 3, axis=-1), digits.labels)

    return Data(enlarged("train"), enlarged("heldout"))


def pixels_of(batch: Any, *, video: bool) -> Batch:
    """A batch as the network wants it; for an image network every frame of a clip is an example."""
    batch = batch if isinstance(batch, Batch) else to_pixels(batch)
    clips = batch.examples
    if video or clips.ndim == 4:
        return batch
    return Batch(clips.reshape(-1, *clips.shape[2:]), np.repeat(batch.labels, clips.shape[1]))


def heldout_batches(config: Config, source: AbstractSource) -> Iterator[Batch]:
    """The first held-out examples, in order."""
    count = min(config.heldout, len(source))
    for start in range(0, count, 32):
        visits = [Visit(index) for index in range(start, min(start + 32, count))]
        yield pixels_of(source.read_batch(visits), video=config.video)


def make_codebook_rule(config: Config) -> AbstractCodebookRule:
    family = EMACodebook if config.codebook == "ema" else GradientCodebook
    return family(commitment=config.commitment, decay=config.code_decay, revive_below=config.revive_below)


def make_loss(config: Config) -> ReconstructionLoss:
    loss = ReconstructionLoss(l1=config.l1, l2=config.l2)
    if config.inception is None:
        return loss
    inception = load_inception(config.inception)
    return dataclasses.replace(
        loss, perceptual=config.perceptual, features=lambda image: inception.activations(255.0 * image)
    )


def make_adversary(config: Config) -> tuple[Adversary | None, DiscriminatorConfig | None]:
    if config.adversarial == 0.0:
        return None, None
    optimizer = OptimizerConfig(
        learning_rate=config.recipe.learning_rate / 5.0, total_steps=config.recipe.steps, b1=0.0, b2=0.99, clip_norm=1.0
    )
    adversary = Adversary(
        optimizer=make_optimizer(optimizer),
        weight=config.adversarial,
        start=config.adversarial_start,
        r1=config.r1,
        lecam=config.lecam,
    )
    network = config.network
    shape = network.shape if isinstance(network, VQ3DConfig) else (network.image_size,) * 2
    multipliers = (2, 4) if config.preset == "small" else (2, 4, 4, 4)
    return adversary, DiscriminatorConfig(shape=shape, filters=network.filters, channel_multipliers=multipliers)


def first_tokenizer(config: Config, key: jax.Array) -> VQTokenizer:
    """Fresh parameters, or those of an image tokenizer."""
    network = config.network
    if config.inflate is None:
        return network.build(key=key)
    image_model = load_tokenizer(config.inflate)
    if not isinstance(image_model, MaskGITVQGAN):
        raise ValueError(f"`--inflate {config.inflate}` holds a {type(image_model).__name__}; it must be a VQGAN.")
    assert isinstance(network, VQ3DConfig)
    return inflate(image_model, network)


def train(config: Config, data: Data, stop: threading.Event) -> Outcome:
    """Trains a tokenizer in `config.folder`, or resumes it."""
    recipe = config.recipe
    optimizer = make_optimizer(
        OptimizerConfig(
            learning_rate=recipe.learning_rate,
            total_steps=recipe.steps,
            warmup_steps=min(recipe.steps // 20, 5000),
            decay=Decay.COSINE,
            b2=0.99,
            clip_norm=1.0,
        )
    )
    rule = make_codebook_rule(config)
    adversary, discriminator = make_adversary(config)
    tokenizer_key, discriminator_key, state_key = jax.random.split(jax.random.key(config.seed), 3)
    folder = config.folder
    folder.mkdir(parents=True, exist_ok=True)
    checkpoints = Checkpoints(folder / "checkpoints", config.run_config(), every=config.checkpoint_every)
    batches = training_batches(data.train, batch_size=recipe.batch_size, seed=config.seed)

    def start() -> TrainState:
        return create_tokenizer_state(
            first_tokenizer(config, tokenizer_key),
            optimizer,
            rule,
            codes_initialised=config.inflate is not None,
            adversary=adversary,
            discriminator=None if discriminator is None else discriminator.build(key=discriminator_key),
            key=state_key,
        )

    if checkpoints.latest_step() is None:
        state = start()
    else:
        state, position = checkpoints.restore(eqx.filter_eval_shape(start))
        batches.set_state(position)
    step = make_tokenizer_step(
        optimizer,
        rule,
        loss=make_loss(config),
        adversary=adversary,
        ema_decay=recipe.ema_decay,
        precision=Precision(jnp.dtype(config.precision)),
        prepare=lambda batch, key: pixels_of(batch, video=config.video),
    )
    with (
        metric_files(folder, "tokenizer") as write,
        progress_bar("tokenizer", steps=recipe.steps, taken=int(state.step), show=("psnr", "usage", "loss")) as move,
        contextlib.closing(checkpoints),
        contextlib.closing(batches),
    ):

        def on_report(report: Report) -> None:
            write(report)
            move(report)

        result = fit(
            state,
            jit_step(step),
            batches,
            total_steps=recipe.steps,
            log_every=config.log_every,
            on_report=on_report,
            checkpoints=checkpoints,
            stop=stop,
        )
    return Outcome(result.state.ema, result.finished, result.seconds_per_step)


def evaluate(config: Config, tokenizer: VQTokenizer, data: Data) -> TokenizerQuality:
    """The quality on held-out data; leaves a picture of some of it."""
    quality = evaluate_tokenizer(tokenizer, heldout_batches(config, data.heldout))
    shown = 6 if config.video else 16
    originals = np.asarray(next(heldout_batches(config, data.heldout)).examples)[:shown]
    reconstruct = eqx.filter_jit(jax.vmap(lambda pixels: tokenizer.decode(tokenizer.encode(pixels))))
    save_reconstructions(config.folder / "reconstructions.png", originals, np.asarray(reconstruct(originals)))
    return quality


def main(config: Config) -> None:
    started = time.perf_counter()
    data = open_data(config)
    with stop_on_signals() as stop:
        outcome = train(config, data, stop)
    if not outcome.finished:
        print(f"Stopped on request; the state is saved. Run the same command again to resume {config.folder}.")
        return
    quality = evaluate(config, outcome.tokenizer, data)
    seconds = time.perf_counter() - started
    summary = {
        "config": config.run_config(),
        "heldout": quality._asdict(),
        "seconds": {"total": seconds, "step": outcome.seconds_per_step},
        "device": str(jax.devices()[0]),
    }
    (config.folder / "summary.json").write_text(json.dumps(summary, indent=2))
    folder = config.folder / "tokenizer"
    save_tokenizer(folder, outcome.tokenizer, metadata=summary, overwrite=True)
    print(
        f"Held out ({quality.examples} examples): PSNR {quality.psnr:.2f} dB, {quality.usage:.0%} of "
        f"{outcome.tokenizer.codebook_size} codes used, perplexity {quality.perplexity:.1f}.\n"
        f"Tokens of {' × '.join(map(str, outcome.tokenizer.grid))} a piece; the tokenizer is in {folder} "
        f"({seconds:.0f} s)."
    )


if __name__ == "__main__":
    try:
        main(tyro.cli(Config, description=__doc__))
    except (ValueError, FileExistsError, FileNotFoundError) as error:
        raise SystemExit(f"error: {error}") from None
