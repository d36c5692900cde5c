"""Train an elastic looped transformer on images, sample it at every loop count, and measure what each count is worth.

    python examples/train_imagenet.py                     # digits, diffusion, ILSD beside its vanilla baseline
    python examples/train_imagenet.py --family maskgit    # digits, masked generation
    python examples/train_imagenet.py --data /data/imagenet --family maskgit --tokenizer models/maskgit-vqgan \\
        --preset elt-XL-7Nx4L --batch-size 512 --steps 675000
    python examples/train_imagenet.py --preset elt-XL-7Nx4L --family maskgit --data /data/imagenet --dry-run

With no arguments it trains on the 1,797 real digits that come with the library: less than two minutes on two CPU cores.
`--data` takes ImageNet's folders or its original tar files, any folder of class folders, or the shards that
`precompute.py` wrote. The run goes to `runs/<data>-<family>-<objective>`: pictures of samples at every loop count, a
plot and a table of quality against loops and compute, the trained model, the metrics, and `summary.json` with every
knob. Run it again to resume an interrupted run. `elt-zoo train` is the same with more options.
"""

import dataclasses
from pathlib import Path
from typing import Literal

from elt_zoo.commands import run
from elt_zoo.evaluation import ReportOptions, report_run, watch
from elt_zoo.profile import profile
from elt_zoo.recipes import Augmentation, Run, Task, TrainingOptions, digits_task, image_task, train, where_to_watch
from elt_zoo.tokenizers import load_tokenizer


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(TrainingOptions):
    """Train an elastic looped transformer on images and measure every exit."""

    data: str = "digits"
    """`digits`, `cifar10`, `mnist`, the folder of ImageNet (class folders or tar files), any folder of class folders,
    or shards."""
    family: Literal["dit", "maskgit"] = "dit"
    """Diffusion over pixels or latents, or masked generation over tokens."""
    tokenizer: Path | None = None
    """A folder that `convert.py` or `train_tokenizer.py` wrote: a VQGAN (masked) or an autoencoder (diffusion over
    latents). Without one, images are pixels (diffusion) or patches from a k-means codebook (masked)."""
    heldout: int = 256
    """Images to measure the loss on, of the `val` folder if there is one, else kept from training."""
    random_crop: bool = True
    flip: bool = True
    exact_resize: bool = False
    """Resize as ADM did, to the last bit, instead of fast."""
    samples: int | None = None
    """Samples per loop count, as many of each class; default 1,000 digits, else what the pictures show."""


def make_task(config: Config) -> Task:
    """The model's config, fitted to the data, and the data as the model sees them."""
    if config.data == "digits":
        return digits_task(config.model(f"digits-{config.family}"), settings=config.sampler.given)
    return image_task(
        config.model(f"tiny-{config.family}"),
        config.data,
        tokenizer=None if config.tokenizer is None else load_tokenizer(config.tokenizer),
        heldout=config.heldout,
        augmentation=Augmentation(random_crop=config.random_crop, flip=config.flip, exact_resize=config.exact_resize),
        settings=config.sampler.given,
        described={"tokenizer": str(config.tokenizer)},
    )


def main(config: Config) -> None:
    task = make_task(config)
    if config.dry_run:
        print(profile(task.config, batch=config.batch_size, steps=task.settings.steps))
        return

    # The objective beside the vanilla baseline on the digits, else alone; an interrupted run resumes here.
    experiment = Run.of(config, task)
    print(f"{experiment.computing}\n{where_to_watch(experiment.folder)}", flush=True)
    results = train(experiment, on_evaluate=watch(experiment))
    if not all(trained.finished for trained in results.values()):
        print(f"Stopped on request; the state is saved. Run the same command again to resume {experiment.folder}.")
        return

    # Held-out loss, samples, quality and compute at every exit up to 2·L_max.
    print(report_run(experiment, results, ReportOptions.of(task, samples=config.samples)))
    print(f"Pictures, table, metrics and model are in {experiment.folder}.")


if __name__ == "__main__":
    run(main, Config, description=__doc__)
