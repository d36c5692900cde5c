"""What compiled programs cost, on the devices that the tests have and, where libtpu is, on TPUs that they lack."""

import dataclasses
import functools
import sys
import types

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from elt_zoo import Remat
from elt_zoo._platform import platform, traced_for
from elt_zoo.families import DiTConfig, MaskGITConfig, preset
from elt_zoo.nn import SelfAttention
from elt_zoo.profile import (
    LOCAL,
    Collective,
    CompiledCost,
    DoesNotFit,
    compile_sampler,
    compile_step,
    profile,
    topology_devices,
)
from elt_zoo.profile._collectives import collectives_of, is_collective
from elt_zoo.profile._compile import memory_limits, trace_step
from elt_zoo.profile._hlo import ENTRY, computations, executed, trips, type_bytes
from elt_zoo.sharding import Gather, Layout, make_mesh

MASKED = MaskGITConfig(
    dim=64, num_layers=1, max_loops=3, num_heads=4, num_classes=10, grid=(4, 4), codebook_size=64, dropout=0.1
)
DIFFUSION = DiTConfig(dim=64, num_layers=2, max_loops=3, num_heads=4, num_classes=10, shape=(8, 8, 1), patch_size=2)


def layout(data, fsdp, gather="step"):
    return Layout(make_mesh(data, fsdp, devices=jax.devices()[: data * fsdp]), Gather(gather))


@functools.cache
def step_of(config, data, fsdp, gather="step", **options):
    return compile_step(config, layout(data, fsdp, gather), batch=16, **options)


def sizes_of(config):
    """Bytes of the parameters and of a training state: parameters, average, two moments; counters and key."""
    model = eqx.filter_eval_shape(config.build, key=jax.random.key(0))
    parameters = sum(4 * leaf.size for leaf in jax.tree.leaves(model))
    return parameters, 4 * parameters


# What a program says


TPU_LOOP = """\
HloModule jit_f, is_scheduled=true

%sum (a.1: f32[], b.1: f32[]) -> f32[] {
  %a.1 = f32[]{:T(128)} parameter(0)
  %b.1 = f32[]{:T(128)} parameter(1)
  ROOT %add.1 = f32[]{:T(128)} add(%a.1, %b.1)
}

%all-reduce-scatter.7 (param.1: f32[8,128]) -> f32[2,128] {
  %param.1 = f32[8,128]{1,0:T(8,128)} parameter(0)
  %all-reduce.1 = f32[8,128]{1,0:T(8,128)} all-reduce(%param.1), channel_id=1, to_apply=%sum
  ROOT %slice.1 = f32[2,128]{1,0:T(2,128)} slice(%all-reduce.1), slice={[0:2], [0:128]}
}

%gathering (param.2: bf16[2,128]) -> bf16[8,128] {
  %param.2 = bf16[2,128]{1,0:T(2,128)(2,1)} parameter(0)
  ROOT %all-gather.1 = bf16[8,128]{1,0:T(8,128)(2,1)} all-gather(%param.2), dimensions={0}
}

%body (carry.1: (s32[], f32[8,128])) -> (s32[], f32[8,128]) {
  %carry.1 = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)S(1)}, /*index=2*/bf16[2,128]{1,0}) parameter(0)
  %whole.1 = f32[8,128]{1,0:T(8,128)} get-tuple-element(%carry.1), index=1
  %part.1 = bf16[2,128]{1,0} get-tuple-element(%carry.1), index=2
  %fusion.1 = f32[2,128]{1,0:T(2,128)} fusion(%whole.1), kind=kCustom, calls=%all-reduce-scatter.7
  %start.1 = ((bf16[2,128]{1,0}), bf16[8,128]{1,0}) async-start(%part.1), calls=%gathering
  %done.1 = bf16[8,128]{1,0} async-done(%start.1), calls=%gathering
  ROOT %tuple.1 = (s32[], f32[8,128]) tuple(%carry.1, %done.1)
}

%condition (carry.2: (s32[], f32[8,128])) -> pred[] {
  %limit.1 = s32[]{:T(128)} constant(5)
  %carry.2 = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)S(1)}) parameter(0)
  %index.1 = s32[]{:T(128)} get-tuple-element(%carry.2), index=0
  ROOT %lt.1 = pred[]{:T(512)} compare(%index.1, %limit.1), direction=LT
}

ENTRY %main.1 (x: f32[8,128]) -> f32[8,128] {
  %x = f32[8,128]{1,0:T(8,128)} parameter(0)
  %start.2 = (f32[8,128]{1,0}, f32[32,128]{1,0}) all-gather-start(%x), dimensions={0}
  %done.2 = f32[32,128]{1,0} all-gather-done(%start.2)
  %while.1 = (s32[], f32[8,128]) while(%x), condition=%condition, body=%body
  ROOT %result.1 = f32[8,128]{1,0:T(8,128)} get-tuple-element(%while.1), index=1
}
"""


