"""Loading a DiT-XL/2 file of 675 million parameters (2.7 GB, random, written here), beside reading its bytes.

    python benchmarks/loading.py --csv loading.csv

Requirements: at most 1.5 times the time of reading the file, and at most 1.3 times the file as peak memory. Each
load runs in a process of its own, which has imported everything before the clock starts. Both sides find the file in
the operating system's cache.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

from timing import spread, write_csv

from elt_zoo.profile import environment

_READ = """
import sys, time
from pathlib import Path
started = time.perf_counter()
content = Path(sys.argv[1]).read_bytes()
print(time.perf_counter() - started, len(content))
"""

_LOAD = """
import re, sys, time, warnings
from pathlib import Path
import jax
from elt_zoo.pretrained import load_dit
warnings.simplefilter("ignore")
jax.devices()

def peak():
    # Linux; `getrusage` would begin with the peak of the process that started this one.
    return 1024 * int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])

before = peak()
started = time.perf_counter()
model = load_dit(sys.argv[1]).model
jax.block_until_ready(jax.tree.leaves(model))
seconds = time.perf_counter() - started
print(seconds, peak() - before)
"""


def write_file(path: Path) -> None:
    """A file of random weights under the official names."""
    import equinox as eqx
    import jax
    import numpy as np
    from safetensors.numpy import save_file

    from elt_zoo.families import DiTConfig, preset
    from elt_zoo.nn import sincos_positions
    from elt_zoo.pretrained import dit_names

    config = preset("dit-XL-2")
    assert isinstance(config, DiTConfig)
    leaves, _ = jax.tree.flatten_with_path(eqx.filter_eval_shape(config.build, key=jax.random.key(0)))
    shapes = {".".join(str(entry.name) for entry in at): leaf.shape for at, leaf in leaves if hasattr(leaf, "shape")}
    generator = np.random.default_rng(0)
    tensors = {"pos_embed": sincos_positions((16, 16), config.dim)[None]}
    for row in dit_names(config):
        region = np.broadcast_to(np.zeros((), np.int8), shapes[row.target])[row.region].shape
        tensors[row.source] = 0.02 * generator.standard_normal(row.source_shape(region), np.float32)
    save_file(tensors, path)


def run(program: str, path: Path) -> tuple[float, float]:
    """Seconds and peak bytes that a program reports."""
    output = subprocess.run([sys.executable, "-c", program, path], check=True, capture_output=True, text=True).stdout
    seconds, peak = output.split()[-2:]
    return float(seconds), float(peak)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--csv", type=Path, help="also write the table here")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "DiT-XL-2.safetensors"
        write_file(path)
        size = path.stat().st_size
        print(f"{environment()}; a file of {size / 1e9:.2f} GB, median and quartiles of {arguments.rounds} rounds")
        run(_READ, path)
        run(_LOAD, path)
        pairs = []
        for index in range(arguments.rounds):
            order = (_LOAD, _READ) if index % 2 else (_READ, _LOAD)
            results = {program: run(program, path) for program in order}
            pairs.append((*results[_LOAD], results[_READ][0]))
    row = {
        "case": "DiT-XL/2, safetensors, float32",
        "rounds": arguments.rounds,
        "ours_ms": 1e3 * statistics.median(load for load, _, _ in pairs),
        "baseline_ms": 1e3 * statistics.median(read for _, _, read in pairs),
        **spread([load / read for load, _, read in pairs]),
        "peak_memory_ratio": max(peak for _, peak, _ in pairs) / size,
    }
    print(json.dumps(row, indent=2))
    write_csv(arguments.csv, [row])


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main()
