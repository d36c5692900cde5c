"""Run in a process of its own, with eight devices: states split over meshes, against one device. Prints JSON."""

import dataclasses
import json
import re
from typing import Any

import equinox as eqx
import jax
import numpy as np

from elt_zoo.data import Batch
from elt_zoo.families import preset
from elt_zoo.objectives import ILSDLoss
from elt_zoo.sharding import Gather, Layout, make_mesh, shard_batch
from elt_zoo.training import OptimizerConfig, TrainState, make_optimizer, make_train_step

STEPS = 15
OPTIMIZER = make_optimizer(OptimizerConfig(learning_rate=3e-3, total_steps=STEPS))


def config(loops):
    # Wide enough that what is small, and therefore whole on every device, is little beside the rest.
    return dataclasses.replace(preset("digits-dit"), dim=128, num_layers=1, num_heads=4, max_loops=loops)


def start():
    build, train = jax.random.split(jax.random.key(0))
    return TrainState.create(config(2).build(key=build), OPTIMIZER, key=train)


def batch(index):
    example, noise = config(2).example, np.random.default_rng(index)
    return Batch(noise.standard_normal((16, *example.shape)).astype(example.dtype), noise.integers(0, 10, 16, np.int32))


def compiled(layout, loops=2) -> tuple[Any, TrainState]:
    """The program of one training step, and its first state."""
    loss = config(loops).loss()
    objective = ILSDLoss(loss, loss.distillation, max_loops=loops)
    step = make_train_step(OPTIMIZER, objective, config(loops).corruption(), total_steps=STEPS, layout=layout)
    state = start() if layout is None else layout.create(start)
    first = batch(0) if layout is None else shard_batch(batch(0), layout.mesh)
    lowered: Any = eqx.filter_jit(step)
    return lowered.lower(state, first).compile(), state


def losses(layout, program, state):
    found = []
    for index in range(STEPS):
        state, metrics = program(state, batch(index) if layout is None else shard_batch(batch(index), layout.mesh))
        found.append(float(metrics["loss"]))
    return found


def share(state):
    """The share of a state that one device keeps."""
    arrays = jax.tree.leaves(eqx.filter(state, eqx.is_array))
    return sum(leaf.addressable_shards[0].data.nbytes for leaf in arrays) / sum(leaf.nbytes for leaf in arrays)


def all_gathers(program):
    """All-gathers that a program executes: those inside loops count as often as the loop runs."""
    blocks, name = {}, ""
    for line in program.compiled.as_text().splitlines():
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


def making():
    """What one device holds while a state over eight devices is made, and the largest array of the state, in bytes."""
    split = Layout(make_mesh(fsdp=8))
    arrays = eqx.filter(split.abstract(start), lambda leaf: isinstance(leaf, jax.ShapeDtypeStruct))
    shardings = jax.tree.map(lambda leaf: leaf.sharding, arrays)
    memory = jax.jit(lambda: eqx.filter(start(), eqx.is_array), out_shardings=shardings).lower().compile()
    memory = memory.memory_analysis()
    largest = max(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(arrays))
    return {"largest": largest, "working": memory.temp_size_in_bytes, "made": memory.output_size_in_bytes}


def main():
    program, state = compiled(None)
    result = {"losses": {"one": losses(None, program, state)}, "kept": {}, "gathers": {}, "working": {}}
    for data, fsdp, gather in ((2, 4, "step"), (1, 8, "step"), (1, 8, "loop")):
        layout, name = Layout(make_mesh(data, fsdp), Gather(gather)), f"{data}x{fsdp} {gather}"
        program, state = compiled(layout)
        result["kept"][name] = share(state)
        result["losses"][name] = losses(layout, program, state)
        result["gathers"][name] = all_gathers(program)
        result["working"][name] = program.compiled.memory_analysis().temp_size_in_bytes
        if fsdp == 8:
            result["gathers"][f"{name}, 8 loops"] = all_gathers(compiled(layout, 8)[0])
        if (fsdp, gather) == (8, "step"):
            result["gathers"][f"{name}, 32 loops"] = all_gathers(compiled(layout, 32)[0])
    return result | {"making": making()}


if __name__ == "__main__":
    print(json.dumps(main()))
