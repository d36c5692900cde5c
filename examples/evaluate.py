"""Measure a saved model at every loop count, number of steps and scale of guidance: quality, compute, and what the
loops do.

    python examples/evaluate.py                                             # the bundled diffusion model of digits
    python examples/evaluate.py --model digits-maskgit --loops 1 2 4 1-4    # 1-4: from 1 loop in the first step to 4
    python examples/evaluate.py --model runs/imagenet-maskgit-ilsd/model --steps 12 24 --guidance 1 3 \\
        --inception pt_inception-2015-12-05-6726825d.pth --reference VIRTUAL_imagenet256_labeled.npz --export

Without arguments about a minute on a laptop CPU. It leaves `results.csv`, `results.json`, `results.md`, `pareto.png`
and the folder `loops` in `runs/evaluate-<model>`. Every cell of the grid is saved when it is measured: stop it whenever
you like, and run the same command again to go on, or one with more cells to add them.
"""

import contextlib
import dataclasses
import hashlib
import platform
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import tyro
from cells import Cell, CellStore, grid
from datasets import DIGITS, open_source
from evaluators import DIGIT, Evaluator, EvaluatorOptions, make_evaluator
from generation import Generator, Samples
from loops import report_loops
from results import save_results
from samplers import SamplerSettings
from tqdm import tqdm

import elt_zoo
from elt_zoo.data import AbstractSource, DataError, from_pixels
from elt_zoo.families import DiTConfig, MaskGITConfig
from elt_zoo.generator import LoadedModel
from elt_zoo.metrics import SampleWriter, VideoProtocol
from elt_zoo.profile import FLOPS, sample_compute
from elt_zoo.storage import WeightsError
from elt_zoo.tokenizers import load_tokenizer


@dataclasses.dataclass(frozen=True)
class Config:
    """Measure a saved model at every loop count, number of steps and scale of guidance."""

    model: str = "digits-dit"
    """A folder that `elt_zoo.save` wrote, or a bundled model."""
    tokenizer: Path | None = None
    """A folder of the tokenizer or autoencoder, where the model was saved without."""
    out: Path | None = None
    """Where the results go; by default `runs/evaluate-<model>`."""

    loops: tuple[str, ...] = ("1", "2", "3", "4", "6", "8")
    """4: a count; 1-4: from the first sampling step to the last; 4/1: of the conditional and of the unconditional
    branch."""
    steps: tuple[int, ...] = ()
    """Sampling steps; by default as the model was measured."""
    guidance: tuple[float, ...] = ()
    """Scales s in unconditional + s·(conditional − unconditional); 1 is none. By default as the model was measured."""

    samples: int | None = None
    """For each cell, the classes in turn; by default 1,000 digits, 50,000 images, or as the protocol of clips says."""
    repeats: int | None = None
    """Sets of samples to average over; by default 1, or as the protocol of clips says."""
    seed: int = 0
    batch_size: int | None = None
    """Samples drawn at a time; other batches are other samples. By default 250 digits, 64 images, 16 clips."""
    devices: int | None = None
    """Devices that share every batch; by default all."""
    export: bool = False
    """Also write the samples of every cell to `samples/<cell>.npz`, which ADM's evaluator reads."""
    evaluator: tyro.conf.OmitArgPrefixes[EvaluatorOptions] = dataclasses.field(default_factory=EvaluatorOptions)

    diagnostics: bool = True
    """Also report what the loops do, in the folder `loops`."""
    heldout_data: str | None = None
    """A folder of real data that the model has not seen, for the losses of its exits; digits have theirs."""
    heldout: int = 360
    """Held-out examples to use."""
    heldout_copies: int = 4
    """How often each is corrupted anew."""
    heldout_batch: int = 60

    def __post_init__(self):
        if not self.loops:
            raise ValueError("`--loops` names no loop counts.")
        for name in ("repeats", "heldout", "heldout_copies", "heldout_batch"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"`--{name.replace('_', '-')} {value}` must be at least 1.")

    @property
    def folder(self) -> Path:
        return self.out or Path("runs") / f"evaluate-{Path(self.model).resolve().name}"


