"""Meshes, and states split over them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from elt_zoo.sharding import Layout, Rule, make_mesh, spec_of


def in_eight_devices(what):
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    environment["JAX_NUMPY_DTYPE_PROMOTION"], environment["JAX_NUMPY_RANK_PROMOTION"] = "standard", "allow"
    command = [sys.executable, str(Path(__file__).with_name("split_states.py")), what]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=550)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_split_states_train_as_one_device_does_and_take_an_eighth():
    found = in_eight_devices("states")
    alone = found["losses"].pop("one")
    for name, losses in found["losses"].items():
        # Sums over devices are in another order.
        np.testing.assert_allclose(losses, alone, rtol=1e-4, err_msg=name)
    assert found["kept"]["8x1"] == 1.0 and found["kept"]["2x4"] < 1.1 / 4
    assert found["kept"]["1x8"] < 1.1 / 8
    # Saved on 2 × 4, restored on one device and on 1 × 8.
    for name in ("one", "1x8"):
        np.testing.assert_allclose(found["restored"][name], alone[3:], rtol=1e-4, err_msg=name)
    assert found["restored"]["one kept"] == 1.0 and found["restored"]["1x8 kept"] < 1.1 / 8
    # The program that makes the state holds no array of the size of the largest parameter.
    assert found["made"] < found["whole"]


@pytest.mark.slow
def test_shared_layers_are_gathered_once_a_step_whatever_the_loops():
    found = in_eight_devices("gathers")
    assert found["step 2"] == found["step 32"] > 0
    assert found["loop 32"] > 5 * found["loop 2"] > 5 * found["step 2"]


def test_the_rules_split_hidden_axes_and_never_the_axis_of_layers():
    assert spec_of(".model.trunk.layers.mlp.up.weight", (8, 256, 64), 8) == PartitionSpec(None, "fsdp")
    assert spec_of(".ema.trunk.layers.mlp.down.weight", (8, 64, 256), 8) == PartitionSpec(None, None, "fsdp")
    assert spec_of(".head.label_embedding.weight", (1001, 64), 8) == PartitionSpec(None, "fsdp")
    assert spec_of(".trunk.layers.mine", (8, 129, 3), 8) == PartitionSpec()
    assert spec_of(".mine", (63, 64, 128), 8) == PartitionSpec(None, None, "fsdp")
    assert spec_of(".mine", (16, 16), 8) == spec_of(".mine", (), 8) == PartitionSpec()
    assert spec_of(".mine", (64, 128), 8, [Rule("mine", "mine", (-2,))]) == PartitionSpec("fsdp")


def test_wrong_meshes_are_refused():
    devices = jax.devices()[:4]
    with pytest.raises(ValueError, match=r"A mesh of data=4, fsdp=2 does not fit the 4 device\(s\) here"):
        make_mesh(4, 2, devices=devices)
    with pytest.raises(ValueError, match="sizes must be at least 1"):
        make_mesh(fsdp=0, devices=devices)
    assert dict(make_mesh(fsdp=2, devices=devices).shape) == {"data": 2, "fsdp": 2}
    with pytest.raises(ValueError, match="A mesh of fsdp=4 can split no parameter of this model"):
        Layout(make_mesh(fsdp=4, devices=devices)).shardings({"weight": jnp.zeros((63, 65))})
