"""Is disagreement of exits a sign of error? Asked of bundled models on held-out examples.

    python -m reproduction.uncertainty
    python -m reproduction.uncertainty --mnist /data/mnist

Every held-out example is corrupted several times, and one pass gives all exits. Four signals of it:

- apart: how far the exits before the last are from it, on average;
- last change: how far the last loop moves the prediction;
- state: how far the last loop moves the state, relative to its norm;
- loops: after how many loops a rule on the change of the prediction would have left;

and of masked models a rival that needs no loops, the entropy of the last prediction. Each is compared with the loss at
L_max against the held-out target by Spearman's rank correlation. The loss depends on how much is hidden, and so do the
signals: the correlation is taken within eight ranges of the level, given the ranks of the level there, and averaged. Of
masked models it is also taken given the ranks of the entropy. The 95% intervals come from examples sampled with
replacement, each with all its corruptions.

Writes `uncertainty.csv` (every correlation of every range) and `uncertainty.md`.
"""

import argparse
import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from scipy.stats import rankdata

from elt_zoo import ElasticModel, Generator, load
from elt_zoo.data import Batch
from elt_zoo.families import ModelConfig
from elt_zoo.generator import relative_change
from elt_zoo.profile import environment

from ._data import digits, mnist
from ._options import ROOT

MODELS = ("digits-dit", "digits-maskgit", "mnist-dit")
SIGNALS = {"apart": "exits apart", "last": "last change", "state": "state", "loops": "loops used"}
ENTROPY = "entropy"
RANGES, COPIES, ROUNDS = 8, 32, 500


@eqx.filter_jit
def look(model: ElasticModel, config: ModelConfig, batch: Batch, key: Array) -> dict[str, Array]:
    """Of every example of a batch, corrupted once: its level, its loss at L_max and the signals."""
    loops, masked = config.max_loops, config.family == "maskgit"
    inputs, target, _ = config.corruption()(batch.examples, batch.labels, key=key)

    def one(target: Any, *example: Any) -> dict[str, Array]:
        tokens, conditioning = model.head.embed(*example)
        states = model.trunk.loop_states(tokens, conditioning, loops=loops)
        exits = model.trajectory(*example, loops=loops)
        hidden = example[0] == model.head.mask_id if masked else None  # pyright: ignore[reportAttributeAccessIssue]

        def moved(before: Array, after: Array) -> Array:
            return relative_change(before, after) if hidden is None else _divergence(before, after, hidden)

        changes = jax.vmap(moved)(exits[:-1], exits[1:])
        found = {
            "level": config.level(*example),
            "loss": config.loss()(exits[-1], target),
            "apart": jnp.mean(jax.vmap(lambda each: moved(each, exits[-1]))(exits[:-1])),
            "last": changes[-1],
            "changes": changes,
            "state": relative_change(states[-2], states[-1]),
        }
        if hidden is not None:
            found[ENTROPY] = _mean(-jnp.sum(jax.nn.softmax(exits[-1]) * jax.nn.log_softmax(exits[-1]), axis=-1), hidden)
        return found

    return jax.vmap(one)(target, *inputs)


def _divergence(before: Array, after: Array, hidden: Array) -> Array:
    """KL(after ‖ before) in nats, mean over the hidden tokens."""
    log_p, log_q = jax.nn.log_softmax(after), jax.nn.log_softmax(before)
    return _mean(jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1), hidden)


def _mean(values: Array, where: Array) -> Array:
    return jnp.sum(jnp.where(where, values, 0.0)) / jnp.sum(where, dtype=jnp.float32)


def measure(generator: Generator, heldout: Batch, *, copies: int) -> dict[str, np.ndarray]:
    """Of every example and corruption, shape (copies, examples); the loops that a rule takes among them."""
    heldout, keys = jax.tree.map(jnp.asarray, heldout), jax.random.split(jax.random.key(0), copies)
    each = [jax.device_get(look(generator.model, generator.config, heldout, key)) for key in keys]
    found = {name: np.stack([one[name] for one in each]).astype(np.float64) for name in each[0]}
    changes = found.pop("changes")
    settled = changes <= np.median(changes)
    # A change is seen after the second loop at the earliest; who never settles takes all.
    found["loops"] = np.where(settled.any(axis=-1), settled.argmax(axis=-1) + 2.0, changes.shape[-1] + 1.0)
    return found