def main(config: Config) -> None:
    loaded = load_model(config)
    settings = SamplerSettings(**loaded.metadata.get("sampler", {})).resolved(loaded.config, digits=False)
    assert settings.steps is not None
    cells = grid(config.loops, config.steps or (settings.steps,), config.guidance or (settings.guidance or 1.0,))
    shape = sample_shape(loaded)
    generator = make_generator(config, loaded, settings, shape)
    for cell in cells:  # before anything takes long, so that what cannot be drawn is refused
        sample_compute(loaded.config, generator.sampler(cell), loops=cell.budget)
    heldout = heldout_source(config, shape) if config.diagnostics else None
    evaluator = make_evaluator(config.evaluator, shape, config.folder)
    evaluator.check(generator.samples)
    repeats = config.repeats or (evaluator.card.get("protocol") or {}).get("repeats", 1)
    store = CellStore(config.folder, protocol_of(config, loaded, settings, generator, evaluator, repeats))

    missing = [cell for cell in cells if cell not in store]
    for cell in tqdm(missing, desc="cells", unit="cell", disable=None):
        with exporting(config, cell, shape, repeats * generator.samples) as write:
            store.write(cell, measure(config, loaded, generator, evaluator, cell, repeats, write))
    print(save_results(config.folder, Path(config.model).name, list(store.read()), evaluator))
    if config.diagnostics:
        sampler = generator.sampler(Cell(str(loaded.config.max_loops), settings.steps, settings.guidance or 1.0))
        text = report_loops(
            config.folder / "loops",
            loaded,
            sampler,
            settings,
            heldout=heldout,
            examples=config.heldout,
            copies=config.heldout_copies,
            batch=config.heldout_batch,
            seed=config.seed,
        )
        print(f"{text}\n" if text else "Without `--heldout-data` there are no losses of exits.\n")
    print(f"Tables, plots and samples are in {config.folder}.")


def load_model(config: Config) -> LoadedModel:
    loaded = elt_zoo.load(config.model)
    if config.tokenizer is not None:
        loaded = loaded._replace(tokenizer=load_tokenizer(config.tokenizer))
    return loaded


def sample_shape(loaded: LoadedModel) -> tuple[int, ...]:
    """Of the pixels of a sample. **Raises:** `ValueError` if a tokenizer is missing."""
    model = loaded.config
    if isinstance(model, DiTConfig) and loaded.tokenizer is None and model.shape[-1] in (1, 3):
        return model.shape
    if loaded.tokenizer is None:
        raise ValueError(
            f"This model makes {'tokens' if isinstance(model, MaskGITConfig) else 'latents'}, and was saved without "
            "what makes pixels of them: give `--tokenizer`, its folder (see examples/convert.py)."
        )
    if isinstance(model, MaskGITConfig):
        made = jax.ShapeDtypeStruct(model.grid, jnp.int32)
    else:
        assert isinstance(model, DiTConfig)
        made = jax.ShapeDtypeStruct(model.shape, jnp.float32)
    return eqx.filter_eval_shape(loaded.tokenizer.decode, made).shape


