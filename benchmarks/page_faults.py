"""Why a batch in parts is faster: page faults of a training step on Linux, and the kernel's part of the processor time.

    python benchmarks/page_faults.py

Trains `digits-dit` at a batch of 64 for some steps, in processes that keep to one core: as it is, where the step takes
the batch in parts by itself; with the whole batch at once; and so with `GLIBC_TUNABLES=glibc.malloc.hugetlb=1`, which
asks for large pages. Writes `page-faults.csv`.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
from timing import write_csv

from elt_zoo import ILSDLoss
from elt_zoo.data import training_batches
from elt_zoo.families import preset
from elt_zoo.recipes import digits_task
from elt_zoo.training import OptimizerConfig, TrainState, fit, jit_step, make_optimizer, make_train_step

CASES: dict[str, tuple[bool, str]] = {
    "in parts, the default": (False, ""),
    "at once": (True, ""),
    "at once, large pages": (True, "glibc.malloc.hugetlb=1"),
}
"""Whether the batch is taken at once, and glibc's tunables."""
_WARM = 5


def measure(steps: int, *, at_once: bool) -> dict[str, float]:
    """Page faults a step, and the share of the processor time that the kernel takes, after some steps to warm up."""
    task = digits_task(preset("digits-dit"))
    loss, optimizer = task.config.loss(), make_optimizer(OptimizerConfig.digits(total_steps=_WARM + steps))
    objective = ILSDLoss(loss, loss.distillation, max_loops=task.config.max_loops)
    step = jit_step(
        make_train_step(
            optimizer,
            objective,
            task.config.corruption(label_drop=0.1),
            total_steps=_WARM + steps,
            accumulation=1 if at_once else None,
        )
    )
    state = TrainState.create(task.config.build(key=jax.random.key(0)), optimizer, key=jax.random.key(1))
    batches = training_batches(task.train, batch_size=64, seed=0)
    state = fit(state, step, batches, total_steps=_WARM).state
    before = resource.getrusage(resource.RUSAGE_SELF)
    fit(state, step, batches, total_steps=_WARM + steps)
    after = resource.getrusage(resource.RUSAGE_SELF)
    kernel, user = after.ru_stime - before.ru_stime, after.ru_utime - before.ru_utime
    return {
        "faults_per_step": (after.ru_minflt - before.ru_minflt) / steps,
        "kernel_share": kernel / (kernel + user),
        "processor_ms_per_step": 1e3 * (kernel + user) / steps,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--csv", type=Path, default=Path(__file__).parent / "results" / "page-faults.csv")
    parser.add_argument("--one", choices=CASES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(arguments.steps, at_once=CASES[arguments.one][0])))
        return
    rows: list[dict[str, Any]] = []
    for case, (_, tunables) in CASES.items():
        command = [sys.executable, __file__, "--one", case, "--steps", str(arguments.steps)]
        environment = os.environ | ({"GLIBC_TUNABLES": tunables} if tunables else {})
        core = {min(os.sched_getaffinity(0))}
        found = subprocess.run(
            command,
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
            check=True,
            preexec_fn=lambda core=core: os.sched_setaffinity(0, core),
        )
        rows.append({"case": case, **json.loads(found.stdout.splitlines()[-1])})
        print(rows[-1], flush=True)
    write_csv(arguments.csv, rows)


if __name__ == "__main__":
    main()