def correlation(one: np.ndarray, other: np.ndarray, *given: np.ndarray) -> float:
    """Spearman's rank correlation of what the ranks of `given` leave unexplained; 0 where that is nothing."""
    terms = np.stack([np.ones(len(one)), *map(rankdata, given)], axis=1)
    one, other = (
        each - terms @ np.linalg.lstsq(terms, each, rcond=None)[0] for each in (rankdata(one), rankdata(other))
    )
    scale = np.linalg.norm(one) * np.linalg.norm(other)
    return float(one @ other / scale) if scale > 1e-9 * len(one) else 0.0


def within(found: Mapping[str, np.ndarray], signal: str, *given: str) -> list[float]:
    """The correlation of a signal with the loss in every range of the level."""
    ranges = np.minimum((found["level"] * RANGES).astype(int), RANGES - 1)
    rows = [ranges == each for each in range(RANGES)]
    return [
        correlation(*(found[name][row] for name in (signal, "loss", "level", *given))) for row in rows if row.sum() > 20
    ]


def interval(found: Mapping[str, np.ndarray], signal: str, *given: str, rounds: int) -> tuple[float, float, float]:
    """The mean over the ranges, and its 95% interval."""
    rng, examples = np.random.default_rng(0), found["loss"].shape[1]
    means = []
    for _ in range(rounds):
        chosen = rng.integers(examples, size=examples)
        means.append(np.mean(within({name: values[:, chosen] for name, values in found.items()}, signal, *given)))
    low, high = np.quantile(means, (0.025, 0.975))
    return float(np.mean(within(found, signal, *given))), float(low), float(high)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mnist", type=Path, help="the folder of t10k-images-idx3-ubyte.gz and its labels")
    parser.add_argument("--copies", type=int, default=COPIES, help="corruptions of each held-out example")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="of resampling")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "reproduction")
    arguments = parser.parse_args()
    if min(arguments.copies, arguments.rounds) < 1:
        parser.error("--copies and --rounds must be at least 1.")
    folder: Path | None = arguments.mnist
    names = MODELS[:2] if folder is None else MODELS
    rows, lines = [], ["| Model | Signal | with the loss | beyond the entropy |", "|---|---|---|---|"]
    for name in names:
        generator = load(name)
        heldout = (digits() if folder is None or name.startswith("digits") else mnist(folder)).heldout
        if generator.tokenizer is not None:
            codes = np.asarray(jax.jit(jax.vmap(generator.tokenizer.encode))(heldout.examples))
            heldout = heldout._replace(examples=codes)
        found = measure(generator, heldout, copies=arguments.copies)
        signals = SIGNALS | ({ENTROPY: "entropy, no loops needed"} if ENTROPY in found else {})
        for signal, said in signals.items():
            cells = ["–", "–"]
            for cell, given in enumerate([(), (ENTROPY,)] if ENTROPY in found else [()]):
                if signal in given:
                    continue
                mean, low, high = interval(found, signal, *given, rounds=arguments.rounds)
                cells[cell] = f"{mean:+.2f} ({low:+.2f} to {high:+.2f})"
                for index, value in enumerate(within(found, signal, *given)):
                    rows.append((name, signal, "+".join(given), index, f"{value:.4f}"))
            lines.append(f"| {name} | {said} | {' | '.join(cells)} |")
            print(lines[-1], flush=True)
    note = f"{arguments.copies} corruptions of every held-out example; one trained model each. {environment()}."
    arguments.out.mkdir(parents=True, exist_ok=True)
    with (arguments.out / "uncertainty.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerows([("model", "signal", "given", "range", "correlation"), *rows])
    (arguments.out / "uncertainty.md").write_text("\n".join([*lines, "", note]) + "\n")


if __name__ == "__main__":
    try:
        main()
    except (ValueError, FileNotFoundError) as error:
        raise SystemExit(f"error: {error}") from None
