import dataclasses
import re
import time
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.stages import Traced
from jaxtyping import PyTree

from .._checks import checked
from .._platform import traced_for
from ..families import ModelConfig, SamplerSettings
from ..models import CachedPredict
from ..nn import AttentionKernel
from ..objectives import AbstractObjective, ILSDLoss, VanillaLoss
from ..sharding import Layout, make_mesh
from ._collectives import Collective, collectives_of
from ._count import macs
from ._sample import sample_compute
from ._text import num_bytes, num_flops
from ._topology import device_memory

ComputeDtype = Literal["float32", "bfloat16"]

# JAX 0.11 knows levels alone, of which 9 is O0; earlier versions also the number behind them.
_LEAST_EFFORT: dict[str, Any] = (
    {"exec_time_optimization_effort": -1.0} if jax.__version_info__ < (0, 11) else {"optimization_level": 9}
)
"""XLA's shortest search for a fast program."""


class DoesNotFit(ValueError):
    """A program needs more memory than a chip has: its compiler refuses it.

    **Fields:** `needed`, `available`: bytes on one chip, as the compiler says them. It stops at the first part that
    does not fit, often the temporaries alone, so that the whole program may need more.
    """

    def __init__(self, what: str, needed: int, available: int):
        super().__init__(
            f"The {what} does not fit: it needs at least {num_bytes(needed)} on each chip, which has "
            f"{num_bytes(available)}. Use more chips, a smaller batch, accumulation, another remat, or a larger fsdp."
        )
        self.needed, self.available = needed, available


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompiledCost:
    """What a compiled program costs on each chip, as its compiler says. `str` of it is a table.

    **Fields:**

    - `program`: what was compiled; `device`: the kind of chip; `chips`: their number; `batch`: examples at a time, on
      all chips together.
    - `argument_bytes`: memory of what goes in: for a training step the state and the batch.
    - `temporary_bytes`: memory of all that is computed on the way, activations above all.
    - `output_bytes`: memory of what comes out and does not take the place of an argument. A step gives its state the
      memory of the one before; on a CPU it does not.
    - `code_bytes`: memory of the program.
    - `flops`: floating-point operations of the matrix products, two per multiply-accumulate, the whole program's over
      the number of chips. Of a training step it counts what is computed a second time as well.
    - `collectives`: the [`Collective`][elt_zoo.profile.Collective]s that move arrays between chips, by kind.
    - `memory_bytes`: what a program may use of one chip's memory; `None` where that is not known.
    - `fast`: whether it was compiled with the lowest effort; `compile_seconds`: how long that took.
    """

    program: str
    device: str
    chips: int
    batch: int
    argument_bytes: int
    temporary_bytes: int
    output_bytes: int
    code_bytes: int
    flops: float
    collectives: tuple[Collective, ...]
    memory_bytes: int | None
    fast: bool
    compile_seconds: float

    @property
    def total_bytes(self) -> int:
        """Memory of one chip, all kinds together."""
        return self.argument_bytes + self.temporary_bytes + self.output_bytes + self.code_bytes

    @property
    def fits(self) -> bool | None:
        """Whether a chip has so much memory. A compiler looks at less: that of TPUs takes a program whose temporaries
        fit by themselves.
        """
        return None if self.memory_bytes is None else self.total_bytes <= self.memory_bytes

    def __str__(self) -> str:
        rows = [
            (self.program, f"batch {self.batch} on {self.chips} x {self.device}"),
            ("memory of each chip", num_bytes(self.total_bytes) + self._said()),
            ("  arguments", num_bytes(self.argument_bytes)),
            ("  temporaries", num_bytes(self.temporary_bytes)),
            ("  further results", num_bytes(self.output_bytes)),
            ("  code", num_bytes(self.code_bytes)),
            ("matrix products, each chip", num_flops(self.flops)),
            *(
                (each.kind, f"{each.count}, of {num_bytes(each.size)} in {each.arrays} array(s)")
                for each in self.collectives
            ),
            *([] if self.collectives else [("collectives", "none")]),
            ("compiled in", f"{self.compile_seconds:.1f} s{', with the lowest effort' if self.fast else ''}"),
        ]
        width = max(len(name) for name, _ in rows)
        return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)

    def _said(self) -> str:
        if self.memory_bytes is None:
            return ""
        return f" of {num_bytes(self.memory_bytes)}{'' if self.fits else ': does not fit'}"


class ExampleBatch(NamedTuple):
    """The batch of a step that is compiled: clean examples."""

    examples: Any
    labels: Any


