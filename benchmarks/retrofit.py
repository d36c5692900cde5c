"""Does a deep model make a better looped one than random initialisation does, at equal steps?

    python benchmarks/retrofit.py --csv retrofit.csv

Trains a DiT of 8 unique layers on the digits, turns it into 2N×4L in every way that `loopify` knows, and fine-tunes
each with ILSD beside the same looped model from random initialisation: same batches, steps and learning rate. The
figures are held-out losses, averaged over the exits after 1 to 4 loops and at the last; lower is better.
"""

import argparse
import dataclasses
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from timing import write_csv

from elt_zoo import ElasticModel, ILSDLoss
from elt_zoo.corruption import DiffusionCorruption, Prediction, ShiftedCosineSchedule
from elt_zoo.data import ArraySource, digits_to_pixels, load_digits, training_batches
from elt_zoo.diagnostics import exit_losses
from elt_zoo.families import Retrofit, loopify, preset
from elt_zoo.objectives import AbstractObjective, SigmoidWeightedMSE, VanillaLoss
from elt_zoo.profile import environment
from elt_zoo.training import OptimizerConfig, TrainState, fit, jit_step, make_optimizer, make_train_step

LOOPED = dataclasses.replace(preset("digits-dit"), reinjection=0.0)  # as `loopify` makes it
DEEP = LOOPED.unique_depth()
CORRUPTION = DiffusionCorruption(ShiftedCosineSchedule(), prediction=Prediction.V, null_label=LOOPED.num_classes)
LOSS = SigmoidWeightedMSE(Prediction.V)


def train(
    model: ElasticModel, objective: AbstractObjective, *, steps: int, every: int, learning_rate: float, seed: int
) -> Iterator[tuple[int, ElasticModel]]:
    """The averaged model at the start and after every so many steps."""
    train_set = load_digits("train")
    source = ArraySource(digits_to_pixels(train_set.images), train_set.labels)
    optimizer = make_optimizer(OptimizerConfig.digits(total_steps=steps, learning_rate=learning_rate))
    state = TrainState.create(model, optimizer, key=jax.random.key(seed))
    step = jit_step(make_train_step(optimizer, objective, CORRUPTION, total_steps=steps, ema_decay=0.99))
    batches = training_batches(source, batch_size=64, seed=seed)
    yield 0, model
    for done in range(every, steps + 1, every):
        state = fit(state, step, batches, total_steps=done).state
        yield done, state.ema


def starts(deep: ElasticModel, seed: int) -> Iterator[tuple[str, ElasticModel]]:
    yield "random", LOOPED.build(key=jax.random.key(seed + 1))
    for retrofit in Retrofit:
        yield retrofit.value, loopify(deep, DEEP, num_layers=LOOPED.num_layers, retrofit=retrofit)[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--deep-steps", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--every", type=int, default=100)
    parser.add_argument("--learning-rate", type=float, default=4e-3)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--csv", type=Path, help="also write the table here")
    arguments = parser.parse_args()
    heldout = load_digits("heldout")
    examples, labels = jnp.asarray(digits_to_pixels(heldout.images)), jnp.asarray(heldout.labels)

    def losses(model: ElasticModel, loops: int) -> np.ndarray:
        key = jax.random.key(1000)
        return np.asarray(exit_losses(model, LOSS, CORRUPTION, examples, labels, loops=loops, key=key))

    print(environment())
    objective = ILSDLoss(LOSS, LOSS.distillation, max_loops=LOOPED.max_loops)
    rows = []
    for seed in arguments.seeds:
        (_, _), (_, deep) = train(
            DEEP.build(key=jax.random.key(seed)),
            VanillaLoss(LOSS, max_loops=1),
            steps=arguments.deep_steps,
            every=arguments.deep_steps,
            learning_rate=arguments.learning_rate,
            seed=seed,
        )
        print(f"seed {seed}: 8 layers after {arguments.deep_steps} steps: held-out loss {losses(deep, 1)[0]:.4f}")
        print(f"{'start':32}{'step':>6}{'all exits':>12}{'one loop':>12}{'last exit':>12}")
        for name, start in starts(deep, seed):
            for step, trained in train(
                start,
                objective,
                steps=arguments.steps,
                every=arguments.every,
                learning_rate=arguments.learning_rate,
                seed=seed,
            ):
                at = losses(trained, LOOPED.max_loops)
                print(f"{name:32}{step:6}{at.mean():12.4f}{at[0]:12.4f}{at[-1]:12.4f}", flush=True)
                figures = {"all_exits": at.mean(), "one_loop": at[0], "last_exit": at[-1]}
                rows.append({"seed": seed, "start": name, "step": step} | {k: float(v) for k, v in figures.items()})
    write_csv(arguments.csv, rows)


if __name__ == "__main__":
    main()
