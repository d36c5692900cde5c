"""Train an elastic looped transformer on video tokens, and draw clips at every loop count.

    python examples/train_ucf101.py                               # moving digits, with a tokenizer of its own
    python examples/train_ucf101.py --data /data/ucf101 --tokenizer runs/ucf101-vq/tokenizer \\
        --preset elt-ucf101-6Nx4L --batch-size 256 --steps 200000
    python examples/train_ucf101.py --preset elt-ucf101-6Nx4L --dry-run

With no arguments it renders clips of real handwritten digits, trains a small 3D-VQ on them, then the generator, ILSD
beside its vanilla twin. `--data` takes UCF-101 with its official lists, any folder of class folders with videos, or the
shards that `precompute.py` wrote; clips are cut to the frames and the size of the tokenizer. The run goes to
`runs/<name>`: clips at every loop count frame by frame and as a GIF, a table and a plot against loops and compute, the
trained model, the metrics, and `summary.json` with every knob. Run it again to resume an interrupted run.
"""

import dataclasses
import time
from pathlib import Path

import jax
import numpy as np
import train_tokenizer
import tyro
from datasets import MOVING_DIGITS, is_shards, moving_digits, open_clips
from measure import report
from runs import Recipe, Run, TrainingOptions, train
from tasks import Representation, Task, as_tokens, make_task
from tqdm import tqdm

from elt_zoo.data import AbstractSource, ArraySource, Batch, ShardedTokens, Visit, first_examples
from elt_zoo.families import MaskGITConfig, preset
from elt_zoo.profile import profile
from elt_zoo.storage import WeightsError
from elt_zoo.tokenizers import AbstractTokenizer, load_tokenizer

_ENCODED_AT_ONCE = 32


@dataclasses.dataclass(frozen=True)
class Config(TrainingOptions):
    """Train an elastic looped transformer on video tokens, and draw clips at every loop count."""

    data: str = MOVING_DIGITS
    """`moving-digits`, the folder of UCF-101, any folder of class folders with videos, or shards of tokens."""
    tokenizer: Path | None = None
    """A folder that `train_tokenizer.py` wrote. Only moving digits do without: a small one is trained first."""
    fold: int = 1
    """Which of UCF-101's three splits."""
    stride: int = 1
    """Frames of a video from one frame of a clip to the next."""
    heldout: int = 256
    """Clips to measure the loss on: of the test list where there is one, else kept from training."""
    clips: int = 4096
    """Moving digits: different clips to train on."""
    batch_size: int = 32

    @property
    def moving_digits(self) -> bool:
        return self.data == MOVING_DIGITS

    @property
    def model(self) -> MaskGITConfig:
        """The preset, before its sizes follow the data."""
        config = preset(self.preset or "tiny-ucf101")
        if not isinstance(config, MaskGITConfig) or len(config.grid) != 3:
            raise ValueError(f"Preset {self.preset!r} is not for video. Use elt-ucf101-6Nx4L or tiny-ucf101.")
        return config

    @property
    def folder(self) -> Path:
        return self.out or Path("runs") / f"{Path(self.data).name}-{self.objective}"

    @property
    def recipe(self) -> Recipe:
        if self.preset is None:
            default = Recipe(steps=2000, learning_rate=6e-3, ema_decay=0.998, small=True)
        else:
            default = Recipe(steps=200_000, learning_rate=1e-4, ema_decay=0.9999, small=False)
        return default.resolved(self)


def make_tokenizer(config: Config) -> AbstractTokenizer | None:
    """The tokenizer given; none for shards; for moving digits one that is trained on them first, or none if that was
    asked to stop.
    """
    if config.tokenizer is not None:
        tokenizer = load_tokenizer(config.tokenizer)
        if not isinstance(tokenizer, AbstractTokenizer) or len(tokenizer.grid) != 3:
            raise ValueError(f"`--tokenizer {config.tokenizer}` holds a {type(tokenizer).__name__}, none of video.")
        return tokenizer
    if config.moving_digits:
        own = train_tokenizer.Config(data=MOVING_DIGITS, out=config.folder / "tokenizer", seed=config.seed)
        if not (own.folder / "tokenizer").exists():
            train_tokenizer.main(own)
        trained = (own.folder / "tokenizer").exists()
        return load_tokenizer(own.folder / "tokenizer") if trained else None  # pyright: ignore[reportReturnType]
    if is_shards(Path(config.data)):
        return None
    raise ValueError(
        f"`--data {config.data}` needs `--tokenizer`, the folder of a 3D-VQ; MAGVIT's was never released. Train one "
        f"first: python examples/train_tokenizer.py --kind video --data {config.data}"
    )


