import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..data import (
    AbstractSource,
    ArraySource,
    Batch,
    DigitImages,
    ShardedLatents,
    ShardedTokens,
    Visit,
    digits_to_pixels,
    first_examples,
    load_digits,
    to_pixels,
)
from ..families import ModelConfig, SamplerSettings
from ..generator import Generator
from ..models import ElasticModel
from ..tokenizers import AbstractTokenizer, AutoencoderKL, AutoencoderKLConfig, GreyLevels, PatchCodebook, Tokenizer
from ._image_sets import NamedImages, named_images
from ._open import DIGITS, MOVING_DIGITS, Augmentation, Opened, is_shards, moving_digits, open_clips, open_images
from ._representation import Representation, as_latents, as_pixels, as_tokens

PATCH = 4
"""Pixels along each side of the patches that a k-means codebook codes, where images have no other tokenizer."""
PATCH_FRAMES = 2
"""Frames of such patches of clips."""
_CODEBOOK_IMAGES = 512
_CODEBOOK_CLIPS = 1024
_ENCODED_AT_ONCE = 32


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """What is trained on what: a config with the sizes of the data, and the data as the model sees them.

    **Fields:**

    - `config`: the family's config, with the classes and the sizes of the data.
    - `settings`: how the model will be sampled.
    - `train`: the source of training examples.
    - `heldout`: examples that the model does not see in training, as it would see them.
    - `representation`: how the source's batches become what the model sees.
    - `tokenizer`: what turns samples into pixels, where that is needed and known.
    - `data`: the name of the data set, such as `digits`, or its path.
    - `described`: everything that says which examples these are, of JSON's types.
    """

    config: ModelConfig
    settings: SamplerSettings
    train: AbstractSource
    heldout: Batch
    representation: Representation
    tokenizer: Tokenizer | None
    data: str
    described: Mapping[str, Any]

    def generator(self, model: ElasticModel, *, metadata: Mapping[str, Any] | None = None) -> Generator:
        """The generator that a trained model makes."""
        return Generator(model, self.config, self.tokenizer, self.settings, {"data": self.data, **(metadata or {})})


def make_task(
    config: ModelConfig,
    train: AbstractSource,
    heldout: Any,
    representation: Representation,
    *,
    data: str,
    tokenizer: Tokenizer | None = None,
    settings: Mapping[str, Any] | None = None,
    described: Mapping[str, Any] | None = None,
) -> Task:
    """Fits a config to data.

    **Arguments:**

    - `config`: a preset or your own; its classes and sizes follow the data.
    - `train`: the source of training examples.
    - `heldout`: a batch as the source gives it.
    - `representation`: how such batches become what the model sees.
    - `data`: the name of the data set; `digits` have sampler settings of their own.
    - `tokenizer`: of the samples.
    - `settings`: fields of the family's sampler settings that differ from its defaults.
    - `described`: more that says which examples these are.

    **Raises:** `ValueError` if the family cannot take such data, or its sampler such settings.
    """
    batch = representation(heldout)
    example = jax.ShapeDtypeStruct(batch.examples.shape[1:], batch.examples.dtype)
    fitted = config.fit_to(example, num_classes=train.num_classes, codebook_size=representation.codebook_size)
    chosen = settings_for(fitted, data, settings or {})
    fitted.sampler(chosen)  # refuses what it cannot take before hours of training
    return Task(
        config=fitted,
        settings=chosen,
        train=train,
        heldout=batch,
        representation=representation,
        tokenizer=tokenizer,
        data=data,
        described={"data": data, "examples": len(train), **(described or {})},
    )


def settings_for(config: ModelConfig, data: str, given: Mapping[str, Any]) -> SamplerSettings:
    """The sampler settings of a family on a data set: what is given, then what is best on digits that stand or move,
    then the family's defaults.

    **Raises:** `ValueError` for a setting that the family does not have.
    """
    defaults = config.sampler_settings()
    known = {field.name for field in dataclasses.fields(defaults)}
    unknown = sorted(set(given) - known)
    if unknown:
        raise ValueError(
            f"The sampler of the family {config.family!r} has no setting {', '.join(unknown)}; it has "
            f"{', '.join(sorted(known))}."
        )
    return dataclasses.replace(defaults, **{**_MEASURED.get((data, config.family), {}), **given})


