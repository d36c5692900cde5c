"""Meshes, and states split over them."""

import functools
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec

from elt_zoo.looped import LoopedTransformer
from elt_zoo.nn import LayerOptions, PreNormLayer, Rotary
from elt_zoo.sharding import Gather, Layout, Rule, make_mesh, spec_of
from elt_zoo.sharding._mesh import arrange
from elt_zoo.training import Checkpoints, TrainState
from elt_zoo.training._gather import gather_in_loops

OTHER_PARTS = LayerOptions(rms_norm=True, qk_norm=True, swiglu=True, rotary=Rotary((2, 2)))


@pytest.fixture(scope="module")
def eight():
    """What a process with eight devices found."""
    environment = os.environ | {"JAX_NUMPY_DTYPE_PROMOTION": "standard", "JAX_NUMPY_RANK_PROMOTION": "allow"}
    environment["XLA_FLAGS"] += " --xla_force_host_platform_device_count=8"
    command = [sys.executable, str(Path(__file__).with_name("split_states.py"))]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=550)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Involuntary full rematerialization" not in done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_split_states_train_as_one_device_does(eight):
    losses = dict(eight["losses"])
    alone = losses.pop("one")
    for name, found in losses.items():
        # Sums over devices are in another order.
        np.testing.assert_allclose(found, alone, rtol=1e-5, err_msg=name)
    assert alone[-1] < 0.7 * alone[0]


@pytest.mark.slow
def test_each_device_keeps_and_makes_its_part_of_a_state(eight):
    kept, making = eight["kept"], eight["making"]
    assert kept["2x4 step"] < 1.1 / 4
    assert kept["1x8 step"] == kept["1x8 loop"] < 1.1 / 8
    # While it is made, a device holds its part, and beside it not even one large array.
    assert making["working"] < making["largest"] / 2


@pytest.mark.slow
def test_shared_layers_are_gathered_once_a_step_or_in_every_loop(eight):
    gathers, working = eight["gathers"], eight["working"]
    assert gathers["1x8 step"] == gathers["1x8 step, 8 loops"] == gathers["1x8 step, 32 loops"] > 0
    assert gathers["1x8 loop, 8 loops"] > 3 * gathers["1x8 loop"]
    assert working["1x8 loop"] < working["1x8 step"]


def test_a_state_saved_on_one_mesh_is_restored_on_others(tmp_path):
    def start():
        weights = jax.random.normal(jax.random.key(0), (64, 128))
        return TrainState.create({"weight": weights}, optax.adam(1e-3), key=jax.random.key(1))

    def same(a, b):
        if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        np.testing.assert_array_equal(a, b)

    devices = jax.devices()[:4]
    two_by_two, four = Layout(make_mesh(2, 2, devices=devices)), Layout(make_mesh(fsdp=4, devices=devices))
    whole = start()
    with Checkpoints(tmp_path / "split", {}) as checkpoints:
        checkpoints.save(two_by_two.create(start), {"next_index": 0})
        on_one, _ = checkpoints.restore(eqx.filter_eval_shape(start))
        on_four, _ = checkpoints.restore(four.abstract(start))
    with Checkpoints(tmp_path / "whole", {}) as checkpoints:
        checkpoints.save(on_one, {"next_index": 0})
        split_again, _ = checkpoints.restore(two_by_two.abstract(start))
    for restored in (on_one, on_four, split_again):
        jax.tree.map(same, restored, whole)
    assert on_one.model["weight"].sharding.device_set == {jax.devices()[0]}
    assert on_four.ema["weight"].addressable_shards[0].data.shape == (64, 32)
    assert split_again.ema["weight"].addressable_shards[0].data.shape == (64, 64)


@pytest.mark.parametrize("options", [LayerOptions(), OTHER_PARTS], ids=["plain", "other parts"])
def test_layers_that_are_gathered_in_loops_compute_the_same(options):
    layout = Layout(make_mesh(fsdp=4, devices=jax.devices()[:4]), Gather.LOOP)
    layer = functools.partial(PreNormLayer, options=options)
    trunk = LoopedTransformer.create(32, 1, 2, layer=layer, prelude=1, key=jax.random.key(0))
    x = jax.random.normal(jax.random.key(1), (4, 32))

    @eqx.filter_jit
    @eqx.filter_value_and_grad
    def split_loss(trunk):
        return jnp.sum(jnp.sin(gather_in_loops(trunk, layout)(x, loops=3)))

    @eqx.filter_jit
    @eqx.filter_value_and_grad
    def loss(trunk):
        return jnp.sum(jnp.sin(trunk(x, loops=3)))

    for split, whole in zip(
        jax.tree.leaves(split_loss(layout.create(lambda trunk: trunk, trunk))),
        jax.tree.leaves(loss(trunk)),
        strict=True,
    ):
        np.testing.assert_allclose(split, whole, rtol=1e-4, atol=1e-5)


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
        Layout(make_mesh(fsdp=4, devices=devices)).abstract(lambda: {"weight": jnp.zeros((63, 65))})


@dataclass(frozen=True)
class Device:
    """A device of a machine that is not here, as JAX describes it."""

    id: int
    slice_index: int
    platform = device_kind = "gpu"


def test_fsdp_stays_inside_machines_as_far_as_it_fits():
    devices = [Device(index, index // 4) for index in (*range(4, 8), *range(4))]  # two machines, not in order
    ids = np.vectorize(lambda device: device.id)
    np.testing.assert_array_equal(ids(arrange(devices, 2, 4)), [[0, 1, 2, 3], [4, 5, 6, 7]])
    np.testing.assert_array_equal(ids(arrange(devices, 4, 2)), [[0, 1], [2, 3], [4, 5], [6, 7]])
    np.testing.assert_array_equal(ids(arrange(devices, 1, 8)), [range(8)])
    devices = [Device(index, index // 3) for index in range(6)]
    with pytest.raises(ValueError, match="data=3, fsdp=2 does not fit 2 groups of 3 devices"):
        arrange(devices, 3, 2)
