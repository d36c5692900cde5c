"""Whether clips of moving digits show the digit that was asked for, and at which stage digits get lost.

    python benchmarks/moving_digits.py                                        # the bundled model
    python benchmarks/moving_digits.py --models runs/a/model runs/b/model     # several trainings
    python benchmarks/moving_digits.py --guidance 1 2 4 --temperature 0.5 1   # other ways to sample, at L_max

The judge is `elt_zoo.metrics.MovingDigitsEvaluator`, a classifier of frames that is fitted to real clips. There are two
of them: one knows the digits that the generator was trained on, the other those that it never saw. Both are measured on
real clips of the digits that they do not know, then on what the tokenizer makes of those, then on samples at every loop
count. Writes `moving-digits.csv` (every set of clips) and `moving-digits.md` (means, and the range over seeds).
"""

import argparse
import dataclasses
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import equinox as eqx
import jax
import numpy as np
from timing import write_csv

from elt_zoo import Generator, load
from elt_zoo.data import MovingDigits, Visit, to_pixels
from elt_zoo.metrics import MovingDigitsEvaluator
from elt_zoo.profile import environment

ROOT = Path(__file__).parents[1]
Split = Literal["train", "heldout"]
OTHER: dict[Split, Split] = {"train": "heldout", "heldout": "train"}
Row = dict[str, Any]


def judged(judge: MovingDigitsEvaluator, clips: np.ndarray, labels: np.ndarray) -> Row:
    return {"judge": judge.split} | dataclasses.asdict(judge(clips, labels))


def stages(generator: Generator, judges: list[MovingDigitsEvaluator], count: int) -> Iterator[Row]:
    """Real clips and their reconstructions, by the judge that does not know their digits."""
    tokenizer: Any = generator.tokenizer
    frames, size = generator.pixels.shape[:2]
    reconstruct = eqx.filter_jit(jax.vmap(lambda clip: tokenizer.decode(tokenizer.encode(clip))))
    for judge in judges:
        source = MovingDigits(OTHER[judge.split], frames=frames, size=size, augment=False)
        visits = [Visit(index) for index in range(min(count, len(source)))]
        clips, labels = to_pixels(source.read_batch(visits))
        yield {"clips": "real"} | judged(judge, np.asarray(clips), labels)
        yield {"clips": "reconstructed"} | judged(judge, np.asarray(reconstruct(clips)), labels)


def sampled(
    generator: Generator, judges: list[MovingDigitsEvaluator], *, loops: int, seed: int, count: int
) -> Iterator[Row]:
    """Samples, as many of each class, by both judges."""
    labels = np.tile(np.arange(10, dtype=np.int32), count // 10)
    clips = generator.sample(labels, loops=loops, key=jax.random.key(seed))
    about = {"clips": "sampled", "loops": loops, "sample_seed": seed} | dataclasses.asdict(generator.settings)
    for judge in judges:
        yield about | judged(judge, clips, labels)


def with_settings(generator: Generator, guidance: float | None, temperature: float | None) -> Generator:
    """The generator with another guidance scale, and with one temperature for all steps."""
    given: dict[str, Any] = {} if guidance is None else {"guidance": guidance}
    if temperature is not None:
        given |= {"temperature_bias": temperature, "temperature_scale": 0.0}
    return dataclasses.replace(generator, settings=dataclasses.replace(generator.settings, **given))


def table(rows: list[Row]) -> list[str]:
    """One line for each kind of clips: the share with the right class by either judge, and what else was measured."""
    lines = [
        "| Clips | right by the judge of training digits | by the judge of unseen digits | frames right | speed |",
        "|---|---|---|---|---|",
    ]
    told = ("loops", "guidance", "temperature_bias", "temperature_scale")
    groups = dict.fromkeys((row["clips"], *(row.get(name, "") for name in told)) for row in rows)
    varied = {name for name in told if len({row.get(name, "") for row in rows if row["clips"] == "sampled"}) > 1}
    for group in groups:
        mine = [row for row in rows if (row["clips"], *(row.get(name, "") for name in told)) == group]
        name, *settings = group
        known = {"loops": "L"} | {setting: setting.replace("_", " ") for setting in told[1:]}
        said = [
            f"{known[setting]} = {value:g}"
            for setting, value in zip(told, settings, strict=True)
            if setting in varied and value != ""
        ]
        cells = [span([row["accuracy"] for row in mine if row["judge"] == judge]) for judge in OTHER]
        cells += [span([row[column] for row in mine]) for column in ("frame_accuracy", "speed")]
        lines.append(f"| {', '.join([name, *said])} | {' | '.join(cells)} |")
    return lines


def span(values: list[float]) -> str:
    """The mean, and the range where it is wider than a point."""
    low, high = f"{min(values):.3f}", f"{max(values):.3f}"
    return low if low == high else f"{np.mean(values):.3f} ({low}–{high})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["moving-digits"], help="what elt_zoo.load takes")
    parser.add_argument(
        "--loops", type=int, nargs="+", help="default 1 to L_max and 2 L_max; with other settings L_max"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of the samples")
    parser.add_argument("--guidance", type=float, nargs="+", default=[None], help="scales; default the model's own")
    parser.add_argument("--temperature", type=float, nargs="+", default=[None], help="default the model's own")
    parser.add_argument("--clips", type=int, default=200, help="of each set, a multiple of 10")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    arguments = parser.parse_args()
    if arguments.clips < 10 or arguments.clips % 10:
        parser.error("--clips must be a multiple of the 10 classes.")
    rows: list[Row] = []
    for model in arguments.models:
        generator = load(model)
        judges = [MovingDigitsEvaluator(split, size=generator.pixels.shape[1]) for split in ("train", "heldout")]
        rows += [{"model": model} | row for row in stages(generator, judges, arguments.clips)]
        most, swept = generator.config.max_loops, (arguments.guidance, arguments.temperature) != ([None], [None])
        loops = arguments.loops or ([most] if swept else [*range(1, most + 1), 2 * most])
        for guidance, temperature, count, seed in itertools.product(
            arguments.guidance, arguments.temperature, loops, arguments.seeds
        ):
            changed = with_settings(generator, guidance, temperature)
            found = list(sampled(changed, judges, loops=count, seed=seed, count=arguments.clips))
            print(found[0], flush=True)
            rows += [{"model": model} | row for row in found]
    lines = [
        *table(rows),
        "",
        f"Sets of {arguments.clips} clips, as many of each class; of real and reconstructed ones, as many of different "
        f"digits. Means, in brackets the range over sampling seeds {', '.join(map(str, arguments.seeds))}"
        f"{' and models' if len(arguments.models) > 1 else ''}; frames and speed by both judges. Speed: of the "
        f"frame's side, per frame. {environment()}.",
    ]
    arguments.out.mkdir(parents=True, exist_ok=True)
    columns = list(dict.fromkeys(name for row in rows for name in row))
    write_csv(arguments.out / "moving-digits.csv", [{name: row.get(name, "") for name in columns} for row in rows])
    (arguments.out / "moving-digits.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