def make_generator(config: Config, loaded: LoadedModel, settings: SamplerSettings, shape: tuple[int, ...]) -> Generator:
    """Draws as many samples as were asked for, or as are usual."""
    if shape == DIGIT:
        samples, batch = 1000, 250
    elif len(shape) == 3:
        samples, batch = 50_000, 64
    else:
        protocol = VideoProtocol.magvit() if config.evaluator.protocol == "magvit" else VideoProtocol.stylegan_v()
        samples, batch = protocol.samples, 16
    devices = config.devices or jax.device_count()
    samples = samples if config.samples is None else config.samples
    return Generator(
        loaded,
        settings,
        samples=samples,
        batch_size=-(-min(batch, samples) // devices) * devices if config.batch_size is None else config.batch_size,
        devices=devices,
        seed=config.seed,
    )


def protocol_of(
    config: Config,
    loaded: LoadedModel,
    settings: SamplerSettings,
    generator: Generator,
    evaluator: Evaluator,
    repeats: int,
) -> dict[str, Any]:
    """All that two cells must share for their figures to be compared."""
    fixed = {name: value for name, value in dataclasses.asdict(settings).items() if name not in ("steps", "guidance")}
    return {
        "model": loaded.config.to_dict(),
        "parameters_sha256": hash_arrays((loaded.model, loaded.tokenizer)),
        "ema_decay": loaded.metadata.get("training", {}).get("ema_decay", "unknown"),
        "sampler": fixed,
        "guidance_formula": "unconditional + scale * (conditional - unconditional); 1 is the conditional model alone",
        "samples": generator.samples,
        "repeats": repeats,
        "classes": f"{loaded.config.num_classes}, in turn",
        "seed": config.seed,
        "batch_size": generator.batch_size,
        "evaluator": evaluator.card,
        "flops": FLOPS,
    }


def measure(
    config: Config,
    loaded: LoadedModel,
    generator: Generator,
    evaluator: Evaluator,
    cell: Cell,
    repeats: int,
    write: Any,
) -> dict[str, Any]:
    """Draws the sets of a cell and measures them: figures, their compute, and where and with what that was."""

    def written(batches: Iterator[Samples]) -> Iterator[Samples]:
        for batch in batches:
            yield batch
            write(batch)  # once it is measured, so that what cannot be is not written either

    sets = [evaluator(written(generator.batches(cell, repeat=repeat))) for repeat in range(repeats)]
    compute = sample_compute(loaded.config, generator.sampler(cell), loops=cell.budget, time=generator.time)
    return {
        "figures": {name: float(np.mean([each[name] for each in sets])) for name in sets[0]},
        "sets": sets,
        "compute": dataclasses.asdict(compute) | {"flops": compute.flops},
        "run": {
            "model": config.model,
            "versions": {"elt_zoo": elt_zoo.__version__, "jax": jax.__version__, "equinox": eqx.__version__}
            | {"numpy": np.__version__, "python": platform.python_version()},
            "machine": platform.platform(),
        },
    }


@contextlib.contextmanager
def exporting(config: Config, cell: Cell, shape: tuple[int, ...], count: int) -> Iterator[Any]:
    """What to do with every batch of a cell: write it to the cell's file, if that was asked for."""
    if not config.export:
        yield lambda batch: None
        return
    folder = config.folder / "samples"
    folder.mkdir(parents=True, exist_ok=True)
    # A file without its cell is one whose measuring was interrupted.
    with SampleWriter(folder / f"{cell.key}.npz", count=count, shape=(*shape[:-1], 3), overwrite=True) as writer:

        def write(batch: Samples) -> None:
            pixels = from_pixels(batch.pixels)
            writer.add(np.broadcast_to(pixels, (*pixels.shape[:-1], 3)), batch.labels)

        yield write


def heldout_source(config: Config, shape: tuple[int, ...]) -> AbstractSource | None:
    data = config.heldout_data or (DIGITS if shape == DIGIT else None)
    frames = shape[0] if len(shape) == 4 else None
    return None if data is None else open_source(data, split="heldout", size=shape[-2], frames=frames)


def hash_arrays(tree: Any) -> str:
    """SHA-256 of all arrays, wherever the file lies and whatever it is called."""
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(eqx.filter(tree, eqx.is_array)):
        digest.update(np.asarray(leaf).tobytes())
    return digest.hexdigest()


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what a cluster sends is what a keyboard sends
    try:
        main(tyro.cli(Config, description=__doc__))
    except (ValueError, FileNotFoundError, FileExistsError, ImportError, DataError, WeightsError) as error:
        raise SystemExit(f"error: {error}") from None
    except KeyboardInterrupt:
        raise SystemExit("\nStopped; measured cells are saved. Run the same command again to go on.") from None
