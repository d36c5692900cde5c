"""Which mesh, rematerialisation and accumulation lets the paper's models train with a batch of 512, and how much memory
each chip then needs, without any of the machines.

    python benchmarks/fit.py --csv benchmarks/results/fit.csv

For TPUs the training step is compiled, by the TPU's own compiler (`pip install 'elt_zoo[tpu-compile]'`), and the first
setting that it takes is kept, together with those that it refuses. For GPUs, whose compiler needs one, the memory is
what `elt_zoo.profile.profile` estimates. Rows that the file holds are not computed again, so that the script can be
stopped at any time; `--machines` and `--presets` choose some.
"""

import argparse
import csv
import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # no accelerator is needed, and none is taken

import jax.numpy as jnp

from elt_zoo import Remat
from elt_zoo.families import ModelConfig, preset, preset_names
from elt_zoo.nn import AttentionKernel
from elt_zoo.profile import (
    CompiledCost,
    DoesNotFit,
    compile_sampler,
    compile_step,
    environment,
    profile,
    topology_devices,
)
from elt_zoo.sharding import Gather, Layout, make_mesh

BATCH = 512
PRECISION = "bfloat16"
PAPER = tuple(name for name in preset_names() if name.startswith(("elt-", "maskgit-", "magvit-", "dit-2048-")))
KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
STEP, SAMPLER = "training step", "sampler"


@dataclasses.dataclass(frozen=True)
class Machine:
    """Chips to train on. `topology` is `None` where nothing can be compiled; `memory`: bytes of one chip."""

    name: str
    chips: int
    memory: float
    topology: str | None = None


MACHINES = (
    Machine("1 GPU of 80 GB", 1, 80e9),
    Machine("8 GPUs of 80 GB", 8, 80e9),
    Machine("v5e-16", 16, 15.75 * 2**30, "v5e:4x4"),
    Machine("v5e-256", 256, 15.75 * 2**30, "v5e:16x16"),
    Machine("v6e-8", 8, 31.25 * 2**30, "v6e:2x4"),
)
# On an H100 XLA took 1.2 to 1.3 times the estimate, and some memory is never a program's.
GPU_FACTOR, GPU_SHARE = 1.3, 0.9


@dataclasses.dataclass(frozen=True, order=True)
class Setting:
    """How a step shares the work. Simple and fast ones come first."""

    fsdp: int = 1
    gather: str = "step"
    accumulation: int = 1
    remat: str = "auto"


def settings(machine: Machine) -> Iterator[Setting]:
    """All settings to try, in this order: store less, split the state, take the batch in parts."""
    shards = min(machine.chips, 16)
    meshes = [(1, "step"), *([(shards, "step"), (shards, "loop")] if shards > 1 else [])]
    for parts in ((1, 2), (4, 8, 16, 32)):
        for fsdp, gather in meshes:
            if parts[0] == 1:
                yield Setting(fsdp, gather, 1, "auto")
            for accumulation in parts:
                if BATCH // machine.chips % accumulation == 0:
                    yield Setting(fsdp, gather, accumulation, "layer")


