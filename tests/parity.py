"""Where weights and outputs of the original networks lie, for those who have them."""

import os
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(os.environ.get("ELT_ZOO_PARITY", Path(__file__).parents[2] / "shared" / "parity"))


def fixture(name):
    """The folder of an original network and its inputs and outputs."""
    folder = ROOT / name
    if not folder.is_dir():
        pytest.skip(f"the original network's outputs are not here ({name}); point ELT_ZOO_PARITY at them")
    return folder, dict(np.load(folder / "io.npz"))


def relative_error(ours, theirs):
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    assert ours.shape == theirs.shape
    return np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)
