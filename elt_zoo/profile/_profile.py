import dataclasses
import math

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.typing import DTypeLike
from jaxtyping import PyTree

from .._checks import checked
from ..families import ModelConfig
from ..looped import Remat
from ..nn import AttentionChoice, AttentionKernel, SelfAttention, with_attention
from ._count import Costs, aval_bytes, costs_of
from ._text import count, num_bytes, operations

FLOPS = "2 FLOPs per multiply-accumulate, matrix products only"
"""The convention of every figure in FLOPs, to print beside it."""

# Parameters, their gradients, AdamW's two moments and the average of the parameters, all float32.
_TRAINING_COPIES = 5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Profile:
    r"""What a model costs, as [`profile`][elt_zoo.profile.profile] counts it. `str(profile)` is a table.

    One multiply-accumulate (MAC) is two floating-point operations (FLOPs). Papers print either as FLOPs (DiT's 118.6 G
    for XL/2 are MACs), so both are here. A forward pass of one example costs
    $\text{embed} + \text{condition} + D \cdot \text{layer} + \text{head}$.

    **Fields:**

    - `config`, `loops`, `batch`, `steps`, `guidance`: the arguments of `profile`.
    - `trunk_parameters`, `loop_parameters`, `head_parameters`: unique parameters of the trunk, of its layers that loop,
      and of the head at both ends.
    - `embed`, `condition`, `layer`, `head`: [`Costs`][elt_zoo.profile.Costs] of the parts for one example. `condition`
      is the work of all layers that does not depend on the loop, `layer` is one layer of one loop.
    - `state_bytes`: memory of the state of one example.
    - `attention`: the kernel of the layers' self-attention on this device, and why; `None` for layers without it.
    """

    config: ModelConfig
    loops: int
    batch: int
    steps: int
    guidance: bool
    trunk_parameters: int
    loop_parameters: int
    head_parameters: int
    embed: Costs
    condition: Costs
    layer: Costs
    head: Costs
    state_bytes: int
    attention: AttentionChoice | None = None

    @property
    def loop(self) -> Costs:
        """One loop: the N layers in a row."""
        return self.config.num_layers * self.layer

    @property
    def parameters(self) -> int:
        """Unique parameters, as stored."""
        return self.trunk_parameters + self.head_parameters

    @property
    def effective_parameters(self) -> int:
        """Parameters of a model of equal compute whose layers are all unique: what loops counts once per loop."""
        return self.parameters + (self.loops - 1) * self.loop_parameters

    @property
    def effective_depth(self) -> int:
        """D, the layers that a forward pass applies: N·L and those before and after the loops."""
        return self.config.prelude + self.config.num_layers * self.loops + self.config.coda

    @property
    def forward_macs(self) -> int:
        """Multiply-accumulates of a forward pass of one example."""
        return self.embed.macs + self.condition.macs + self.effective_depth * self.layer.macs + self.head.macs

    @property
    def forward_flops(self) -> int:
        """Floating-point operations of a forward pass of one example: two per multiply-accumulate."""
        return 2 * self.forward_macs

    @property
    def forward_elementwise(self) -> int:
        """Floating-point operations of a forward pass of one example beside matrix products: norms, softmax,
        activations. They matter in small models: 23% at width 16, 5% at width 64, 1% at 256. `forward_flops` and these
        together are [XLA's own count][elt_zoo.profile.xla_forward_flops] to within 3%. XLA counts more, because fusion
        computes some cheap operations twice.
        """
        ends = self.embed.elementwise + self.condition.elementwise + self.head.elementwise
        return ends + self.effective_depth * self.layer.elementwise

    @property
    def padding_share(self) -> float:
        """Operations that the attention kernel's padding adds to a forward pass, over the operations of the pass. They
        are in none of the other figures.
        """
        if self.attention is None:
            return 0.0
        attention = 2 * self.attention.tokens**2 * self.config.dim
        return self.effective_depth * attention * self.attention.padding / self.forward_macs

    def training_flops(self, *, exits: int = 1) -> int:
        """Floating-point operations of matrix products that training on one example takes: forward, and twice as many
        backward. Recomputation is not counted, so that these over the time are the model's speed and not the machine's.

        **Arguments:** `exits`: that the objective reads, each through coda and head; 2 for ILSD.
        """
        more = (exits - 1) * (self.config.coda * self.layer.macs + self.head.macs)
        return 3 * 2 * (self.forward_macs + more)

    @property
    def sample_macs(self) -> int:
        """Multiply-accumulates of one sample: `steps` forward passes, twice as many with `guidance`."""
        return self.steps * (2 if self.guidance else 1) * self.forward_macs

    @property
    def sample_flops(self) -> int:
        """Floating-point operations of one sample: two per multiply-accumulate."""
        return 2 * self.sample_macs

    @property
    def parameter_bytes(self) -> int:
        """Memory of the parameters in float32."""
        return 4 * self.parameters

    @property
    def training_state_bytes(self) -> int:
        """Memory of the training state in float32: parameters, gradients, AdamW's two moments, averaged parameters."""
        return _TRAINING_COPIES * self.parameter_bytes

    def training_activation_bytes(self, remat: Remat | None = None) -> int:
        r"""Estimated memory of the arrays that JAX's reverse mode saves for the whole batch, without dropout.

        With $s$ the state, $r$ the arrays that one layer saves, $p$ the results of its matrix products, $N$ layers and
        $L$ loops, the trunk saves

        | rematerialisation | trunk |
        |---|---|
        | none | $N \cdot L \cdot r$ |
        | loop | $L \cdot s + N \cdot r$ |
        | elementwise | $N \cdot L \cdot (s + p) + r$ |
        | layer | $N \cdot L \cdot s + r$ |

        Embedding, conditioning and prelude come on top, and at two exits (student and teacher; one if L = 1) the coda
        and the head; prelude and coda count as loops of their own, with L = 1. XLA fuses
        some of these arrays away and adds buffers: on a CPU and small models it allocates within 15% of the estimate
        without rematerialisation, and within a factor of two with it. Fused attention saves no scores: then $r$ and $p$
        have its output and one number for each query and head in their place.

        **Arguments:** `remat`: the rematerialisation; default the config's.
        """
        remat, config = self.config.remat if remat is None else Remat(remat), self.config
        exits = min(self.loops, 2)
        ends = self.embed.saved_bytes + self.condition.saved_bytes + exits * self.head.saved_bytes
        trunk = self._saved(remat, config.num_layers, self.loops)
        around = self._saved(remat, config.prelude, 1) + exits * self._saved(remat, config.coda, 1)
        return self.batch * (ends + trunk + around)

    def _saved(self, remat: Remat, num_layers: int, loops: int) -> int:
        """Bytes that `loops` loops of `num_layers` layers save for one example."""
        if not num_layers:
            return 0
        applied = num_layers * loops
        match remat.resolve(loops, unrolled=self.config.unroll_loops):
            case Remat.NONE:
                return applied * self.layer.saved_bytes
            case Remat.ELEMENTWISE:
                return applied * (self.state_bytes + self.layer.product_bytes) + self.layer.saved_bytes
            case Remat.LOOP:
                return loops * self.state_bytes + num_layers * self.layer.saved_bytes
            case _:  # Remat.LAYER
                return applied * self.state_bytes + self.layer.saved_bytes

    @property
    def inference_activation_bytes(self) -> int:
        """Estimated memory of activations at inference for the whole batch, both branches with guidance: the state,
        the conditioning and the largest single operation. It does not depend on the loops.
        """
        branches = 2 if self.guidance else 1
        workspace = max(self.layer.workspace_bytes, self.head.workspace_bytes)
        return branches * self.batch * (self.state_bytes + self.condition.saved_bytes + workspace)

    def __str__(self) -> str:
        config = self.config
        per_sample = f"{self.steps} step(s){', two branches' if self.guidance else ''}"
        rows = [
            ("model", f"{config.family}, {_layers(config, self.loops)}, width {config.dim}"),
            ("tokens", f"{config.num_tokens}"),
            *([] if self.attention is None else [("attention", str(self.attention))]),
            ("effective depth", f"{self.effective_depth} layers"),
            ("unique parameters", count(self.parameters)),
            ("  trunk", count(self.trunk_parameters)),
            ("  head and embeddings", count(self.head_parameters)),
            ("effective parameters", count(self.effective_parameters)),
            ("forward, one example", operations(self.forward_macs)),
            ("  one loop", operations(self.loop.macs)),
            ("  the rest", operations(self.forward_macs - self.loops * self.loop.macs)),
            *([("  padding for attention", f"{self.padding_share:+.1%}")] if self.padding_share else []),
            (f"sample, {per_sample}", operations(self.sample_macs)),
            ("training state (float32)", num_bytes(self.training_state_bytes)),
            *(
                (f"activations, batch {self.batch}, remat {remat}", num_bytes(self.training_activation_bytes(remat)))
                for remat in Remat
                if remat != Remat.AUTO
            ),
            (f"activations, batch {self.batch}, inference", num_bytes(self.inference_activation_bytes)),
        ]
        width = max(len(name) for name, _ in rows)
        return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)


