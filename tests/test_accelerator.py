"""The benchmark of accelerators: it measures small models on any machine, and goes on where it stopped."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "accelerator.py"


def run(folder, minutes):
    command = [sys.executable, str(SCRIPT), "--small", "--minutes", str(minutes), "--out", str(folder)]
    environment = os.environ | {"JAX_NUMPY_DTYPE_PROMOTION": "standard", "JAX_NUMPY_RANK_PROMOTION": "allow"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_small_parts_go_on_where_they_stopped(tmp_path):
    assert "left: run it again." in run(tmp_path, 1e-3)
    (file,) = tmp_path.glob("accelerator-*-small.json")
    first = json.loads(file.read_text())
    values = first["parts"]["Values"]
    assert values["digits-dit, exits, float32"]["within"] and first["environment"]
    done = {"ms a step": 1.25}
    first["parts"] |= {"Training": {"digits-dit, remat elementwise": done}}
    file.write_text(json.dumps(first))
    assert "left: run it again." in run(tmp_path, 1e-3)
    second = json.loads(file.read_text())["parts"]
    assert len(second["Values"]) > len(values) and second["Values"].items() >= values.items()
    assert second["Training"] == {"digits-dit, remat elementwise": done}
    assert "| digits-dit, remat elementwise | 1.25 |" in file.with_suffix(".md").read_text()