@checked
def compile_step(
    config: ModelConfig,
    layout: Layout | None = None,
    *,
    batch: int,
    precision: ComputeDtype = "float32",
    accumulation: int | None = None,
    objective: AbstractObjective | None = None,
    attention: AttentionKernel = AttentionKernel.AUTO,
    fast: bool = True,
) -> CompiledCost:
    """Compiles the training step of a model, as [`make_train_step`][elt_zoo.training.make_train_step] makes it with the
    optimiser of the family's paper, and reads off what it costs. Nothing is computed and no state is made.

    The step begins with clean examples. What a task adds before, such as bytes that become pixels, is not in it.

    **Arguments:**

    - `config`: the model; its `remat` and `dropout` count.
    - `layout`: how the state lies on the devices of its mesh, which may be those of
      [`topology_devices`][elt_zoo.profile.topology_devices]; default JAX's first device alone.
    - `batch`: examples of a step on all chips together, a multiple of their number and of `accumulation`.
    - `precision`: compute dtype; the state is float32.
    - `accumulation`: parts that the batch is split into; default as training does.
    - `objective`: default ILSD, and for models of one loop the plain loss.
    - `attention`: the kernel of all self-attention; default what suits the devices of the mesh.
    - `fast`: compile with XLA's lowest effort: for TPUs up to twenty times as fast, for memory that differs by a few
      percent. The gradient of looped layers may then be summed over the chips after every loop, where training
      sums it once. False compiles as training does.

    **Raises:** `ValueError` for a batch that the devices cannot share, or a mesh that the model cannot be split over;
    [`DoesNotFit`][elt_zoo.profile.DoesNotFit] if the program needs more memory than a chip has, as far as the compiler
    tells: those of TPUs do.
    """
    layout = Layout(make_mesh(devices=jax.devices()[:1])) if layout is None else layout
    _require_shared("compile_step", batch, layout.mesh)

    def trace(attention: AttentionKernel) -> Traced:
        return trace_step(
            config,
            layout,
            batch=batch,
            precision=precision,
            accumulation=accumulation,
            objective=objective,
            attention=attention,
        )

    traced = trace(attention)
    # Products are not seen inside a fused kernel: those of the plain ones are the same, without padding.
    plain = traced if _platform(layout.mesh) == "cpu" else trace(AttentionKernel.XLA)
    # Sharing the batch shares all products.
    flops = 2 * macs(plain.jaxpr.jaxpr) / layout.mesh.size
    return _compiled("training step", traced, layout.mesh, batch, flops, fast=fast)


def trace_step(
    config: ModelConfig,
    layout: Layout,
    *,
    batch: int,
    precision: ComputeDtype = "float32",
    accumulation: int | None = None,
    objective: AbstractObjective | None = None,
    attention: AttentionKernel = AttentionKernel.AUTO,
) -> Traced:
    """The program of [`compile_step`][elt_zoo.profile.compile_step], not yet compiled."""
    # Late: those who only count a model need no training.
    from ..training import OptimizerConfig, Precision, TrainState, make_optimizer, make_train_step

    paper = config.training_defaults()
    optimizer = make_optimizer(
        OptimizerConfig(
            learning_rate=paper.learning_rate,
            total_steps=paper.steps,
            warmup_steps=paper.warmup_steps,
            b1=paper.b1,
            b2=paper.b2,
            weight_decay=paper.weight_decay,
            clip_norm=paper.clip_norm,
        )
    )
    with traced_for(layout.mesh.devices.flatten().tolist()):
        step = make_train_step(
            optimizer,
            _objective(config) if objective is None else objective,
            config.corruption(label_drop=0.1),
            total_steps=paper.steps,
            ema_decay=paper.ema_decay,
            precision=Precision(jnp.dtype(precision)),
            dropout=config.dropout > 0.0,
            accumulation=accumulation,
            # As in a run, which needs no layout on one device.
            layout=layout if layout.mesh.size > 1 else None,
            attention=attention,
        )

        def start(key: Any) -> TrainState:
            return TrainState.create(config.build(key=key), optimizer, key=key)

        state = layout.abstract(start, jax.eval_shape(lambda: jax.random.key(0)))
        # As `jit_step` does: except on CPUs, the state gives its memory to the next one.
        donated = _platform(layout.mesh) != "cpu"
        return _trace(step, (state, _batch(config, batch, layout.mesh)), donated=(0,) if donated else ())


@checked
def compile_sampler(
    config: ModelConfig,
    mesh: Mesh | None = None,
    *,
    batch: int,
    settings: SamplerSettings | None = None,
    precision: ComputeDtype = "float32",
    fast: bool = True,
) -> CompiledCost:
    """Compiles the sampler of a model, for any number of loops, and reads off what it costs. Every chip holds the whole
    model. What a tokenizer or an autoencoder makes of the samples is not in it.

    **Arguments:**

    - `config`: the model.
    - `mesh`: the devices that share the batch; default JAX's first device alone.
    - `batch`: samples at a time on all chips together, a multiple of their number.
    - `settings`: how to sample; default as the papers do.
    - `precision`: the dtype of the parameters and of compute.
    - `fast`: as for [`compile_step`][elt_zoo.profile.compile_step].

    **Returns:** the costs, with operations for `max_loops` loops in every step.

    **Raises:** as [`compile_step`][elt_zoo.profile.compile_step].
    """
    mesh = make_mesh(devices=jax.devices()[:1]) if mesh is None else mesh
    _require_shared("compile_sampler", batch, mesh)
    sampler = config.sampler(settings)

    def model(key: Any) -> Any:
        return jax.tree.map(
            lambda leaf: leaf.astype(precision) if eqx.is_inexact_array(leaf) else leaf, config.build(key=key)
        )

    def draw(model: Any, labels: Any, loops: Any, key: Any) -> Any:
        return sampler(CachedPredict(model), labels, loops=loops, key=key)

    whole = NamedSharding(mesh, PartitionSpec())
    with traced_for(mesh.devices.flatten().tolist()):
        shapes = eqx.filter_eval_shape(
            lambda key: (model(key), jnp.zeros((), jnp.int32), key), jax.eval_shape(lambda: jax.random.key(0))
        )
        network, loops, key = _placed(shapes, whole)
        traced = _trace(draw, (network, _batch(config, batch, mesh).labels, loops, key), donated=())
    flops = batch * sample_compute(config, sampler, loops=config.max_loops).flops / mesh.size
    return _compiled("sampler", traced, mesh, batch, flops, fast=fast)


