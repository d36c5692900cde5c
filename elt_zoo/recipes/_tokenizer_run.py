import contextlib
import dataclasses
import functools
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from ..data import (
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
from ..distributed import agree, first_says, is_first, together
from ..pretrained import load_inception
from ..sharding import Layout, make_mesh, one_copy, shard_batch
from ..storage import FolderLock
from ..tokenizer_training import (
    AbstractCodebookRule,
    Adversary,
    DiscriminatorConfig,
    EMACodebook,
    GradientCodebook,
    ReconstructionLoss,
    VQTokenizer,
    create_tokenizer_state,
    make_tokenizer_step,
)
from ..tokenizers import MaskGITVQGAN, VQ3DConfig, inflate, load_tokenizer
from ..trackers import AbstractTracker, Trackers
from ..training import (
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
from ._folder import require_own
from ._image_sets import named_images
from ._open import DIGITS, MOVING_DIGITS, open_clips, open_images
from ._reports import first_only, metric_files, open_trackers, progress_bar, require_trackers
from ._tokenizer_options import TokenizerOptions


class TokenizerData(NamedTuple):
    """What to train on and what to measure on."""

    train: AbstractSource
    heldout: AbstractSource


class TrainedTokenizer(NamedTuple):
    """A tokenizer, the average over training; whether training is complete; and seconds per step."""

    tokenizer: VQTokenizer
    finished: bool
    seconds_per_step: float


def open_tokenizer_data(options: TokenizerOptions) -> TokenizerData:
    """The sources that the options name."""
    network = options.network
    if options.data == MOVING_DIGITS:
        frames, size = network.shape[:2] if isinstance(network, VQ3DConfig) else (8, network.image_size)
        train = MovingDigits("train", frames=frames, size=size)
        return TokenizerData(train, MovingDigits("heldout", frames=frames, size=size, augment=False))
    if isinstance(network, VQ3DConfig):
        opened = open_clips(options.data, shape=(*network.shape, 3), heldout=options.heldout)
        return TokenizerData(opened.train, opened.heldout)
    size = network.image_size
    if options.data != DIGITS:
        named = named_images(options.data)
        if named is not None and named.images.shape[-1] != 3:
            raise ValueError(
                f"`--data {options.data}` has grey images, and tokenizers are trained on colours. {named.images.title} "
                "needs none: generators take its pixels, or patches from a k-means codebook."
            )
        opened = open_images(options.data, size=size, heldout=options.heldout)
        return TokenizerData(opened.train, opened.heldout)

    def enlarged(split: Literal["train", "heldout"]) -> ArraySource:
        digits = load_digits(split)
        pixels = digits_to_pixels(digits.images)
        shape = (len(pixels), size, size, 1)
        smooth = np.asarray(jnp.clip(jax.image.resize(pixels, shape, "cubic"), -1.0, 1.0))
        return ArraySource(np.repeat(smooth, 3, axis=-1), digits.labels)

    return TokenizerData(enlarged("train"), enlarged("heldout"))


def pixels_of(batch: Any, *, video: bool) -> Batch:
    """A batch as the network wants it; for an image network every frame of a clip is an example."""
    batch = batch if isinstance(batch, Batch) else to_pixels(batch)
    clips = batch.examples
    if video or clips.ndim == 4:
        return batch
    return Batch(clips.reshape(-1, *clips.shape[2:]), np.repeat(batch.labels, clips.shape[1]))


def heldout_batches(options: TokenizerOptions, source: AbstractSource) -> Iterator[Batch]:
    """The first held-out examples, in order."""
    count = min(options.heldout, len(source))
    for start in range(0, count, 32):
        visits = [Visit(index) for index in range(start, min(start + 32, count))]
        yield pixels_of(source.read_batch(visits), video=options.video)


def make_codebook_rule(options: TokenizerOptions) -> AbstractCodebookRule:
    family = EMACodebook if options.codebook == "ema" else GradientCodebook
    return family(commitment=options.commitment, decay=options.code_decay, revive_below=options.revive_below)


def make_loss(options: TokenizerOptions) -> ReconstructionLoss:
    loss = ReconstructionLoss(l1=options.l1, l2=options.l2)
    if options.inception is None:
        return loss
    inception = load_inception(options.inception)
    return dataclasses.replace(
        loss, perceptual=options.perceptual, features=lambda image: inception.activations(255.0 * image)
    )


def make_adversary(options: TokenizerOptions) -> tuple[Adversary | None, DiscriminatorConfig | None]:
    if options.adversarial == 0.0:
        return None, None
    optimizer = OptimizerConfig(
        learning_rate=options.recipe.learning_rate / 5.0,
        total_steps=options.recipe.steps,
        b1=0.0,
        b2=0.99,
        clip_norm=1.0,
    )
    adversary = Adversary(
        optimizer=make_optimizer(optimizer),
        weight=options.adversarial,
        start=options.adversarial_start,
        r1=options.r1,
        lecam=options.lecam,
    )
    network = options.network
    shape = network.shape if isinstance(network, VQ3DConfig) else (network.image_size,) * 2
    multipliers = (2, 4) if options.preset == "small" else (2, 4, 4, 4)
    return adversary, DiscriminatorConfig(shape=shape, filters=network.filters, channel_multipliers=multipliers)


def first_tokenizer(options: TokenizerOptions, key: jax.Array) -> VQTokenizer:
    """Fresh parameters, or those of an image tokenizer."""
    network = options.network
    if options.inflate is None:
        return network.build(key=key)
    image_model = load_tokenizer(options.inflate)
    if not isinstance(image_model, MaskGITVQGAN):
        raise ValueError(f"`--inflate {options.inflate}` holds a {type(image_model).__name__}; it must be a VQGAN.")
    assert isinstance(network, VQ3DConfig)
    return inflate(image_model, network)


class PreparedTokenizer:
    """A tokenizer's training, checked and ready."""

    def __init__(self, options: TokenizerOptions, data: TokenizerData):
        recipe = options.recipe
        if recipe.batch_size > len(data.train):
            raise ValueError(
                f"`--batch-size {recipe.batch_size}` cannot be filled: there are {len(data.train):,} training "
                "examples. Use at most as many."
            )
        # Several processes share every batch; one takes its first device.
        self.layout = Layout(make_mesh()) if jax.process_count() > 1 else None
        if self.layout is not None and recipe.batch_size % self.layout.mesh.size:
            raise ValueError(
                f"`--batch-size {recipe.batch_size}` cannot be split over {self.layout.mesh.size} devices; use a "
                "multiple."
            )
        self.options = options
        self.optimizer = make_optimizer(
            OptimizerConfig(
                learning_rate=recipe.learning_rate,
                total_steps=recipe.steps,
                warmup_steps=min(recipe.steps // 20, 5000),
                decay=Decay.COSINE,
                b2=0.99,
                clip_norm=1.0,
            )
        )
        self.rule = make_codebook_rule(options)
        self.adversary, self.discriminator = make_adversary(options)
        self.keys = tuple(jax.random.split(jax.random.key(options.seed), 3))
        self.batches = training_batches(
            data.train,
            batch_size=recipe.batch_size // jax.process_count(),
            seed=options.seed,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
            put=None if self.layout is None else functools.partial(shard_batch, mesh=self.layout.mesh),
        )
        self._step = make_tokenizer_step(
            self.optimizer,
            self.rule,
            loss=make_loss(options),
            adversary=self.adversary,
            ema_decay=recipe.ema_decay,
            precision=Precision(jnp.dtype(options.precision)),
            prepare=lambda batch, key: pixels_of(batch, video=options.video),
        )
        shapes = eqx.filter_eval_shape if self.layout is None else self.layout.abstract
        self.abstract = shapes(self.start)  # refuses wrong options before anything is written

    def step(self, state: TrainState, batch: Any) -> tuple[TrainState, dict[str, Any]]:
        state, metrics = self._step(state, batch)
        # Sums over the batch are sums over all processes: every device has all of both.
        return (state, metrics) if self.layout is None else self.layout.whole((state, metrics))

    def start(self) -> TrainState:
        tokenizer_key, discriminator_key, state_key = self.keys
        return create_tokenizer_state(
            first_tokenizer(self.options, tokenizer_key),
            self.optimizer,
            self.rule,
            codes_initialised=self.options.inflate is not None,
            adversary=self.adversary,
            discriminator=None if self.discriminator is None else self.discriminator.build(key=discriminator_key),
            key=state_key,
        )


def train_tokenizer(options: TokenizerOptions, data: TokenizerData) -> TrainedTokenizer:
    """Trains a tokenizer in `options.folder`, or resumes it.

    Several processes that all call it share every batch.

    **Raises:** as [`train`][elt_zoo.recipes.train].
    """
    together(lambda: require_trackers(options.wandb) if is_first() else None)
    agree(options.defining())
    steps, prepared = options.recipe.steps, PreparedTokenizer(options, data)
    batches = prepared.batches
    folder = options.folder
    lock, layout = FolderLock(folder), prepared.layout

    def take() -> None:
        if is_first():
            require_own(folder)
            lock.acquire()

    def opened(taken: int) -> AbstractTracker:
        if not is_first():
            return Trackers()
        return open_trackers(folder, "tokenizer", taken=taken, wandb=options.wandb, config=options.defining())

    together(take)
    with contextlib.ExitStack() as stack, stop_on_signals() as stop:
        stack.callback(lock.release)
        checkpoints = options.checkpoints(folder / "checkpoints", options.defining())
        if first_says(checkpoints.latest_step()) is None:
            state = prepared.start() if layout is None else layout.create(prepared.start)
        else:
            state, position = checkpoints.restore(prepared.abstract)
            batches.set_state(position)
        shown, taken = ("psnr", "usage", "loss"), int(state.step)
        with (
            together(lambda: opened(taken)) as tracker,
            first_only(metric_files(folder, "tokenizer", tracker)) as write,
            first_only(progress_bar("tokenizer", steps=steps, taken=taken, show=shown)) as move,
            checkpoints,
            contextlib.closing(batches),
        ):

            def on_report(report: Report) -> None:
                write(report)
                move(report)

            result = fit(
                state,
                jit_step(prepared.step),
                batches,
                total_steps=steps,
                log_every=options.log_every,
                on_report=on_report,
                checkpoints=checkpoints,
                stop=stop,
            )
    tokenizer = result.state.ema if layout is None else one_copy(result.state.ema)
    return TrainedTokenizer(tokenizer, result.finished, result.seconds_per_step)
