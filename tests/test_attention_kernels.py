"""Which kernel computes attention, and that all compute the same: in values, and in programs for GPUs and TPUs."""

import dataclasses
import functools
import re
from collections import Counter

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from command_line import run
from jax._src.cudnn import fused_attention_stablehlo

from elt_zoo import ILSDLoss, Remat
from elt_zoo.data import Batch
from elt_zoo.families import DiTConfig, MaskGITConfig, preset
from elt_zoo.nn import AttentionDevice, AttentionKernel, SelfAttention, attention_kernel, with_attention
from elt_zoo.nn._attention import _attend_on_cpu
from elt_zoo.nn._fused_attention import attend_by_cudnn, attend_by_pallas
from elt_zoo.profile import profile
from elt_zoo.recipes import Run, TrainingOptions, digits_task, train
from elt_zoo.sharding import Layout, make_mesh
from elt_zoo.training import OptimizerConfig, Precision, TrainState, make_optimizer, make_train_step

CPU = AttentionDevice(platform="cpu")
H100 = AttentionDevice(platform="cuda", capability=(9, 0))
T4 = AttentionDevice(platform="cuda", capability=(7, 5))
TPU = AttentionDevice(platform="tpu")
POD = AttentionDevice(platform="tpu", devices=256)
# 257 tokens, as images of the paper have, and heads of 48.
MASKED = MaskGITConfig(dim=96, num_layers=2, max_loops=3, num_heads=2, num_classes=10, grid=(16, 16), codebook_size=64)
# 256 tokens and heads of 72.
DIFFUSION = DiTConfig(dim=144, num_layers=2, max_loops=2, num_heads=2, num_classes=10, shape=(32, 32, 4), patch_size=2)

# Queries and keys that are normalised and turned before they meet.
OTHER_PARTS = dataclasses.replace(DIFFUSION, rms_norm=True, qk_norm=True, swiglu=True, rotary=True)


@pytest.fixture
def run_on(monkeypatch):
    """Lets programs be traced as on another device. JAX asks the machine for its cuDNN, which no CPU has."""

    def pretend(device):
        monkeypatch.setattr(AttentionDevice, "here", classmethod(lambda cls: device))
        monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", lambda: 91100)

    return pretend


@pytest.mark.parametrize(
    "device, dtype, tokens, head_dim, kernel, padded, reason",
    [
        (CPU, "float32", 257, 64, "xla", (257, 64), "there is no fused kernel for CPUs"),
        (CPU, "bfloat16", 257, 64, "xla", (257, 64), "there is no fused kernel for CPUs"),
        (AttentionDevice(platform="rocm"), "bfloat16", 257, 64, "xla", (257, 64), "no fused kernel for ROCm"),
        (H100, "bfloat16", 256, 72, "cudnn", (256, 72), "bfloat16 on a GPU of compute capability 9.0"),
        (H100, "float16", 256, 48, "cudnn", (256, 48), "float16 on a GPU"),
        (H100, "bfloat16", 257, 48, "cudnn", (258, 48), "bfloat16"),
        (H100, "bfloat16", 65, 12, "cudnn", (66, 16), "bfloat16"),
        (H100, "bfloat16", 1, 128, "cudnn", (2, 128), "bfloat16"),
        (H100, "float32", 256, 64, "xla", (256, 64), "takes bfloat16 and float16, not float32"),
        (H100, "bfloat16", 1024, 512, "xla", (1024, 512), "heads of at most 128 numbers, not 512"),
        (T4, "float16", 256, 64, "xla", (256, 64), "compute capability 8.0, and that of this GPU is 7.5"),
        (TPU, "bfloat16", 257, 48, "pallas", (384, 48), "bfloat16 on a TPU"),
        (TPU, "bfloat16", 256, 72, "pallas", (256, 72), "bfloat16 on a TPU"),
        (TPU, "bfloat16", 255, 72, "xla", (255, 72), "padding 255 tokens to blocks of 128 would cost more"),
        (TPU, "bfloat16", 1024, 512, "xla", (1024, 512), "heads of at most 128 numbers, not 512"),
        (TPU, "float32", 257, 64, "xla", (257, 64), "used in bfloat16, not in float32"),
        (POD, "bfloat16", 257, 64, "xla", (257, 64), "cannot split the Pallas kernel over the 256 devices"),
    ],
)
def test_the_kernel_follows_from_device_dtype_and_sizes(device, dtype, tokens, head_dim, kernel, padded, reason):
    choice = attention_kernel(device, dtype, tokens, head_dim)
    assert choice.kernel == kernel and (choice.padded_tokens, choice.padded_head_dim) == padded
    assert reason in choice.reason and choice.reason in str(choice)
    assert choice.fused == (kernel != "xla")
    # What `XLA` is asked for, every device does.
    assert attention_kernel(device, dtype, tokens, head_dim, kernel=AttentionKernel.XLA).reason == "as asked"