# What was best by data and family, see docs/concepts/digits.md and docs/concepts/moving-digits.md.
_MEASURED: Mapping[tuple[str, str], Mapping[str, Any]] = {
    (DIGITS, "dit"): {"steps": 16},
    (DIGITS, "maskgit"): {
        "steps": 12,
        "temperature_bias": 0.9,
        "temperature_scale": 0.2,
        "confidence_noise": 10.0,
    },
    (MOVING_DIGITS, "maskgit"): {
        "steps": 12,
        "guidance": 2.0,
        "temperature_bias": 0.8,
        "temperature_scale": 0.2,
    },
}


def digits_task(config: ModelConfig, *, pixels: bool = False, settings: Mapping[str, Any] | None = None) -> Task:
    """The handwritten digits, in memory: their pixels, or for a family of tokens the ids of a codebook.

    **Arguments:** `config`: a preset; `pixels`: 64 tokens of one pixel instead of 16 of 2 × 2 from a codebook;
    `settings`: as for [`make_task`][elt_zoo.recipes.make_task].
    """
    train, heldout = load_digits("train"), load_digits("heldout")
    images, heldout_images = digits_to_pixels(train.images), digits_to_pixels(heldout.images)
    representation, tokenizer = Representation(), None
    if takes_tokens(config):
        size = getattr(config, "codebook_size", 128)
        codebook = GreyLevels((8, 8, 1), size) if pixels else PatchCodebook.fit(images, codebook_size=size)
        encode = jax.jit(jax.vmap(codebook.encode))
        images, heldout_images = np.asarray(encode(images)), np.asarray(encode(heldout_images))
        representation, tokenizer = Representation(codebook_size=size), codebook
    return make_task(
        config,
        ArraySource(images, train.labels, class_names=DigitImages("train").class_names),
        Batch(heldout_images, heldout.labels),
        representation,
        data=DIGITS,
        tokenizer=tokenizer,
        settings=settings,
        described={"pixel_tokens": pixels},
    )


def image_task(
    config: ModelConfig,
    data: str,
    *,
    tokenizer: Tokenizer | None = None,
    heldout: int = 256,
    augmentation: Augmentation = Augmentation(),  # noqa: B008  (frozen)
    size: int | None = None,
    settings: Mapping[str, Any] | None = None,
    described: Mapping[str, Any] | None = None,
) -> Task:
    """Images on the disk, or what was precomputed from them.

    **Arguments:**

    - `config`: a preset; it decides between tokens, latents and pixels.
    - `data`: `cifar10`, `mnist` or the path of their official files; or the path of class folders, of ImageNet, of a
      tar archive, or of shards.
    - `tokenizer`: a VQGAN for tokens or an autoencoder for latents. Without one, tokens are patches from a k-means
      codebook fitted to the first images, and diffusion works on pixels.
    - `heldout`: images to measure the loss on, of the official test images or the `val` folder if there are any, else
      kept from training.
    - `augmentation`: what training does to images.
    - `size`: height and width of the images, in pixels; default what the preset and the tokenizer want, or for CIFAR-10
      and MNIST without a tokenizer their own, which the preset follows.
    - `settings`, `described`: as for [`make_task`][elt_zoo.recipes.make_task].

    **Raises:** `ValueError` if data, tokenizer and family do not go together, saying why; `DataError` if there is no
    such data.
    """
    named = named_images(data)
    wanted = image_size(config, tokenizer, channels=3 if named is None else named.images.shape[-1])
    if named is not None:
        wanted, augmentation = _fit_to(named, tokenizer, wanted, augmentation)
    opened = open_images(
        data,
        size=wanted if size is None else size,
        heldout=heldout,
        augmentation=augmentation,
        tokenizer=tokenizer,
    )
    tokens = takes_tokens(config)
    if isinstance(opened.shards, ShardedLatents if tokens else ShardedTokens):
        raise ValueError(
            f"`--data {data}` holds {opened.shards.index.kind}, which the family {config.family!r} does not take: it "
            f"needs {'tokens' if tokens else 'latents or pixels'}."
        )
    if tokens:
        tokenizer, representation = _tokens(opened, config, tokenizer)
    else:
        representation = _latents_or_pixels(opened, tokenizer)
    return make_task(
        config,
        opened.train,
        first_examples(opened.heldout, heldout),
        representation,
        data=data if named is None else named.images.name,
        tokenizer=tokenizer,
        settings=settings,
        described={**dataclasses.asdict(augmentation), **(described or {})},
    )