def estimate(config: ModelConfig, machine: Machine, setting: Setting) -> dict[str, int]:
    """Bytes of one chip: the state and the gradient, and the activations."""
    costs = profile(config, batch=BATCH // machine.chips // setting.accumulation, dtype=jnp.dtype(PRECISION))
    kept = 4 * costs.parameter_bytes // setting.fsdp  # parameters, average and two moments
    whole = costs.parameter_bytes  # the gradient
    if setting.fsdp > 1:
        layers = 4 * costs.loop_parameters // config.num_layers
        whole = layers if setting.gather == "loop" else 2 * whole  # and the parameters beside it
        whole += costs.parameter_bytes // setting.fsdp
    if setting.accumulation > 1:
        whole += costs.parameter_bytes // (setting.fsdp if setting.gather == "loop" else 1)  # the sum of gradients
    return {
        "argument_bytes": kept,
        "temporary_bytes": whole + costs.training_activation_bytes(),
    }


def measured(config: ModelConfig, machine: Machine, setting: Setting, program: str) -> dict[str, Any]:
    """The row of a program that is compiled."""
    assert machine.topology is not None
    mesh = make_mesh(fsdp=setting.fsdp, devices=topology_devices(machine.topology))
    try:
        if program == SAMPLER:
            cost = compile_sampler(config, mesh, batch=BATCH, precision=PRECISION)
        else:
            layout = Layout(mesh, Gather(setting.gather))
            cost = compile_step(
                config,
                layout,
                batch=BATCH,
                precision=PRECISION,
                accumulation=setting.accumulation,
                attention=AttentionKernel.XLA,
            )
    except DoesNotFit as error:
        return {"found": "does not fit", "total_bytes": error.needed}
    return {"found": "fits" if cost.fits else "does not fit", **figures(cost)}


def figures(cost: CompiledCost) -> dict[str, Any]:
    """What a row holds of a compiled program."""
    kinds = {each.kind: each for each in cost.collectives}
    moved = {kind: {"count": kinds[kind].count, "bytes": kinds[kind].size} for kind in KINDS if kind in kinds}
    return {
        "total_bytes": cost.total_bytes,
        **{name: getattr(cost, name) for name in ("argument_bytes", "temporary_bytes", "output_bytes", "code_bytes")},
        "flops": round(cost.flops),
        **{f"{kind} {name}": value for kind, values in moved.items() for name, value in values.items()},
        "compile_seconds": round(cost.compile_seconds, 1),
    }


FIELDS = (
    *("preset", "machine", "topology", "program", "batch", "precision"),
    *(field.name for field in dataclasses.fields(Setting)),
    *("found", "total_bytes", "argument_bytes", "temporary_bytes", "output_bytes", "code_bytes", "flops"),
    *(f"{kind} {name}" for kind in KINDS for name in ("count", "bytes")),
    *("compile_seconds", "environment"),
)


class Table:
    """The file of rows, to which each is added as soon as it is known."""

    def __init__(self, path: Path, packages: tuple[str, ...]):
        self.path, self.where = path, environment(*packages)
        self.rows: list[dict[str, Any]] = []
        if path.exists():
            with path.open(newline="") as file:
                self.rows = list(csv.DictReader(file))

    def find(self, **key: Any) -> dict[str, Any] | None:
        """The row of these values, if it is there."""
        return next((row for row in self.rows if all(row[name] == str(value) for name, value in key.items())), None)

    def add(self, **row: Any) -> dict[str, Any]:
        """Writes a row and returns it, as text."""
        new = not self.path.exists()
        with self.path.open("a", newline="") as file:
            writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
            if new:
                writer.writeheader()
            writer.writerow(row | {"environment": self.where})
        text = {name: str(row.get(name, "")) for name in FIELDS} | {"environment": self.where}
        self.rows.append(text)
        return text

    def sort(self) -> None:
        """Puts the rows in the order of the machines, and smaller models first."""
        machines = [machine.name for machine in MACHINES]
        sizes = {name: profile(preset(name)).parameters for name in PAPER}
        self.rows.sort(
            key=lambda row: (row["program"] == SAMPLER, machines.index(row["machine"]), sizes[row["preset"]])
        )
        with self.path.open("w", newline="") as file:
            writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(self.rows)


def fit(name: str, machine: Machine, table: Table) -> None:
    """Adds rows until one fits, or says that none does."""
    for setting in settings(machine):
        config = dataclasses.replace(preset(name), remat=Remat(setting.remat))
        guess = estimate(config, machine, setting)
        factor, share = (GPU_FACTOR, GPU_SHARE) if machine.topology is None else (_least_share(config), 1.0)
        if factor * sum(guess.values()) > share * machine.memory:
            continue
        key = _key(name, machine, STEP, setting)
        row = table.find(**key)
        if row is None and machine.topology is None:
            row = table.add(**key, found="estimate", total_bytes=sum(guess.values()), **guess)
        elif row is None:
            row = table.add(**key, **measured(config, machine, setting, STEP))
        if row["found"] != "does not fit":
            _say(row)
            return
    print(f"{name:>20} {machine.name:<16} nothing fits")


def _least_share(config: ModelConfig) -> float:
    """The least that a TPU's compiler takes of the estimate, to spare it what will not fit: with rematerialisation it
    took more than the estimate, and half of it without.
    """
    kind = config.remat.resolve(config.max_loops, unrolled=config.unroll_loops)
    return 0.5 if kind == Remat.NONE else 0.9


def sample(name: str, machine: Machine, table: Table) -> None:
    """Adds the row of the sampler."""
    key = _key(name, machine, SAMPLER, Setting())
    row = table.find(**key)
    _say(table.add(**key, **measured(preset(name), machine, Setting(), SAMPLER)) if row is None else row)


def _key(name: str, machine: Machine, program: str, setting: Setting) -> dict[str, Any]:
    return {
        "preset": name,
        "machine": machine.name,
        "topology": machine.topology or "",
        "program": program,
        "batch": BATCH,
        "precision": PRECISION,
        **dataclasses.asdict(setting),
    }


def _say(row: dict[str, Any]) -> None:
    setting = ", ".join(f"{field.name} {row[field.name]}" for field in dataclasses.fields(Setting))
    size = f"{int(row['total_bytes']) / 2**30:.2f} GiB"
    print(f"{row['preset']:>20} {row['machine']:<16} {row['program']}: {row['found']}, {size}, {setting}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--csv", type=Path, required=True)
    parser.add_argument("--machines", nargs="+", choices=[machine.name for machine in MACHINES])
    parser.add_argument("--presets", nargs="+", choices=PAPER)
    parser.add_argument("--programs", nargs="+", choices=(STEP, SAMPLER), default=(STEP, SAMPLER))
    given = parser.parse_args()
    machines = [machine for machine in MACHINES if not given.machines or machine.name in given.machines]
    compiled = any(machine.topology for machine in machines)
    table = Table(given.csv, ("libtpu",) if compiled else ())
    chosen = sorted(given.presets or PAPER, key=lambda name: profile(preset(name)).parameters)
    for machine in machines:
        for name in chosen:
            if STEP in given.programs:
                fit(name, machine, table)
        if SAMPLER in given.programs and machine.topology is not None:
            for name in chosen:
                sample(name, machine, table)
    table.sort()


if __name__ == "__main__":
    main()
