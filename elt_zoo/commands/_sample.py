import dataclasses
import math
import time
from pathlib import Path

import jax
import numpy as np

from ..figures import save_grid
from ..generator import ExitGuidance, load
from ..sampling import Loops, average_loops, constant_budget, linear_budget
from ..storage import require_writable
from ..tokenizers import load_tokenizer


@dataclasses.dataclass(frozen=True, kw_only=True)
class SampleOptions:
    """Sample a saved model at any number of loops, as a picture, and for clips a GIF beside it."""

    model: str = "digits-dit"
    """A folder that `elt_zoo.save` wrote, a bundled model, or one on the hub, hf://owner/name@revision."""
    tokenizer: Path | None = None
    """The folder of the tokenizer or autoencoder, where the model was saved without."""
    loops: tuple[int, ...] = (1, 2, 4, 8)
    """One row of samples for each count."""
    ramp: tuple[int, int] | None = None
    """Instead of `--loops`: the loops of the first and of the last sampling step, evenly between."""
    labels: tuple[int, ...] | None = None
    """The classes to sample; default each of up to ten."""
    steps: int | None = None
    """Sampling steps; default as the model was measured."""
    guidance: float | None = None
    """Scale of guidance: 1 is none, 0 the unconditional model; default as the model was measured."""
    exit_guidance: float | None = None
    """Scale of guidance by an early exit of the same pass: 1 is none; alone or with `--guidance`."""
    guiding_exit: int = 1
    """Loops of the exit that `--exit-guidance` moves away from."""
    batch_size: int | None = None
    """Samples at a time; default all of a row, 64 at most."""
    seed: int = 0
    out: Path = Path("samples.png")

    def __post_init__(self):
        if not self.loops and self.ramp is None:
            raise ValueError("`--loops` names no loop counts.")
        for count in (*self.loops, *(self.ramp or ())):
            if count < 1:
                raise ValueError(f"`--loops {count}` samples nothing: use at least 1.")
        for name in ("steps", "batch_size"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"`--{name.replace('_', '-')} {value}` must be at least 1.")
        if self.seed < 0:
            raise ValueError(f"`--seed {self.seed}` must be 0 or more.")
        if self.guidance is not None and not math.isfinite(self.guidance):
            raise ValueError(f"`--guidance {self.guidance}` must be a finite number; 1 is no guidance.")
        _ = self.by_exit  # raises for a scale or an exit that cannot be
        if self.out.suffix.lower() != ".png":
            raise ValueError(f"`--out {self.out}` must end in .png: it will be a picture.")
        if self.labels is not None and not self.labels:
            raise ValueError("`--labels` names no classes.")

    @property
    def by_exit(self) -> ExitGuidance | None:
        """Guidance by an early exit, if it was asked for."""
        return None if self.exit_guidance is None else ExitGuidance(self.exit_guidance, exit=self.guiding_exit)


def sample(options: SampleOptions) -> None:
    """`elt-zoo sample`."""
    require_writable(options.out)
    generator = load(options.model)
    if options.tokenizer is not None:
        generator = dataclasses.replace(generator, tokenizer=load_tokenizer(options.tokenizer))
    labels = tuple(range(min(generator.config.num_classes, 10))) if options.labels is None else options.labels
    steps = generator.sampler(steps=options.steps).steps
    budgets: dict[str, Loops]
    if options.ramp is None:
        budgets = {f"L = {loops}": constant_budget(loops, steps) for loops in options.loops}
    else:
        budgets = {f"L = {options.ramp[0]}…{options.ramp[1]}": linear_budget(*options.ramp, steps)}
    pictures: dict[str, np.ndarray] = {}
    for name, budget in budgets.items():
        started = time.perf_counter()
        pictures[name] = generator.sample(
            labels,
            loops=budget,
            steps=options.steps,
            guidance=options.guidance,
            exit_guidance=options.by_exit,
            batch_size=options.batch_size,
            key=jax.random.key(options.seed),
        )
        seconds = time.perf_counter() - started
        average = average_loops(budget, steps)
        print(f"{name}: {len(labels)} samples, {average:.3g} loops a step, {seconds:.2f} s")
    save_grid(options.out, pictures, labels, title=f"{options.model}, {steps} steps")
    film = f" and {options.out.with_suffix('.gif')}" if len(generator.pixels.shape) == 4 else ""
    print(f"Saved {options.out}{film}.")