def _objective(config: ModelConfig) -> AbstractObjective:
    loss = config.loss()
    if config.max_loops == 1:
        return VanillaLoss(loss, max_loops=1)
    return ILSDLoss(loss, loss.distillation, max_loops=config.max_loops)


def _require_shared(call: str, batch: int, mesh: Mesh) -> None:
    if batch < 1 or batch % mesh.size:
        raise ValueError(
            f"`{call}(batch={batch})` cannot be shared by {mesh.size} device(s); use a positive multiple of "
            f"{mesh.size}."
        )


def _batch(config: ModelConfig, size: int, mesh: Mesh) -> ExampleBatch:
    """Shapes of a batch that is split over all axes of a mesh."""
    shapes = ExampleBatch(
        jax.ShapeDtypeStruct((size, *config.example.shape), config.example.dtype),
        jax.ShapeDtypeStruct((size,), jnp.int32),
    )
    return _placed(shapes, NamedSharding(mesh, PartitionSpec(mesh.axis_names)))


def _placed(shapes: Any, sharding: NamedSharding) -> Any:
    def placed(leaf: Any) -> Any:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding) if _is_shape(leaf) else leaf

    return jax.tree.map(placed, shapes)


def _is_shape(leaf: Any) -> bool:
    return isinstance(leaf, jax.ShapeDtypeStruct)


def _trace(function: Callable[..., PyTree], arguments: tuple[Any, ...], *, donated: tuple[int, ...]) -> Traced:
    """`function(*arguments)` with shapes for arrays, as a program whose arguments are the arrays alone."""
    arrays, static = eqx.partition(arguments, _is_shape)

    def program(*arrays: Any) -> PyTree:
        return eqx.filter(function(*eqx.combine(arrays, static)), eqx.is_array)

    return jax.jit(program, donate_argnums=donated).trace(*arrays)


def _compiled(program: str, traced: Traced, mesh: Mesh, batch: int, flops: float, *, fast: bool) -> CompiledCost:
    lowered = traced.lower()
    started = time.perf_counter()
    try:
        compiled = lowered.compile(compiler_options=_LEAST_EFFORT if fast else None)
    except jax.errors.JaxRuntimeError as error:
        limits = memory_limits(str(error))
        if limits is None:
            raise
        raise DoesNotFit(program, *limits) from None
    seconds = time.perf_counter() - started
    memory: Any = compiled.memory_analysis()
    return CompiledCost(
        program=program,
        device=mesh.devices.flat[0].device_kind,
        memory_bytes=device_memory(mesh.devices.flat[0]),
        chips=mesh.size,
        batch=batch,
        argument_bytes=memory.argument_size_in_bytes,
        temporary_bytes=memory.temp_size_in_bytes,
        output_bytes=memory.output_size_in_bytes - memory.alias_size_in_bytes,
        code_bytes=memory.generated_code_size_in_bytes,
        flops=flops,
        collectives=collectives_of(compiled.as_text() or ""),
        fast=fast,
        compile_seconds=seconds,
    )


_LIMITS = (
    re.compile(r"\((?P<needed>[\d.]+[KMGT]?)\) exceeds available HBM \((?P<available>[\d.]+[KMGT]?)\)"),
    re.compile(r"Used (?P<needed>[\d.]+[KMGT]?) of (?P<available>[\d.]+[KMGT]?) hbm"),
)
_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def memory_limits(message: str) -> tuple[int, int] | None:
    """The bytes that a program needs and those that a chip has, from what the TPU compiler says if it does not fit."""
    found = next((match for pattern in _LIMITS if (match := pattern.search(message))), None)
    return None if found is None else (_num_bytes(found["needed"]), _num_bytes(found["available"]))


def _num_bytes(text: str) -> int:
    unit = _UNITS.get(text[-1], 1)
    return int(float(text.rstrip("KMGT")) * unit)


def _platform(mesh: Mesh) -> str:
    return mesh.devices.flat[0].platform