def test_padding_is_counted_and_named():
    choice = attention_kernel(TPU, "bfloat16", 257, 64)
    assert choice.padding == pytest.approx((384 / 257) ** 2 - 1)
    assert str(choice) == "Pallas, fused (bfloat16 on a TPU; tokens 257 padded to 384)"
    assert str(attention_kernel(H100, "bfloat16", 64, 12)).endswith("; heads of 12 padded to 16)")
    assert attention_kernel(H100, "bfloat16", 64, 16).padding == 0.0


def test_a_program_that_says_how_it_is_split_has_the_pallas_kernel_on_many_devices():
    assert attention_kernel(POD, "bfloat16", 257, 64, split=True).kernel == AttentionKernel.PALLAS


def test_who_insists_gets_the_kernel_or_an_error():
    insist = functools.partial(attention_kernel, kernel=AttentionKernel.PALLAS)
    assert insist(TPU, "bfloat16", 64, 12).padded_tokens == 128
    with pytest.raises(ValueError, match="'pallas' needs a TPU, and this program runs on 'cuda'"):
        insist(H100, "bfloat16", 256, 64)
    with pytest.raises(ValueError, match="'pallas' cannot be used: XLA cannot split"):
        insist(POD, "bfloat16", 256, 64)
    with pytest.raises(ValueError, match="'cudnn' needs an NVIDIA GPU, and this program runs on 'cpu'"):
        attention_kernel(CPU, "bfloat16", 256, 64, kernel=AttentionKernel.CUDNN)
    with pytest.raises(ValueError, match="'cudnn' cannot be used: cuDNN's fused kernel takes bfloat16 and float16"):
        attention_kernel(H100, "float32", 256, 64, kernel=AttentionKernel.CUDNN)
    with pytest.raises(ValueError, match="each must be at least 1"):
        attention_kernel(CPU, "float32", 0, 64)


def test_what_jax_refuses_of_cudnn_is_the_reason(run_on, monkeypatch):
    run_on(H100)

    def missing():
        raise RuntimeError("cuDNN is not detected.")

    monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", missing)
    attention = SelfAttention(16, 2, key=jax.random.key(0))
    choice = attention.choice(5, jnp.bfloat16)
    assert choice.kernel == AttentionKernel.XLA and choice.padded_tokens == 5
    assert choice.reason == "JAX refuses cuDNN's fused kernel: cuDNN is not detected"
    with pytest.raises(ValueError, match=r"'cudnn' cannot be used: JAX refuses .* cuDNN is not detected"):
        with_attention(attention, AttentionKernel.CUDNN).choice(5, jnp.bfloat16)


def test_the_default_device_decides():
    here = AttentionDevice.here()
    assert here == AttentionDevice(platform="cpu", devices=jax.device_count())
    for default in ("cpu", jax.devices()[1]):
        with jax.default_device(default):
            assert AttentionDevice.here() == here


def test_asking_for_a_kernel_changes_neither_parameters_nor_the_original():
    model = eqx.filter_eval_shape(MASKED.build, key=jax.random.key(0))
    asked = with_attention(model, AttentionKernel.XLA)
    assert asked.trunk.layers.attention.kernel == AttentionKernel.XLA
    assert model.trunk.layers.attention.kernel == AttentionKernel.AUTO
    assert jax.tree.leaves(asked) == jax.tree.leaves(model)


def gradients(attend, heads, weight):
    def total(*heads):
        attended = jax.vmap(attend)(*heads)
        return jnp.sum(attended.astype(jnp.float32) * weight), attended

    return jax.jit(jax.grad(total, argnums=(0, 1, 2), has_aux=True))(*heads)


