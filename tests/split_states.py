"""Run in a process of its own, with eight devices: states split over a mesh, against one device. Prints JSON."""

import dataclasses
import json
import math
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import numpy as np

from elt_zoo.data import Batch
from elt_zoo.families import preset
from elt_zoo.objectives import ILSDLoss
from elt_zoo.sharding import Gather, Layout, make_mesh, shard_batch
from elt_zoo.training import Checkpoints, OptimizerConfig, TrainState, jit_step, make_optimizer, make_train_step

STEPS = 6
OPTIMIZER = make_optimizer(OptimizerConfig(learning_rate=1e-3, total_steps=20))


def config(loops):
    return dataclasses.replace(preset("digits-dit"), dim=128, num_layers=2, num_heads=4, max_loops=loops)


def start(loops):
    build, train = jax.random.split(jax.random.key(0))
    return TrainState.create(config(loops).build(key=build), OPTIMIZER, key=train)


def step_of(loops, layout):
    loss = config(loops).loss()
    objective = ILSDLoss(loss, loss.distillation, max_loops=loops)
    return make_train_step(OPTIMIZER, objective, config(loops).corruption(), total_steps=20, layout=layout)


def batch(index):
    example, noise = config(2).example, np.random.default_rng(index)
    return Batch(noise.standard_normal((16, *example.shape)).astype(example.dtype), noise.integers(0, 10, 16, np.int32))


def arrays(state):
    return jax.tree.leaves(eqx.filter(state, eqx.is_array))


def go_on(state, layout, first, last):
    step, losses = jit_step(step_of(2, layout)), []
    for index in range(first, last):
        state, metrics = step(state, batch(index) if layout is None else shard_batch(batch(index), layout.mesh))
        losses.append(float(metrics["loss"]))
    return state, losses


def all_gathers(loops, gather):
    """All-gathers that one step executes: those inside loops count as often as the loop runs."""
    layout = Layout(make_mesh(fsdp=8), gather)
    program: Any = eqx.filter_jit(step_of(loops, layout))
    lowered = program.lower(layout.create(lambda: start(loops)), shard_batch(batch(0), layout.mesh))
    text = lowered.compile().compiled.as_text()
    blocks, name = {}, ""
    for line in text.splitlines():
        opened = re.match(r"(ENTRY )?%?([\w.\-]+) .*\{$", line)
        if opened:
            name = "ENTRY" if opened[1] else opened[2]
            blocks[name] = []
        elif line.startswith("  "):
            blocks[name].append(line)

    def count(name):
        total = 0
        for line in blocks[name]:
            total += len(re.findall(r" all-gather(?:-start)?\(", line))
            inner = re.search(r" while\(.*body=%?([\w.\-]+)", line)
            if inner:
                trips = re.search(r'known_trip_count":\{"n":"(\d+)"', line)
                total += count(inner[1]) * (int(trips[1]) if trips else 1)
            else:
                total += sum(count(called) for called in re.findall(r"(?:to_apply|calls)=%?([\w.\-]+)", line))
        return total

    return count("ENTRY")


def states():
    layouts = {"one": None}
    layouts |= {f"{data}x{fsdp}": Layout(make_mesh(data, fsdp)) for data, fsdp in ((8, 1), (2, 4), (1, 8))}
    layouts["loop"] = Layout(make_mesh(fsdp=8), Gather.LOOP)
    losses, kept, whole = {}, {}, 0
    for name, layout in layouts.items():
        state = start(2) if layout is None else layout.create(lambda: start(2))
        whole = sum(leaf.nbytes for leaf in arrays(state))
        part = sum(leaf.addressable_shards[0].data.nbytes for leaf in arrays(state))
        kept[name] = part / whole
        losses[name] = go_on(state, layout, 0, STEPS)[1]

    with tempfile.TemporaryDirectory() as folder:
        with Checkpoints(Path(folder) / "run", {}) as checkpoints:
            state, _ = go_on(layouts["2x4"].create(lambda: start(2)), layouts["2x4"], 0, 3)
            checkpoints.save(state, None)
            abstract = eqx.filter_eval_shape(lambda: start(2))
            restored = {}
            for name in ("one", "1x8"):
                layout = layouts[name]
                again, _ = checkpoints.restore(abstract if layout is None else layout.abstract(abstract))
                restored[name] = go_on(again, layout, 3, STEPS)[1]
                restored[f"{name} kept"] = sum(x.addressable_shards[0].data.nbytes for x in arrays(again)) / whole

    split = layouts["1x8"]
    made = jax.jit(
        lambda: eqx.filter(start(2), eqx.is_array),
        out_shardings=split.shardings(
            eqx.filter(eqx.filter_eval_shape(lambda: start(2)), lambda x: hasattr(x, "dtype"))
        ),
    )
    text = made.lower().compile().as_text() or ""
    largest = max(math.prod(leaf.shape) for leaf in arrays(start(2)))
    shapes = {math.prod(map(int, found.split(","))) for found in re.findall(r"f32\[([\d,]+)\]", text)}
    return {"losses": losses, "kept": kept, "restored": restored, "whole": largest, "made": max(shapes)}


def gathers():
    return {f"{gather} {loops}": all_gathers(loops, gather) for gather in Gather for loops in (2, 32)}


if __name__ == "__main__":
    print(json.dumps({"states": states, "gathers": gathers}[sys.argv[1]]()))