def test_collectives_are_counted_as_often_as_their_loop_runs():
    gathered = 5 * (8 * 128 * 2) + 32 * 128 * 4
    assert collectives_of(TPU_LOOP) == (
        Collective(kind="all-gather", count=6, arrays=6, size=gathered),
        Collective(kind="reduce-scatter", count=5, arrays=5, size=5 * 8 * 128 * 4),
    )
    # A loop that runs until something holds runs at least once, which is all that can be said.
    unknown = TPU_LOOP.replace("direction=LT", "direction=NE")
    program = computations(unknown)
    assert trips(program, next(each for each in program[ENTRY] if each.operation == "while")) is None
    assert collectives_of(unknown)[1].count == 1


@pytest.mark.parametrize(
    ("type_", "size"),
    [
        ("f32[]{:T(128)}", 4),
        ("bf16[3,5]{1,0:T(8,128)(2,1)S(1)}", 30),
        ("(pred[7]{0}, s32[2,2]{1,0:T(2,128)}, u8[3]{0})", 7 + 16 + 3),
        ("f8e4m3fn[4]{0}", 4),
        ("s4[4]{0}", 2),
        ("token[]", 0),
    ],
)
def test_a_type_has_the_bytes_of_its_arrays(type_, size):
    assert type_bytes(type_) == size


def test_the_programs_of_this_machine_are_read_as_well():
    mesh = layout(4, 1).mesh
    split, whole = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in ((("data", "fsdp"),), ()))

    def body(x, _):
        # The sum over the split axis is needed by all in every turn.
        return x * jax.lax.with_sharding_constraint(jnp.sin(jnp.sum(x, axis=0)), whole)[None], None

    program = jax.jit(lambda x: jax.lax.scan(body, x, length=6)[0], in_shardings=split, out_shardings=split)
    text = program.lower(jax.ShapeDtypeStruct((8, 32), jnp.float32)).compile().as_text()
    assert text and collectives_of(text) == (Collective(kind="all-reduce", count=6, arrays=6, size=6 * 32 * 4),)


# Training steps


@pytest.mark.parametrize("config", [MASKED, DIFFUSION])
def test_a_data_parallel_step_sums_its_gradient_and_moves_nothing_else(config):
    cost, (parameters, state) = step_of(config, 4, 1), sizes_of(config)
    assert (cost.chips, cost.device, cost.batch) == (4, "cpu", 16)
    batch = 4 * (config.example.size * config.example.dtype.itemsize + 4)
    # Beside parameters, average and moments there are a few counters and the key.
    assert 0 <= cost.argument_bytes - state - batch < 64
    assert cost.temporary_bytes > parameters  # the gradient, at least
    (reduced,) = cost.collectives
    assert reduced.kind == "all-reduce"
    # The compiler for CPUs sums that of looped layers after every loop.
    assert parameters <= reduced.size < 1.5 * config.max_loops * parameters


@pytest.mark.slow
def test_a_split_state_takes_its_part_and_gathers():
    for gather in ("step", "loop"):
        cost, (parameters, state) = step_of(DIFFUSION, 1, 4, gather), sizes_of(DIFFUSION)
        assert 0.25 <= cost.argument_bytes / state < 0.30  # small arrays are whole everywhere
        gathered = {each.kind: each for each in cost.collectives}["all-gather"]
        assert gathered.size > 0.9 * parameters
    once, each_loop = (
        {each.kind: each for each in step_of(DIFFUSION, 1, 4, gather).collectives}["all-gather"]
        for gather in ("step", "loop")
    )
    assert each_loop.count > once.count and each_loop.size > 2 * once.size


def test_one_device_moves_nothing():
    cost = compile_step(MASKED, batch=4)
    assert cost.chips == 1 and cost.collectives == ()
    assert cost.total_bytes == cost.argument_bytes + cost.temporary_bytes + cost.output_bytes + cost.code_bytes


def test_nothing_is_made():
    live = sum(array.nbytes for array in jax.live_arrays())
    compile_step(DIFFUSION, layout(2, 1), batch=4)
    compile_sampler(DIFFUSION, layout(2, 1).mesh, batch=4)
    assert sum(array.nbytes for array in jax.live_arrays()) - live < 1024


