"""Train an elastic looped transformer on video tokens, and sample clips at every loop count.

    python examples/train_ucf101.py                               # moving digits, with their own tokenizer
    python examples/train_ucf101.py --data /data/ucf101 --tokenizer runs/ucf101-vq/tokenizer \\
        --preset elt-ucf101-6Nx4L --batch-size 256 --steps 200000
    python examples/train_ucf101.py --preset elt-ucf101-6Nx4L --dry-run

With no arguments it renders clips of real handwritten digits, trains a small 3D-VQ on them, then the generator, ILSD
beside its vanilla baseline. Before that it times the first steps of all three and says how long they will take.
`--data` takes UCF-101 with its official lists, any folder of class folders with videos, or the shards that
`precompute.py` wrote; clips are cut to the frames and the size of the tokenizer. The run goes to
`runs/<data>-maskgit-<objective>`: clips at every loop count frame by frame and as a GIF, a table and a plot against
loops and compute, the trained model, the metrics, and `summary.json` with every knob. Run it again to resume an
interrupted run.
"""

import dataclasses
from pathlib import Path

from elt_zoo.commands import run, tokenizer_for_moving_digits
from elt_zoo.evaluation import report_run, watch
from elt_zoo.profile import profile
from elt_zoo.recipes import Run, TrainingOptions, clip_task, train, where_to_watch
from elt_zoo.tokenizers import load_tokenizer


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(TrainingOptions):
    """Train an elastic looped transformer on video tokens and measure every exit."""

    data: str = "moving-digits"
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


def main(config: Config) -> None:
    model = config.model("moving-digits" if config.data == "moving-digits" else "tiny-ucf101")
    if len(model.example.shape) != 3 or model.family != "maskgit":
        raise ValueError(f"Preset {config.preset!r} is not for video. Use elt-ucf101-6Nx4L or tiny-ucf101.")
    if config.dry_run:
        print(profile(model, batch=config.batch_size, steps=model.sampler_settings().steps))
        return

    # Clips become tokens: with a given tokenizer, or for moving digits with one that is trained first.
    if config.tokenizer is not None:
        tokenizer = load_tokenizer(config.tokenizer)
    elif config.data == "moving-digits":
        tokenizer = tokenizer_for_moving_digits(config, model)  # says how long it all takes
        if tokenizer is None:
            return
    else:
        tokenizer = None  # shards know theirs
    task = clip_task(
        model,
        config.data,
        tokenizer=tokenizer,
        heldout=config.heldout,
        stride=config.stride,
        fold=config.fold,
        clips=config.clips,
        settings=config.sampler.given,
        described={"tokenizer": str(config.tokenizer)},
    )

    experiment = Run.of(config, task)
    print(f"{experiment.computing}\n{where_to_watch(experiment.folder)}", flush=True)
    results = train(experiment, on_evaluate=watch(experiment))
    if not all(trained.finished for trained in results.values()):
        print(f"Stopped on request; the state is saved. Run the same command again to resume {experiment.folder}.")
        return
    print(report_run(experiment, results))
    print(f"Clips, table, metrics and model are in {experiment.folder}.")


if __name__ == "__main__":
    run(main, Config, description=__doc__)
