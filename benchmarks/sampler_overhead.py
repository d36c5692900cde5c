"""What a sampler costs beyond its network: the whole run against its number of steps times one forward pass.

    python benchmarks/sampler_overhead.py --csv sampler_overhead.csv

Requirement: at most 1.05. Both sides are compiled programs on the same weights; they take turns, so that a busy machine
hits both, and the ratio is taken within each round. One forward pass is timed as a call of its own: its inputs and
outputs pass through memory, as they do inside the run, but it also pays for a call, some tenths of a millisecond.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
from timing import compare, header, show, write_csv

from elt_zoo.families import DiTConfig, MaskGITConfig, ModelConfig, preset
from elt_zoo.models import BatchedPredict
from elt_zoo.profile import environment
from elt_zoo.sampling import DDIM, DDPM, AbstractUpdate, ConstantGuidance, DiffusionSampler, MaskedSampler

# One forward pass of each takes about ten milliseconds or more on a CPU core. The masked sampler's own work grows with
# the codebook and not with the width, so both ends are measured: a network that is small for its 1,024 codes, and a
# less small one.
MASKED = MaskGITConfig(
    grid=(16, 16), codebook_size=1024, num_classes=10, dim=256, num_layers=2, max_loops=2, num_heads=4, mlp_dim=1024
)
SMALL_MASKED = MaskGITConfig(
    grid=(16, 16), codebook_size=1024, num_classes=10, dim=128, num_layers=1, max_loops=2, num_heads=2, mlp_dim=512
)
DIFFUSION = DiTConfig(
    shape=(32, 32, 4), patch_size=2, num_classes=10, dim=128, num_layers=1, max_loops=2, num_heads=2, mlp_dim=512
)
LOOPS = 2


def masked(config: ModelConfig, batch: int, steps: int, guided: bool) -> tuple[Callable, Callable]:
    assert isinstance(config, MaskGITConfig)
    model = config.build(key=jax.random.key(0))
    predict, labels = BatchedPredict(model), jnp.zeros(batch, jnp.int32)
    sampler = MaskedSampler(
        grid=config.grid,
        codebook_size=config.codebook_size,
        mask_id=config.codebook_size,
        null_label=config.num_classes,
        steps=steps,
        guidance=ConstantGuidance(2.0) if guided else None,
    )
    factor = 2 if guided else 1
    ids = jnp.full((factor * batch, *config.grid), config.codebook_size)
    forward = eqx.filter_jit(lambda predict, ids, labels: predict(ids, labels, loops=LOOPS))
    return (
        lambda: sampler(predict, labels, loops=LOOPS, key=jax.random.key(1)),
        lambda: forward(predict, ids, jnp.tile(labels, factor)),
    )


def diffusion(batch: int, steps: int, guided: bool, update: AbstractUpdate) -> tuple[Callable, Callable]:
    model = DIFFUSION.build(key=jax.random.key(0))
    predict, labels = BatchedPredict(model), jnp.zeros(batch, jnp.int32)
    sampler = DiffusionSampler(
        shape=DIFFUSION.shape,
        prediction=DIFFUSION.prediction,
        null_label=DIFFUSION.num_classes,
        steps=steps,
        update=update,
        guidance=ConstantGuidance(2.0) if guided else None,
    )
    factor = 2 if guided else 1
    x, time_ = jnp.zeros((factor * batch, *DIFFUSION.shape)), jnp.ones(factor * batch)
    forward = eqx.filter_jit(lambda predict, x, time, labels: predict(x, time, labels, loops=LOOPS))
    return (
        lambda: sampler(predict, labels, loops=LOOPS, key=jax.random.key(1)),
        lambda: forward(predict, x, time_, jnp.tile(labels, factor)),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--csv", type=Path, help="also write the table here")
    arguments = parser.parse_args()
    steps, batch = arguments.steps, arguments.batch
    print(f"{environment()}; batch {batch}, {steps} steps, median and quartiles of {arguments.rounds} rounds")
    cases = {
        "masked": lambda: masked(MASKED, batch, steps, False),
        "masked, guided": lambda: masked(MASKED, batch, steps, True),
        "masked, small": lambda: masked(SMALL_MASKED, batch, steps, False),
        "masked, digits": lambda: masked(preset("digits-maskgit"), 64 * batch, steps, False),
        "DDIM": lambda: diffusion(batch, steps, False, DDIM()),
        "DDPM": lambda: diffusion(batch, steps, False, DDPM()),
        "DDPM, guided": lambda: diffusion(batch, steps, True, DDPM()),
    }
    header("whole sample", "one forward")
    rows = []
    for name, make in cases.items():
        row = compare(*make(), rounds=arguments.rounds, baseline_repeats=steps)
        show(name, row)
        rows.append({"case": name, "steps": steps, "batch": batch, **row})
    write_csv(arguments.csv, rows)


if __name__ == "__main__":
    main()