@pytest.mark.parametrize("dtype, tolerance", [(jnp.float32, 2e-6), (jnp.bfloat16, 2e-2)])
@pytest.mark.parametrize("tokens, head_dim", [(257, 48), (256, 72), (130, 12)])
def test_the_pallas_kernel_computes_attention(tokens, head_dim, dtype, tolerance):
    # In float32 too, which no device runs it in: there its arithmetic shows. The scale of 48 and 72 is no power of two.
    choice = attention_kernel(TPU, jnp.bfloat16, tokens, head_dim, kernel=AttentionKernel.PALLAS)
    *heads, weight = jax.random.normal(jax.random.key(0), (4, 2, tokens, 2, head_dim))
    heads = [each.astype(dtype) for each in heads]
    ours = gradients(functools.partial(attend_by_pallas, choice=choice, interpret=True), heads, weight)
    plain = gradients(_attend_on_cpu, [each.astype(jnp.float32) for each in heads], weight)
    for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(plain), strict=True):
        assert one.dtype == dtype and one.shape == other.shape
        np.testing.assert_allclose(
            one.astype(jnp.float32), other, rtol=0, atol=tolerance * float(jnp.max(jnp.abs(other)))
        )


def test_the_pallas_kernel_attends_on_each_device_in_its_own_examples():
    choice = attention_kernel(TPU, jnp.bfloat16, 257, 16)
    mesh = make_mesh(2, 2)
    heads = jax.random.normal(jax.random.key(0), (3, 4, 257, 2, 16))
    split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, ("data", "fsdp")))

    @jax.jit
    def attend(query, key, value):
        one = functools.partial(attend_by_pallas, choice=choice, mesh=mesh, interpret=True)
        return jax.vmap(one, spmd_axis_name=mesh.axis_names)(query, key, value)

    compiled = attend.lower(*jax.device_put(heads, split)).compile()
    assert not re.findall(r"all-gather|all-to-all|collective-permute", str(compiled.as_text()))
    attended = compiled(*jax.device_put(heads, split))
    np.testing.assert_allclose(attended, jax.vmap(_attend_on_cpu)(*heads), rtol=1e-5, atol=1e-5)


def written_out(query, key, value, *, scale, implementation, query_seq_lengths=None, key_value_seq_lengths=None):
    """cuDNN's part of `attend_by_cudnn`: keys are masked where lengths say so."""
    assert implementation == "cudnn" and query.shape[0] % 2 == 0 and query.shape[-1] % 8 == 0
    visible = jnp.ones(key.shape[0], bool)
    if key_value_seq_lengths is not None:
        visible = jnp.arange(key.shape[0]) < key_value_seq_lengths[0]
    scores = jnp.einsum("thd,shd->hts", query, key) * scale
    weights = jax.nn.softmax(jnp.where(visible[None, None, :], scores, -jnp.inf), axis=-1)
    return jnp.einsum("hts,shd->thd", weights, value)


@pytest.mark.parametrize("tokens, head_dim", [(257, 48), (256, 72), (65, 12)])
def test_padding_for_cudnn_changes_no_value(monkeypatch, tokens, head_dim):
    # The kernel itself runs on GPUs alone; what is around it does not.
    monkeypatch.setattr(jax.nn, "dot_product_attention", written_out)
    choice = attention_kernel(H100, jnp.bfloat16, tokens, head_dim)
    *heads, weight = jax.random.normal(jax.random.key(0), (4, 2, tokens, 2, head_dim))
    ours = gradients(functools.partial(attend_by_cudnn, choice=choice), heads, weight)
    plain = gradients(_attend_on_cpu, heads, weight)
    for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(plain), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=2e-6 * float(jnp.max(jnp.abs(other))))


def traced_step(config, *, layout=None, precision=jnp.bfloat16):
    """A whole ILSD step, traced."""
    optimizer = make_optimizer(OptimizerConfig(learning_rate=1e-4, total_steps=10))
    loss = config.loss()
    step = make_train_step(
        optimizer,
        ILSDLoss(loss, loss.distillation, max_loops=config.max_loops),
        config.corruption(),
        total_steps=10,
        precision=Precision(precision),
        layout=layout,
    )

    def start(key):
        return TrainState.create(config.build(key=key), optimizer, key=key)

    state = eqx.filter_eval_shape(start, jax.random.key(0))
    example = config.example
    batch = Batch(
        jax.ShapeDtypeStruct((4, *example.shape), example.dtype), jax.ShapeDtypeStruct((4,), jnp.dtype(jnp.int32))
    )
    if layout is not None:
        split = jax.sharding.NamedSharding(layout.mesh, jax.sharding.PartitionSpec(layout.mesh.axis_names))
        state = layout.abstract(start, jax.random.key(0))
        batch = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=split), batch)
    arrays, static = eqx.partition(state, lambda leaf: isinstance(leaf, jax.ShapeDtypeStruct))

    def one_step(arrays, batch):
        state, metrics = step(eqx.combine(arrays, static), batch)
        return eqx.filter(state, eqx.is_array), metrics

    return jax.jit(one_step).trace(arrays, batch)


