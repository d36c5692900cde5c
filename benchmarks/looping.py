"""What looping costs: an ILSD step, a traced loop count, an exit of one's own for every example, and compiling many
loops, each beside its plain counterpart.

    python benchmarks/looping.py --csv looping.csv

Requirements: an ILSD step at most 1.06 times the vanilla looped step; a traced loop count at most 1.05 times the static
one at a batch of 8 or more; early exits of 16 examples at most 1.1 times their share of the loops; compiling 32 loops
at most 1.2 times as long as compiling 4.
"""

import argparse
import functools
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from timing import compare, header, show, write_csv

from elt_zoo import ILSDLoss, LoopedTransformer
from elt_zoo.data import Batch
from elt_zoo.families import DiTConfig, MaskGITConfig, ModelConfig, preset
from elt_zoo.models import BatchedPredict
from elt_zoo.nn import AdaLNZeroLayer, PreNormLayer
from elt_zoo.objectives import AbstractObjective, VanillaLoss
from elt_zoo.profile import environment
from elt_zoo.recipes import takes_tokens
from elt_zoo.training import OptimizerConfig, TrainState, jit_step, make_optimizer, make_train_step

# Between the digits and the paper's sizes: large enough that one step is mostly matrix products.
MEDIUM_DIT = DiTConfig(shape=(16, 16, 4), num_classes=10, dim=192, num_layers=2, max_loops=4, num_heads=4)
MEDIUM_MASKED = MaskGITConfig(
    grid=(8, 8), codebook_size=1024, num_classes=10, dim=192, num_layers=2, max_loops=4, num_heads=4
)


def training_step(config: ModelConfig, batch_size: int, *, ilsd: bool) -> Callable:
    """A call that takes one training step and keeps the state for the next."""
    corruption, loss, example = config.corruption(label_drop=0.1), config.loss(), config.example
    shape, key = (batch_size, *example.shape), jax.random.key(0)
    if takes_tokens(config):
        examples = jax.random.randint(key, shape, 0, getattr(config, "codebook_size"))  # noqa: B009
    else:
        examples = jax.random.normal(key, shape)
    objective: AbstractObjective = VanillaLoss(loss, max_loops=config.max_loops)
    if ilsd:
        objective = ILSDLoss(loss, loss.distillation, max_loops=config.max_loops)
    optimizer = make_optimizer(OptimizerConfig.digits(total_steps=1000))
    step = jit_step(make_train_step(optimizer, objective, corruption, total_steps=1000))
    batch = Batch(np.asarray(examples), np.zeros(batch_size, np.int32))
    state = TrainState.create(config.build(key=jax.random.key(0)), optimizer, key=jax.random.key(1))

    def call():
        nonlocal state
        state, metrics = step(state, batch)
        return metrics["loss"]

    return call


def ilsd_step(rounds: int) -> list[dict]:
    header("ILSD step", "vanilla step")
    cases = {
        "digits DiT, batch 64": (preset("digits-dit"), 64),
        "digits MaskGIT, batch 64": (preset("digits-maskgit"), 64),
        "DiT d=192 2N×4L, batch 16": (MEDIUM_DIT, 16),
        "MaskGIT d=192 2N×4L, batch 16": (MEDIUM_MASKED, 16),
    }
    rows = []
    for name, (config, batch_size) in cases.items():
        ours, baseline = (training_step(config, batch_size, ilsd=ilsd) for ilsd in (True, False))
        row = compare(ours, baseline, rounds=rounds)
        show(name, row)
        rows.append({"case": f"ILSD step, {name}", **row})
    return rows


def traced_count(rounds: int) -> list[dict]:
    header("traced", "static")
    rows = []
    for name, batch, loops in (
        ("digits-dit", 8, 4),
        ("digits-dit", 64, 1),
        ("digits-dit", 64, 4),
        ("digits-dit", 256, 8),
    ):
        config = preset(name)
        assert isinstance(config, DiTConfig)
        predict = BatchedPredict(config.build(key=jax.random.key(0)))
        inputs = (jnp.zeros((batch, *config.shape)), jnp.full(batch, 0.5), jnp.zeros(batch, jnp.int32))
        forward = eqx.filter_jit(lambda predict, inputs, loops: predict(*inputs, loops=loops))
        count = jnp.asarray(loops)
        row = compare(
            lambda f=forward, p=predict, i=inputs, c=count: f(p, i, c),
            lambda f=forward, p=predict, i=inputs, n=loops: f(p, i, n),
            rounds=8 * rounds,
        )
        show(f"{name}, batch {batch}, {loops} loop(s)", row)
        rows.append({"case": f"traced count, {name}, batch {batch}, {loops} loops", **row})
    return rows