@checked
def profile(
    config: ModelConfig,
    *,
    loops: int | None = None,
    batch: int = 1,
    steps: int = 1,
    guidance: bool = False,
    dtype: DTypeLike = jnp.float32,
    attention: AttentionKernel = AttentionKernel.AUTO,
    mesh: Mesh | None = None,
) -> Profile:
    """Counts the parameters, operations and memory of a model without allocating it.

    It traces one layer, its conditioning and both ends of the head with shapes only, and counts equation by equation.
    This takes well under a second at any size, depth and number of loops.

    **Arguments:**

    - `config`: the model.
    - `loops`: L of every forward pass; default the config's `max_loops`.
    - `batch`: examples at a time, for memory.
    - `steps`: sampling steps.
    - `guidance`: whether sampling runs an unconditional branch as well.
    - `dtype`: of compute, for memory; parameters are float32.
    - `attention`: the kernel of self-attention, for memory; default what is chosen for JAX's default device.
    - `mesh`: devices over which a training step splits the batch, on which the choice depends.

    **Returns:** a [`Profile`][elt_zoo.profile.Profile].

    **Raises:** `ValueError` if a count is below 1, or this device cannot use the kernel.
    """
    loops = config.max_loops if loops is None else loops
    if min(loops, batch, steps) < 1:
        raise ValueError(f"`profile(loops={loops}, batch={batch}, steps={steps})`: each must be at least 1.")
    inputs = config.example_inputs(dtype)
    model = eqx.filter_eval_shape(config.build, key=jax.random.key(0))
    trunk_parameters, head_parameters = _size(model.trunk), _size(model.head)
    loop_parameters = _size(model.trunk.layers)
    model = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype), model)
    layer = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), model.trunk.layers)

    tokens, conditioning = jax.eval_shape(lambda head: head.embed(*_zeros(inputs)), model.head)
    # As the trunk calls its layers: conditioning and `condition` are both optional.
    modulation, condition = conditioning, Costs()
    if conditioning is not None and hasattr(layer, "condition"):
        modulation = jax.eval_shape(lambda layer, given: layer.condition(given), layer, conditioning)
        condition = costs_of(lambda layer, given: layer.condition(given), layer, conditioning)
        condition = _saving(condition, modulation)
    given = (tokens,) if modulation is None else (tokens, modulation)
    # JAX counts what a split kernel saves for one example once for each device. One device counts it once.
    alone = None if mesh is None else Mesh(mesh.devices.flatten()[:1], mesh.axis_names[:1])
    layer = with_attention(layer, attention, mesh=alone)
    choice = _choice(layer, tokens)
    step = costs_of(lambda layer, given: layer(*given), with_attention(layer, AttentionKernel.XLA), given)
    if choice is not None and choice.fused:
        step = _fused(step, costs_of(lambda layer, given: layer(*given), layer, given), choice, tokens)
    return Profile(
        config=config,
        loops=loops,
        batch=batch,
        steps=steps,
        guidance=guidance,
        trunk_parameters=trunk_parameters,
        loop_parameters=loop_parameters,
        head_parameters=head_parameters,
        embed=costs_of(lambda head, inputs: head.embed(*inputs), model.head, inputs),
        condition=(config.prelude + config.num_layers + config.coda) * condition,
        layer=_saving(step, tokens),
        head=costs_of(lambda head, given: head(*given), model.head, (tokens, conditioning)),
        state_bytes=_nbytes(tokens),
        attention=choice,
    )