def clip_task(
    config: ModelConfig,
    data: str,
    *,
    tokenizer: Tokenizer | None,
    heldout: int = 256,
    stride: int = 1,
    fold: int = 1,
    clips: int = 4096,
    settings: Mapping[str, Any] | None = None,
    described: Mapping[str, Any] | None = None,
) -> Task:
    """Clips of videos as tokens, or tokens precomputed from them.

    **Arguments:**

    - `config`: a preset of tokens on three axes.
    - `data`: `moving-digits`, or the path of UCF-101, of class folders of videos, or of shards of tokens.
    - `tokenizer`: a 3D-VQ; may be missing for shards, and for moving digits, whose tokens are then patches from a
      k-means codebook fitted to the first clips.
    - `heldout`: clips to measure the loss on, of UCF-101's test list where there is one, else kept from training.
    - `stride`: frames of a video from one frame of a clip to the next; `fold`: which of UCF-101's three splits.
    - `clips`: moving digits: how many different ones.
    - `settings`, `described`: as for [`make_task`][elt_zoo.recipes.make_task].

    **Raises:** `ValueError` if data and tokenizer do not go together; `DataError` if there is no such data.
    """
    if tokenizer is not None and (not isinstance(tokenizer, AbstractTokenizer) or len(tokenizer.grid) != 3):
        raise ValueError(f"Clips need a tokenizer of video, and this is a {type(tokenizer).__name__}.")
    if data == MOVING_DIGITS:
        opened = moving_digits(_clip_shape(config, tokenizer), clips=clips, heldout=heldout)
        if tokenizer is None:
            pixels = to_pixels(first_examples(opened.plain, _CODEBOOK_CLIPS)).examples
            size = getattr(config, "codebook_size", 512)
            tokenizer = PatchCodebook.fit(
                np.asarray(pixels), codebook_size=size, patch_size=PATCH, patch_frames=PATCH_FRAMES
            )
        ids = as_tokens(tokenizer, tokenizer.codebook_size)
        # The clips are few and the tokenizer is slow on a CPU: run it once.
        train, unseen = encode_all(opened.plain, ids), encode_all(opened.heldout, ids)
        source: AbstractSource = ArraySource(*train, class_names=opened.plain.class_names)
        representation = Representation(codebook_size=tokenizer.codebook_size)
        described = {"clips": clips, **(described or {})}
    else:
        if tokenizer is None and not is_shards(data):
            raise ValueError(
                f"`--data {data}` needs `--tokenizer`, the folder of a 3D-VQ; MAGVIT's was never released. Train one "
                f"first: elt-zoo train-tokenizer --kind video --data {data}"
            )
        shape = () if tokenizer is None else tokenizer.shape
        opened = open_clips(data, shape=shape, heldout=heldout, stride=stride, fold=fold, tokenizer=tokenizer)
        source, unseen = opened.train, first_examples(opened.heldout, heldout)
        coded = opened.shards if tokenizer is None else tokenizer
        if not isinstance(coded, AbstractTokenizer | ShardedTokens):
            raise ValueError(f"`--data {data}` holds latents, and masked generation needs tokens.")
        representation = as_tokens(tokenizer, coded.codebook_size)
        described = {"stride": stride, "fold": fold, **(described or {})}
    return make_task(
        config,
        source,
        unseen,
        representation,
        data=data,
        tokenizer=tokenizer,
        settings=settings,
        described=described,
    )


def _clip_shape(config: ModelConfig, tokenizer: AbstractTokenizer | None) -> tuple[int, ...]:
    """Frames, height, width and channels of the clips that a tokenizer wants, or that patches for a config make."""
    if tokenizer is not None:
        return tokenizer.shape
    frames, height, width = config.example.shape
    return frames * PATCH_FRAMES, height * PATCH, width * PATCH, 3


def takes_tokens(config: ModelConfig) -> bool:
    """Whether a family's examples are discrete tokens."""
    return jnp.issubdtype(config.example.dtype, jnp.integer)