def exits_of(config: DiTConfig, batch: int, loops: int) -> tuple[Callable, Callable, np.ndarray]:
    """Of a random batch: a call in which each example leaves where its first token is what it is given, a call of all
    loops, and the first tokens after each loop.
    """
    rng = np.random.default_rng(0)
    # adaLN starts as the identity: moved off it, so that each loop changes the state.
    model = jax.tree.map(
        lambda leaf: leaf + 0.02 * rng.standard_normal(leaf.shape, np.float32) if eqx.is_array(leaf) else leaf,
        config.build(key=jax.random.key(0)),
    )
    x = jnp.asarray(rng.standard_normal((batch, *config.shape), np.float32))
    embedded = jax.jit(jax.vmap(model.head.embed))(x, jnp.full(batch, 0.5), jnp.zeros(batch, jnp.int32))

    def one_leaves(last, *embedded):
        rule = lambda _, state: jnp.allclose(state[0], last, atol=1e-4)  # noqa: E731
        return model.trunk.early_exit(*embedded, rule=rule, max_loops=loops)

    leave = jax.jit(jax.vmap(one_leaves))
    every = jax.jit(jax.vmap(lambda *embedded: model.trunk(*embedded, loops=loops)))
    states = jax.jit(jax.vmap(lambda *embedded: model.trunk.trajectory(*embedded, loops=loops)))(*embedded)
    return lambda last: leave(last, *embedded), lambda: every(*embedded), np.asarray(states[:, :, 0])


def early_exit(rounds: int) -> list[dict]:
    """Examples that leave after loops of their own, beside all loops for all of them."""
    header("early exit", "all loops")
    rows, batch, loops = [], 16, 8
    which = np.arange(batch)
    for name in ("digits-dit", "DiT d=192 2N×4L"):
        config = MEDIUM_DIT if name != "digits-dit" else preset(name)
        assert isinstance(config, DiTConfig)
        leave, every, tokens = exits_of(config, batch, loops)
        exits_by_name = {
            "after 1 to 8 loops": which % loops + 1,
            "one stays for 8 loops": np.where(which == 3, loops, 1),
        }
        for kind, exits in exits_by_name.items():
            last = tokens[which, exits - 1]
            np.testing.assert_array_equal(leave(last)[1], exits)
            row = compare(functools.partial(leave, last), every, rounds=rounds)
            case = f"{name}, {kind}: {exits.mean() / loops:.3f} of the loops"
            show(case, row)
            rows.append({"case": f"early exit, {case}", **row})
    return rows


def compile_time(rounds: int) -> list[dict]:
    header("32 loops", "4 loops")
    rows = []
    for layer in (PreNormLayer, AdaLNZeroLayer):
        trunk = LoopedTransformer.create(64, 2, 4, layer=layer, key=jax.random.key(0))
        conditioning = None if layer is PreNormLayer else jnp.ones(64)
        x = jnp.ones((16, 64))

        def compile_gradient(loops, trunk=trunk, conditioning=conditioning, x=x):
            def loss(trunk):
                return jnp.sum(jnp.square(trunk(x, conditioning, loops=loops)))

            jax.clear_caches()
            start = time.perf_counter()
            eqx.filter_jit(eqx.filter_grad(loss)).lower(trunk).compile()  # pyright: ignore[reportFunctionMemberAccess]
            return time.perf_counter() - start

        compile_gradient(2)
        pairs = [(compile_gradient(32), compile_gradient(4)) for _ in range(max(rounds // 2, 3))]
        ratios = sorted(many / few for many, few in pairs)
        row = {
            "rounds": len(pairs),
            "ours_ms": 1e3 * statistics.median(many for many, _ in pairs),
            "baseline_ms": 1e3 * statistics.median(few for _, few in pairs),
            "ratio": statistics.median(ratios),
            "ratio_low": ratios[len(ratios) // 4],
            "ratio_high": ratios[(3 * len(ratios)) // 4],
            "compile_ours_s": 0.0,
            "compile_baseline_s": 0.0,
        }
        show(f"{layer.__name__}, gradient", row)
        rows.append({"case": f"compile time, {layer.__name__}", **row})
    return rows


PARTS = {"ilsd": ilsd_step, "traced": traced_count, "exit": early_exit, "compile": compile_time}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS)
    parser.add_argument("--csv", type=Path, help="also write the table here")
    arguments = parser.parse_args()
    print(environment(), f"; medians and quartiles of {arguments.rounds} rounds")
    rows = [row for part in arguments.parts for row in PARTS[part](arguments.rounds)]
    write_csv(arguments.csv, rows)


if __name__ == "__main__":
    main()