def _choice(layer: PyTree, tokens: jax.ShapeDtypeStruct) -> AttentionChoice | None:
    """The kernel of a layer's attention."""
    nodes = jax.tree.leaves(layer, is_leaf=lambda node: isinstance(node, SelfAttention))
    found = [node.choice(tokens.shape[0], tokens.dtype) for node in nodes if isinstance(node, SelfAttention)]
    return found[0] if found else None


def _fused(plain: Costs, fused: Costs, choice: AttentionChoice, tokens: jax.ShapeDtypeStruct) -> Costs:
    """The operations of a layer and the memory of its fused form, in whose products attention's results are missing:
    its output, and the log-sum of each query's softmax in float32.
    """
    heads = tokens.shape[1] // choice.head_dim
    results = heads * choice.padded_tokens * (choice.padded_head_dim * tokens.dtype.itemsize + 4)
    return dataclasses.replace(
        fused, macs=plain.macs, elementwise=plain.elementwise, product_bytes=fused.product_bytes + results
    )


def _layers(config: ModelConfig, loops: int) -> str:
    """N×L, with the layers before and after the loops if there are any."""
    looped = f"{config.num_layers}N x {loops}L"
    return f"{config.prelude} + {looped} + {config.coda}" if config.prelude or config.coda else looped


def _saving(costs: Costs, arrays: PyTree) -> Costs:
    """The costs of a part that saves these arrays as well: its inputs, or results that other parts read."""
    return dataclasses.replace(costs, saved_bytes=costs.saved_bytes + _nbytes(arrays))


def _zeros(shapes: PyTree) -> PyTree:
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)


def _nbytes(tree: PyTree) -> int:
    return sum(aval_bytes(leaf) for leaf in jax.tree.leaves(tree))


def _size(tree: PyTree) -> int:
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))
