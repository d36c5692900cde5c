"""Draw samples from a saved model at any loop budget.

    python examples/sample.py                                                  # the bundled diffusion model
    python examples/sample.py --model digits-maskgit --loops 1 4
    python examples/sample.py --model runs/digits-dit-ilsd/model --ramp 1 4    # 1 loop in the first step, 4 in the last

A few seconds on a laptop CPU, most of them compilation: one program serves every loop count.
"""

import dataclasses
import time
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import tyro
from pictures import save_clip_grid, save_sample_grid
from samplers import SamplerSettings, make_sampler

import elt_zoo
from elt_zoo.models import BatchedPredict
from elt_zoo.sampling import average_loops, linear_budget
from elt_zoo.storage import WeightsError


@dataclasses.dataclass(frozen=True)
class Config:
    """Draw samples from a saved model at any loop budget."""

    model: str = "digits-dit"
    """A folder that `elt_zoo.save` wrote, or a bundled model."""
    loops: tuple[int, ...] = (1, 2, 4, 8)
    """One row of samples for each count."""
    ramp: tuple[int, int] | None = None
    """Instead of `--loops`: the loops of the first and of the last sampling step, evenly between."""
    labels: tuple[int, ...] | None = None
    """The classes to draw; by default each of up to ten."""
    steps: int | None = None
    """Sampling steps; by default as the model was measured."""
    guidance: float | None = None
    """Guidance scale; by default as the model was measured."""
    seed: int = 0
    out: Path = Path("samples.png")


def main(config: Config) -> None:
    loaded = elt_zoo.load(config.model)
    num_classes = loaded.config.num_classes
    labels = config.labels or tuple(range(min(num_classes, 10)))
    if not all(0 <= label <= num_classes for label in labels):
        raise ValueError(f"--labels {labels}: this model knows 0 to {num_classes - 1}, and {num_classes} for no class.")
    settings = SamplerSettings(**loaded.metadata.get("sampler", {})).resolved(loaded.config, digits=False)
    settings = dataclasses.replace(
        settings, steps=config.steps or settings.steps, guidance=config.guidance or settings.guidance
    )
    sampler = make_sampler(loaded.config, settings)
    ids = jnp.asarray(labels)

    @eqx.filter_jit
    def draw(model, budget):
        samples = sampler(BatchedPredict(model), ids, loops=budget, key=jax.random.key(config.seed))
        return samples if loaded.tokenizer is None else jax.vmap(loaded.tokenizer.decode)(samples)

    if config.ramp is None:
        budgets = {f"L = {loops}": jnp.full(sampler.steps, loops) for loops in config.loops}
    else:
        budgets = {f"L = {config.ramp[0]}…{config.ramp[1]}": linear_budget(*config.ramp, sampler.steps)}
    pictures = {}
    for name, budget in budgets.items():
        started = time.perf_counter()
        pictures[name] = np.asarray(draw(loaded.model, budget))
        average = average_loops(budget, sampler.steps)
        print(f"{name}: {len(labels)} samples, {average:.3g} loops a step, {time.perf_counter() - started:.2f} s")
    save = save_clip_grid if next(iter(pictures.values())).ndim == 5 else save_sample_grid
    save(config.out, pictures, labels, title=f"{config.model}, {sampler.steps} steps")
    print(f"Saved {config.out}.")


if __name__ == "__main__":
    try:
        main(tyro.cli(Config, description=__doc__))
    except (ValueError, FileNotFoundError, WeightsError) as error:
        raise SystemExit(f"error: {error}") from None
