"""What a sampler costs beyond its network: the whole run against its number of steps times one forward pass.

    python benchmarks/sampler_overhead.py --csv sampler_overhead.csv

Requirement: at most 1.05. Both sides are compiled programs on the same weights; they take turns, so that a busy machine
hits both, and the ratio is taken within each round. One forward pass is timed as a call of its own: its inputs and
outputs pass through memory, as they do inside the run, but it also pays for a call, some tenths of a millisecond.
"""

import argparse
import csv
import platform
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp

from elt_zoo.models import BatchedPredict, DiTConfig, MaskGITConfig
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
DIGITS = MaskGITConfig(grid=(4, 4), codebook_size=64, num_classes=10, dim=64, num_layers=1, max_loops=4, num_heads=4)
LOOPS = 2


def masked(config: MaskGITConfig, batch: int, steps: int, guided: bool) -> tuple[Callable, Callable]:
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


def seconds(call: Callable, repeats: int = 1) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        jax.block_until_ready(call())
    return time.perf_counter() - start


def measure(name: str, sample: Callable, forward: Callable, steps: int, rounds: int) -> dict[str, float | str | int]:
    compile_sample, compile_forward = seconds(sample), seconds(forward)
    seconds(sample)
    seconds(forward, steps)
    # Alternating order within a round, too: a slow drift of the clock then falls on both sides alike.
    pairs = []
    for index in range(rounds):
        if index % 2:
            whole, passes = seconds(sample), seconds(forward, steps)
        else:
            passes, whole = seconds(forward, steps), seconds(sample)
        pairs.append((whole, passes))
    ratios = sorted(whole / passes for whole, passes in pairs)
    return {
        "sampler": name,
        "steps": steps,
        "rounds": rounds,
        "sample_ms": 1e3 * statistics.median(whole for whole, _ in pairs),
        "forward_ms": 1e3 * statistics.median(passes for _, passes in pairs) / steps,
        "ratio": statistics.median(ratios),
        "ratio_low": ratios[len(ratios) // 4],
        "ratio_high": ratios[(3 * len(ratios)) // 4],
        "compile_sample_s": compile_sample,
        "compile_forward_s": compile_forward,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--csv", type=Path, help="also write the table here")
    arguments = parser.parse_args()
    machine = f"{platform.machine()} {jax.devices()[0].device_kind}, Python {platform.python_version()}"
    versions = ", ".join(f"{name} {version(name)}" for name in ("jax", "equinox", "elt_zoo"))
    print(f"{machine}; {versions}; batch {arguments.batch}, median and quartiles of {arguments.rounds} rounds")
    print(f"{'sampler':24}{'forward':>10}{'sample':>10}{'ratio':>8}{'quartiles':>18}{'compile (forward)':>20}")
    steps, batch = arguments.steps, arguments.batch
    cases = {
        "masked": lambda: masked(MASKED, batch, steps, False),
        "masked, guided": lambda: masked(MASKED, batch, steps, True),
        "masked, small": lambda: masked(SMALL_MASKED, batch, steps, False),
        "masked, digits": lambda: masked(DIGITS, 64 * batch, steps, False),
        "DDIM": lambda: diffusion(batch, steps, False, DDIM()),
        "DDPM": lambda: diffusion(batch, steps, False, DDPM()),
        "DDPM, guided": lambda: diffusion(batch, steps, True, DDPM()),
    }
    rows = []
    for name, make in cases.items():
        row = measure(name, *make(), steps, arguments.rounds)
        rows.append({**row, "batch": batch, "machine": machine, "versions": versions})
        quartiles = f"{row['ratio_low']:.3f} to {row['ratio_high']:.3f}"
        print(
            f"{name:24}{row['forward_ms']:8.1f}ms{row['sample_ms']:8.0f}ms{row['ratio']:8.3f}{quartiles:>18}"
            f"{row['compile_sample_s']:12.1f}s ({row['compile_forward_s']:.1f}s)"
        )
    if arguments.csv is not None:
        with arguments.csv.open("w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