def image_size(config: ModelConfig, tokenizer: Tokenizer | None, *, channels: int = 3) -> int:
    """Height and width of the images that a config and a tokenizer together want, in pixels. `channels`: of the images.

    **Raises:** `ValueError` if they do not go together.
    """
    side, taken = config.example.shape[0], config.example.shape[-1]
    if takes_tokens(config):
        if isinstance(tokenizer, AutoencoderKL):
            raise ValueError(
                f"The family {config.family!r} needs a tokenizer of discrete tokens, and this is an autoencoder."
            )
        if tokenizer is not None and len(tokenizer.grid) != 2:
            raise ValueError(f"Images need a tokenizer of images, and this is a {type(tokenizer).__name__}, of clips.")
        return side * PATCH if tokenizer is None else tokenizer.shape[0]
    if isinstance(tokenizer, AutoencoderKL):
        return side * tokenizer.config.downsampling
    if tokenizer is not None:
        raise ValueError(
            f"The family {config.family!r} takes an autoencoder or none, and this tokenizer has discrete tokens."
        )
    if taken == 1 != channels:
        raise ValueError(
            f"This preset has one channel, for grey images such as those of MNIST, and these have {channels}. Choose a "
            "preset of colours such as tiny-dit."
        )
    if taken not in (3, channels):  # a preset of colours takes grey images too: it follows their shape
        raise ValueError(
            f"This preset diffuses over latents of {taken} channels: give `--tokenizer` the folder of an "
            "autoencoder, or choose a preset of pixels such as tiny-dit."
        )
    return side


def _fit_to(
    named: NamedImages, tokenizer: Tokenizer | None, size: int, augmentation: Augmentation
) -> tuple[int, Augmentation]:
    """The size of a set's images that a tokenizer wants, or their own, and what training really does to them.

    **Raises:** `ValueError` if the images are grey and the tokenizer takes colours, or the other way round.
    """
    height, _, channels = named.images.shape
    taken = tokenizer.shape[-1] if isinstance(tokenizer, AbstractTokenizer) else 3
    if tokenizer is not None and taken != channels:
        raise ValueError(
            f"{named.images.title} has images of {channels} channel(s), and this tokenizer, a "
            f"{type(tokenizer).__name__}, takes {taken}. Leave the tokenizer out: diffusion then works on pixels, "
            "masked generation on patches from a k-means codebook."
        )
    flip = augmentation.flip and named.images.symmetric
    done = dataclasses.replace(augmentation, random_crop=False, flip=flip, exact_resize=False)
    return height if tokenizer is None else size, done


def encode_all(source: AbstractSource, representation: Representation) -> Batch:
    """Every example of a source as the model sees it, in memory."""
    chunks = []
    for start in range(0, len(source), _ENCODED_AT_ONCE):
        # The last batch goes on from the beginning, so that all are of one size.
        visits = [Visit((start + offset) % len(source)) for offset in range(_ENCODED_AT_ONCE)]
        chunks.append(jax.tree.map(np.asarray, representation(source.read_batch(visits))))
    return jax.tree.map(lambda *leaves: np.concatenate(leaves)[: len(source)], *chunks)


def _tokens(opened: Opened, config: ModelConfig, tokenizer: Any) -> tuple[AbstractTokenizer | None, Representation]:
    """Precomputed ids, a given tokenizer, or a codebook of patches fitted to the first images."""
    if isinstance(opened.shards, ShardedTokens):
        return tokenizer, as_tokens(tokenizer, opened.shards.codebook_size)
    if tokenizer is None:
        images = to_pixels(first_examples(opened.plain, _CODEBOOK_IMAGES)).examples
        size = getattr(config, "codebook_size", 256)
        tokenizer = PatchCodebook.fit(np.asarray(images), codebook_size=size, patch_size=PATCH)
    return tokenizer, as_tokens(tokenizer, tokenizer.codebook_size)


def _latents_or_pixels(opened: Opened, autoencoder: Any) -> Representation:
    """Precomputed posteriors, a given autoencoder, or the pixels themselves."""
    if isinstance(opened.shards, ShardedLatents) or autoencoder is not None:
        scale = AutoencoderKLConfig().scaling_factor if autoencoder is None else autoencoder.config.scaling_factor
        return as_latents(autoencoder, scale)
    return as_pixels()