def lowered_step(config, platform, **options):
    """The program of a whole ILSD step for a platform that need not be here."""
    return traced_step(config, **options).lower(lowering_platforms=(platform,)).as_text()


def calls(program):
    return Counter(re.findall(r"custom_call @(__cudnn\$\w+|tpu_custom_call)\(", program))


@pytest.mark.parametrize("config", [MASKED, DIFFUSION, OTHER_PARTS])
def test_a_training_step_for_gpus_is_fused_forward_and_backward(run_on, config):
    run_on(H100)
    attended = calls(lowered_step(config, "cuda"))
    # Two layers, once each in the body of the loop; the backward pass recomputes none of them.
    forward, backward = attended["__cudnn$fmhaSoftmax"], attended["__cudnn$fmhaSoftmaxBackward"]
    assert forward == backward == 2 * (forward // 2) > 0
    assert set(attended) == {"__cudnn$fmhaSoftmax", "__cudnn$fmhaSoftmaxBackward"}
    # Recomputing layers attends again.
    again = calls(lowered_step(dataclasses.replace(config, remat=Remat.LAYER), "cuda"))
    assert again["__cudnn$fmhaSoftmax"] == 2 * again["__cudnn$fmhaSoftmaxBackward"] > 0


@pytest.mark.parametrize("config", [MASKED, DIFFUSION, OTHER_PARTS])
def test_a_training_step_for_tpus_is_fused_forward_and_backward(run_on, config):
    run_on(TPU)
    program = lowered_step(config, "tpu")
    # One kernel forward and two backward, for queries and for keys and values.
    assert program.count("tpu_custom_call") % 3 == 0 < program.count("tpu_custom_call")
    recomputed = lowered_step(dataclasses.replace(config, remat=Remat.LAYER), "tpu")
    assert recomputed.count("tpu_custom_call") == program.count("tpu_custom_call") // 3 * 4


def test_a_step_split_over_devices_is_fused_too(run_on):
    layout = Layout(make_mesh(2, 2))
    run_on(dataclasses.replace(TPU, devices=4))
    assert "tpu_custom_call" in lowered_step(MASKED, "tpu", layout=layout)
    run_on(dataclasses.replace(H100, devices=4))
    # XLA splits cuDNN's kernel itself, by a rule that JAX gives it.
    assert "CustomSPMDPartitioning" in lowered_step(MASKED, "cuda", layout=layout)


@pytest.mark.parametrize("device, platform", [(H100, "cuda"), (TPU, "tpu")])
def test_float32_is_not_fused(run_on, device, platform):
    run_on(device)
    assert not calls(lowered_step(DIFFUSION, platform, precision=jnp.float32))


@pytest.mark.parametrize("remat", [Remat.NONE, Remat.ELEMENTWISE])
@pytest.mark.parametrize("device", [H100, TPU])
def test_the_memory_of_a_profile_has_no_scores_where_attention_is_fused(run_on, device, remat):
    plain = profile(MASKED, dtype=jnp.bfloat16)
    run_on(device)
    fused = profile(MASKED, dtype=jnp.bfloat16)
    assert plain.attention is not None and fused.attention is not None and fused.attention.fused
    assert str(fused.attention) in str(fused) and str(plain.attention) in str(plain)
    scores = 2 * 257**2
    assert plain.layer.saved_bytes - fused.layer.saved_bytes > 4 * scores  # at least as wide as float32 once
    assert fused.training_activation_bytes(remat) < plain.training_activation_bytes(remat)
    # What padding adds is beside the model's own operations.
    assert (fused.layer.macs, fused.forward_macs) == (plain.layer.macs, plain.forward_macs)
    padded = fused.attention.padded_tokens
    extra = 2 * 96 * (padded**2 - 257**2) * fused.effective_depth
    assert fused.padding_share == pytest.approx(extra / fused.forward_macs) and plain.padding_share == 0.0
    # On paper: the products of all linear maps, the output of attention and its log-sums.
    linear = 2 * 257 * (3 + 1 + 4 + 1) * 96
    assert fused.layer.product_bytes == linear + padded * (96 * 2 + 2 * 4)


def test_the_memory_of_a_split_step_is_that_of_the_split_kernel(run_on):
    run_on(dataclasses.replace(TPU, devices=4))
    alone = profile(MASKED, dtype=jnp.bfloat16).attention
    split = profile(MASKED, dtype=jnp.bfloat16, mesh=make_mesh(2, 2))
    assert alone is not None and alone.kernel == AttentionKernel.XLA
    assert split.attention is not None and split.attention.kernel == AttentionKernel.PALLAS
    run_on(TPU)
    one = profile(MASKED, dtype=jnp.bfloat16)
    assert abs(one.layer.saved_bytes - split.layer.saved_bytes) < 100  # a scalar or two
    assert dataclasses.replace(split.layer, saved_bytes=one.layer.saved_bytes) == one.layer


def test_a_profile_of_a_kernel_that_is_not_here_is_refused():
    with pytest.raises(ValueError, match="'cudnn' needs an NVIDIA GPU"):
        profile(MASKED, dtype=jnp.bfloat16, attention=AttentionKernel.CUDNN)


def test_a_run_says_which_kernel_it_has_and_refuses_one_that_is_not_here(run_on, tmp_path):
    task = digits_task(dataclasses.replace(preset("digits-maskgit"), dim=32))
    options = TrainingOptions(out=tmp_path, precision="bfloat16", compare=False)
    experiment = Run.of(options, task)
    assert (
        experiment.computing == "Computing in bfloat16 on 4 × cpu; attention: XLA (there is no fused kernel for CPUs)"
    )
    run_on(H100)
    assert "attention: cuDNN, fused (bfloat16 on a GPU" in experiment.computing
    run_on(CPU)
    asked = dataclasses.replace(options, attention=AttentionKernel.PALLAS)
    with pytest.raises(ValueError, match="'pallas' needs a TPU, and this program runs on 'cpu'"):
        train(Run.of(asked, task))
    assert not list(tmp_path.iterdir())
    # A run goes on where another kernel is at hand.
    assert Run.of(asked, task).config("ilsd") == experiment.config("ilsd")


def test_the_commands_say_which_kernel_there_is():
    finished = run("profile", "--preset", "digits-maskgit", "--precision", "bfloat16")
    assert "attention                                XLA (there is no fused kernel for CPUs)" in finished.output
    refused = run("profile", "--attention", "pallas", check=False)
    assert refused.code == 2 and refused.errors.count("\n") == 1
    assert refused.errors.startswith(
        "error: The attention kernel 'pallas' needs a TPU, and this program runs on 'cpu'."
    )


def of_bfloat16(jaxpr):
    """The primitives of a program and of those inside it that take bfloat16."""
    found = set()
    for equation in jaxpr.eqns:
        if any(getattr(variable.aval, "dtype", None) == jnp.bfloat16 for variable in equation.invars):
            found.add(equation.primitive.name)
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda leaf: hasattr(leaf, "eqns")):
            inner = getattr(inner, "jaxpr", inner)
            found |= of_bfloat16(inner) if hasattr(inner, "eqns") else set()
    return found


@pytest.mark.parametrize("config", [MASKED, DIFFUSION, OTHER_PARTS])
def test_softmax_norms_losses_and_the_average_are_float32_in_bfloat16(config):
    program = traced_step(config).jaxpr
    taken = of_bfloat16(program.jaxpr)
    # Activations compute in bfloat16 as the products do. A softmax, a norm or a loss would take one of the others.
    assert {"dot_general", "logistic" if config.swiglu else "tanh"} <= taken
    assert not taken & {"exp", "exp2", "log", "log1p", "rsqrt", "sqrt", "div", "reduce_max", "erf", "logsumexp", "pow"}
    # The state, with the average of the parameters, its gradient's norm and the losses.
    results = [
        variable.aval.dtype for variable in program.jaxpr.outvars if jnp.issubdtype(variable.aval.dtype, jnp.floating)
    ]
    assert set(results) == {jnp.dtype("float32")}