@pytest.mark.slow
def test_operations_are_those_of_three_passes_and_of_what_is_repeated():
    config = dataclasses.replace(DIFFUSION, dim=128)
    costs = profile(config)
    plain, layer = (step_of(dataclasses.replace(config, remat=remat), 4, 1) for remat in (Remat.NONE, Remat.LAYER))
    # The inputs have no gradient: neither the patches nor what is made of the time and the label.
    np.testing.assert_allclose(plain.flops, 4 * costs.training_flops(exits=2), rtol=0.02)
    again = 4 * 2 * config.num_layers * config.max_loops * costs.layer.macs
    # All of each layer is repeated, but the last product of its MLP and that of attention, whose results none needs.
    assert 0.8 * again < layer.flops - plain.flops <= again
    assert step_of(config, 4, 1, accumulation=2).flops == step_of(config, 4, 1).flops


@pytest.mark.slow
def test_less_memory_for_rematerialisation_and_parts():
    config = dataclasses.replace(DIFFUSION, max_loops=6)
    none, layer = (step_of(dataclasses.replace(config, remat=remat), 1, 1) for remat in (Remat.NONE, Remat.LAYER))
    assert layer.temporary_bytes < 0.6 * none.temporary_bytes
    parts = step_of(dataclasses.replace(config, remat=Remat.NONE), 1, 1, accumulation=4)
    assert parts.temporary_bytes < 0.6 * none.temporary_bytes
    assert layer.argument_bytes == none.argument_bytes == parts.argument_bytes


def before_the_model(text):
    """The collectives that a product of the forward pass waits for, or that lie between two such products."""
    program = computations(text)

    def inside(instruction):
        return [instruction, *(each for name in instruction.called for each, _, _ in executed(program, name))]

    def is_product_of_the_forward_pass(instruction):
        if instruction.operation != "dot":
            return False
        made_by = instruction.rest.partition('op_name="')[2].partition('"')[0]
        return "jvp(" in made_by and "transpose(" not in made_by

    waited_for, found, products, collectives = {}, set(), 0, 0
    for instruction in program[ENTRY]:
        parts = inside(instruction)
        waited = set().union(*(waited_for.get(name, set()) for name in instruction.operands))
        waited |= {each.name for each in parts if is_collective(each)}
        waited_for[instruction.name] = waited
        collectives += any(map(is_collective, parts))
        if any(map(is_product_of_the_forward_pass, parts)):
            products += 1
            found |= waited
    assert products and collectives
    return found


@pytest.mark.parametrize("config", [MASKED, DIFFUSION])
def test_a_data_parallel_step_has_no_collective_before_the_model(config):
    def text(layout):
        return trace_step(config, layout, batch=16).lower().compile().as_text()

    assert before_the_model(text(layout(4, 1))) == set()
    # A split state has: its parameters are gathered.
    assert before_the_model(text(layout(1, 4)))


# Samplers


@pytest.mark.parametrize("config", [MASKED, DIFFUSION])
def test_a_sampler_holds_the_model_and_shares_the_batch(config):
    cost, (parameters, _) = compile_sampler(config, layout(4, 1).mesh, batch=8), sizes_of(config)
    assert cost.collectives == () and cost.output_bytes == 2 * config.example.size * config.example.dtype.itemsize
    assert 0 <= cost.argument_bytes - parameters < 64
    half = compile_sampler(config, layout(4, 1).mesh, batch=8, precision="bfloat16")
    assert 0 <= half.argument_bytes - parameters // 2 < 64
    settings = config.sampler_settings()
    steps, branches = settings.steps, 1 if settings.guidance == 1.0 else 2
    assert cost.flops == 2 * profile(config, steps=steps, guidance=branches == 2).sample_flops
    fewer = compile_sampler(config, batch=1, settings=dataclasses.replace(settings, steps=2))
    assert fewer.flops == cost.flops / 2 * 2 / steps


# For machines that are elsewhere


def test_attention_takes_the_form_of_the_machine_that_it_is_traced_for():
    attention, x = SelfAttention(16, 2, key=jax.random.key(0)), jax.random.normal(jax.random.key(1), (5, 16))
    here = jax.make_jaxpr(attention)(x)
    with traced_for([types.SimpleNamespace(platform="tpu")]):
        assert platform() == "tpu"
        there, values = jax.make_jaxpr(attention)(x), attention(x)
    assert platform() == "cpu" and str(here) != str(there)
    np.testing.assert_allclose(values, attention(x), rtol=1e-5, atol=1e-6)


