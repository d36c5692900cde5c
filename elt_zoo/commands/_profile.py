import dataclasses
from pathlib import Path
from typing import Literal

import jax

from .._platform import traced_for
from ..families import ModelConfig, preset
from ..generator import load
from ..looped import Remat
from ..nn import AttentionKernel
from ..profile import LOCAL, compile_sampler, compile_step, topology_devices
from ..profile import profile as count_costs
from ..recipes import MeshOptions
from ..sharding import Layout, make_mesh


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProfileOptions:
    """Count parameters, operations and memory of a model before it is built; or compile its training step and its
    sampler for a machine, which need not be this one."""

    preset: str = "digits-dit"
    """A name of `elt_zoo.families.preset_names()`, a bundled model, or a folder that `elt_zoo.save` wrote."""
    loops: int | None = None
    """Default the model's L_max."""
    batch: int = 1
    """Examples at a time; on several devices, of all together."""
    steps: int | None = None
    """Sampling steps; default the family's."""
    guidance: bool = False
    """Whether a sample also runs the unconditional branch."""
    precision: Literal["float32", "bfloat16"] = "float32"
    attention: AttentionKernel = AttentionKernel.AUTO
    """The kernel of self-attention; by default what suits this device, the precision and the sizes."""
    remat: Remat | None = None
    """What the backward pass computes again; all kinds are shown, and this one is named."""

    topology: str | None = None
    """Also compile the training step and the sampler for this machine, and show what its compiler says of memory and
    collectives: a kind of TPU and its chips along each axis, such as v5e:16x16, or `local` for the devices at hand.
    TPUs need the extra `tpu-compile` and no TPU. With `--mesh`, default `local`."""
    mesh: MeshOptions = dataclasses.field(default_factory=MeshOptions)
    accumulation: int | None = None
    """Parts that the batch of a compiled step is split into to save memory; default as training does."""
    thorough: bool = False
    """Compile as training does, which for TPUs takes ten to twenty times as long."""

    def __post_init__(self):
        for name in ("loops", "batch", "steps", "accumulation"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"`--{name} {value}` must be at least 1.")

    @property
    def machine(self) -> str | None:
        """What to compile for; `None` to compile nothing."""
        return LOCAL if self.topology is None and self.mesh != MeshOptions() else self.topology


def profile(options: ProfileOptions) -> None:
    """`elt-zoo profile`."""
    layout = _layout(options)  # first of all: it decides which devices JAX starts
    config = load(options.preset).config if Path(options.preset).is_dir() else preset(options.preset)
    if options.remat is not None:
        config = dataclasses.replace(config, remat=options.remat)
    # Counted for one chip, of the kind that is compiled for.
    with traced_for(() if layout is None else layout.mesh.devices.flatten().tolist()[:1]):
        costs = count_costs(
            config,
            loops=options.loops,
            batch=options.batch,
            steps=options.steps or config.sampler_settings().steps,
            guidance=options.guidance,
            dtype=options.precision,
            attention=options.attention,
        )
    print(costs)
    print(f"training activations with remat {config.remat}: {costs.training_activation_bytes() / 2**20:,.1f} MiB")
    if layout is not None:
        _print_compiled(options, config, layout)


def _layout(options: ProfileOptions) -> Layout | None:
    if options.machine is None:
        if options.accumulation is not None or options.thorough:
            name = "accumulation" if options.accumulation is not None else "thorough"
            raise ValueError(f"`--{name}` is for a compiled step: add `--topology`, such as `--topology {LOCAL}`.")
        return None
    if options.machine != LOCAL:
        # A process that only compiles for others needs no accelerator, and must not take one from those who do.
        jax.config.update("jax_platforms", "cpu")
        # JAX keeps programs for chips that are not here, and then cannot read them.
        jax.config.update("jax_enable_compilation_cache", False)
    mesh = make_mesh(options.mesh.data, options.mesh.fsdp, devices=topology_devices(options.machine))
    for name, parts in (("batch", mesh.size), ("batch", options.accumulation or 1)):
        if options.batch % parts:
            raise ValueError(f"`--{name} {options.batch}` must be a multiple of {parts}.")
    return Layout(mesh, options.mesh.gather)


def _print_compiled(options: ProfileOptions, config: ModelConfig, layout: Layout) -> None:
    if options.loops is not None:
        config = dataclasses.replace(config, max_loops=options.loops)
    settings = config.sampler_settings()
    scale = 1.0 if not options.guidance else 2.0 if settings.guidance == 1.0 else settings.guidance
    settings = dataclasses.replace(settings, steps=options.steps or settings.steps, guidance=scale)
    shared = {"batch": options.batch, "precision": options.precision, "fast": not options.thorough}
    print(flush=True)
    step = compile_step(config, layout, accumulation=options.accumulation, attention=options.attention, **shared)
    print(step, end="\n\n", flush=True)
    print(compile_sampler(config, layout.mesh, settings=settings, **shared))