def make_video_task(config: Config, model: MaskGITConfig, tokenizer: AbstractTokenizer | None) -> Task:
    """Clips or tokens, and what a model of tokens needs."""
    if config.moving_digits:
        assert tokenizer is not None
        opened = moving_digits(tokenizer.shape, clips=config.clips, heldout=config.heldout)
        ids = as_tokens(tokenizer, tokenizer.codebook_size)
        # The clips are few and the tokenizer is slow on a CPU: run it once.
        train, heldout = encode_all(opened.plain, ids), encode_all(opened.heldout, ids)
        representation = Representation(decode=ids.decode, codebook_size=tokenizer.codebook_size)
        source = ArraySource(*train, class_names=opened.plain.class_names)
    else:
        shape = () if tokenizer is None else tokenizer.shape
        opened = open_clips(
            config.data,
            shape=shape,
            heldout=config.heldout,
            stride=config.stride,
            fold=config.fold,
            tokenizer=tokenizer,
        )
        source, heldout = opened.train, first_examples(opened.heldout, config.heldout)
        coded = opened.shards if tokenizer is None else tokenizer
        if not isinstance(coded, AbstractTokenizer | ShardedTokens):
            raise ValueError(f"`--data {config.data}` holds latents, and masked generation needs tokens.")
        representation = as_tokens(tokenizer, coded.codebook_size)
    return make_task(
        model,
        source,
        heldout,
        representation,
        settings=config.sampler,
        tokenizer=tokenizer,
        label_smoothing=config.label_smoothing,
    )


def encode_all(source: AbstractSource, representation: Representation) -> Batch:
    """Every example of a source as the model sees it, in memory."""
    chunks = []
    for start in tqdm(range(0, len(source), _ENCODED_AT_ONCE), desc="encoding", unit="batch"):
        # The last batch goes on from the beginning, so that all are of one size.
        visits = [Visit((start + offset) % len(source)) for offset in range(_ENCODED_AT_ONCE)]
        chunks.append(jax.tree.map(np.asarray, representation(source.read_batch(visits))))
    return jax.tree.map(lambda *leaves: np.concatenate(leaves)[: len(source)], *chunks)


def main(config: Config) -> None:
    if config.dry_run:
        steps = config.sampler.resolved(config.model, digits=False).steps
        assert steps is not None
        print(profile(config.model, batch=config.batch_size, steps=steps, guidance=config.sampler.guidance is not None))
        return
    started = time.perf_counter()
    model = config.model  # first, so that an unknown one is refused before anything is trained
    tokenizer = make_tokenizer(config)
    if tokenizer is None and config.moving_digits:
        return
    task = make_video_task(config, model, tokenizer)
    compare = config.compare and config.moving_digits
    data = {"data": config.data, "tokenizer": str(config.tokenizer), "examples": len(task.train)}
    data |= {"stride": config.stride, "fold": config.fold}
    run = Run(config, config.recipe, task, config.folder, data, compare)
    results = train(run)
    if not all(trained.finished for trained in results.values()):
        print(f"Stopped on request; the state is saved. Run the same command again to resume {run.folder}.")
        return
    table = report(run, results, heldout_batch=config.batch_size)
    seconds = time.perf_counter() - started
    print(f"\n{table}\nClips, table, metrics and model are in {run.folder} ({seconds:.0f} s).")


if __name__ == "__main__":
    try:
        main(tyro.cli(Config, description=__doc__))
    except (ValueError, FileNotFoundError, FileExistsError, WeightsError) as error:
        raise SystemExit(f"error: {error}") from None