def test_a_program_that_does_not_fit_says_how_far():
    early = (
        "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (17.06G) exceeds "
        "available HBM (15.75G)."
    )
    late = "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 512.5M of 96K hbm. Exceeded by 512M."
    limits = memory_limits(early)
    assert limits is not None and limits == (int(17.06 * 2**30), int(15.75 * 2**30))
    assert memory_limits(late) == (int(512.5 * 2**20), 96 * 2**10)
    assert memory_limits("INTERNAL: something else") is None
    error = DoesNotFit("training step", *limits)
    assert "needs at least 17.06 GiB on each chip, which has 15.75 GiB. Use more chips" in str(error)


def test_what_cannot_be_compiled_is_refused_in_one_line(monkeypatch):
    for call in (
        lambda: compile_step(MASKED, layout(4, 1), batch=30),
        lambda: compile_sampler(MASKED, layout(4, 1).mesh, batch=30),
    ):
        with pytest.raises(
            ValueError, match=r"\(batch=30\)` cannot be shared by 4 device\(s\); use a positive multiple"
        ):
            call()
    with pytest.raises(ValueError, match="cannot split a batch of 16 into 3 equal parts"):
        compile_step(MASKED, layout(4, 1), batch=16, accumulation=3)
    with pytest.raises(ValueError, match="A mesh of fsdp=4 can split no parameter of this model"):
        compile_step(dataclasses.replace(MASKED, dim=5, num_heads=1, mlp_dim=7, codebook_size=9), layout(1, 4), batch=4)
    for name in ("v5e", "v5e:", "tpu:2x2", "v5e:2x2 ", "H100:8", ""):
        with pytest.raises(ValueError, match="is no topology: name a kind of TPU"):
            topology_devices(name)
    assert topology_devices(LOCAL) == jax.devices()
    monkeypatch.setitem(sys.modules, "libtpu", None)
    with pytest.raises(ImportError, match=r"needs libtpu, .* pip install 'elt_zoo\[tpu-compile\]'"):
        topology_devices("v5e:4x4")


def test_the_cost_is_a_table():
    cost = CompiledCost(
        program="training step",
        device="TPU v5 lite",
        chips=16,
        batch=512,
        argument_bytes=2**30,
        temporary_bytes=2**31,
        output_bytes=2**20,
        code_bytes=0,
        flops=4.5e12,
        collectives=(Collective(kind="all-reduce", count=7, arrays=162, size=2**28),),
        memory_bytes=2**32,
        fast=False,
        compile_seconds=20.04,
    )
    text = str(cost)
    assert "batch 512 on 16 x TPU v5 lite" in text and "3.001 GiB of 4 GiB\n" in text and "4.5 TFLOPs" in text
    assert "7, of 256 MiB in 162 array(s)" in text and text.endswith("20.0 s")
    assert cost.fits and "none" in str(dataclasses.replace(cost, collectives=()))
    small = dataclasses.replace(cost, memory_bytes=3 * 2**30)
    assert not small.fits and "3.001 GiB of 3 GiB: does not fit" in str(small)
    assert dataclasses.replace(cost, memory_bytes=None).fits is None
    assert str(dataclasses.replace(cost, fast=True)).endswith("20.0 s, with the lowest effort")


@pytest.mark.slow
@pytest.mark.optional
def test_a_tpu_that_is_not_here_is_compiled_for():
    pytest.importorskip("libtpu")
    tiny = preset("tiny-maskgit")
    mesh = make_mesh(4, 1, devices=topology_devices("v6e:2x2"))
    cost, (parameters, state) = compile_step(tiny, Layout(mesh), batch=64), sizes_of(tiny)
    assert (cost.device, cost.chips) == ("TPU v6 lite", 4)
    assert 0.9 * state < cost.argument_bytes < 1.2 * state and cost.output_bytes < 2**16
    # Compiled with little effort, it sums the gradient of the loops after every loop.
    (reduced,) = cost.collectives
    assert reduced.kind == "all-reduce" and 2 * parameters < reduced.size < 5 * parameters
    thorough = compile_step(tiny, Layout(mesh), batch=64, fast=False)
    assert parameters < thorough.collectives[0].size < 1.1 * parameters
    assert thorough.temporary_bytes < cost.temporary_bytes
    with pytest.raises(DoesNotFit, match="does not fit: it needs at least"):
        compile_sampler(dataclasses.replace(tiny, dim=4096, num_layers=8), mesh, batch=2**14)
    with pytest.raises(ValueError, match=r"There is no topology 'v9:2x2': Invalid TPU"):
        topology_devices("v9:2x2")
