"""The campaign itself, with counts so small that it only shows that it runs. Its other parts take minutes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

PARTS = {
    "kill": (2, ["--only", "single files", "run.json", "shards"]),
    "mutate": (12, ["--only", "npz", "torch zip", "tokenizer", "tar"]),
}


@pytest.mark.slow
def test_its_short_parts_run_and_find_no_fault(tmp_path):
    here = Path(__file__).parent
    search = os.pathsep.join([str(here.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("XLA_", "JAX_"))}
    environment |= {"PYTHONPATH": search, "TMPDIR": str(tmp_path)}
    for part, (count, options) in PARTS.items():
        command = [sys.executable, "-W", "ignore", str(here / "campaign.py"), part, "--count", str(count), *options]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        assert f"{part}, count {count}, seed 0" in done.stdout
    assert list(tmp_path.iterdir()) == []
