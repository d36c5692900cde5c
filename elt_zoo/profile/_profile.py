import dataclasses
import math

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import PyTree

from .._checks import checked
from ..families import ModelConfig
from ..looped import Remat
from ._count import Costs, aval_bytes
from ._inputs import example_inputs
from ._text import count, num_bytes, operations

FLOPS = "2 FLOPs per multiply-accumulate, matrix products only"
"""The convention of every figure in FLOPs, to print beside it."""

# Parameters, their gradients, AdamW's two moments and the average of the parameters, all float32.
_TRAINING_COPIES = 5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Profile:
    r"""What [`profile`][elt_zoo.profile.profile] returns. `str(profile)` is a table of it.

    **Operations** are those of matrix products: linear maps, the two products of attention, the logits. One
    multiply-accumulate (MAC) is two floating-point operations (FLOPs); [`FLOPS`][elt_zoo.profile.FLOPS] says so in
    words to print. Papers differ in which of the two they print as FLOPs (DiT's 118.6 G for XL/2 are MACs), so both are
    here.

    - a forward pass of one example: $\text{embed} + \text{condition} + L \cdot \text{loop} + \text{head}$
    - a sample: forward × `steps`, × 2 if `guidance` (a conditional and an unconditional branch).

    What norms, softmax and activations add is counted apart, as `…_elementwise`. It matters in small models: 23% at
    width 16, 5% at width 64, 1% at 256. Both together are [XLA's own count][elt_zoo.profile.xla_forward_flops] to
    within 3%; XLA's is the larger, since fusion computes some cheap operations twice.

    **Memory** of activations, in bytes for `batch` examples, is an estimate, without dropout. It counts the arrays that
    JAX's reverse mode saves, before XLA fuses some away and adds buffers of its own. On a CPU and small models XLA
    allocates within 15% of it without rematerialisation and within a factor of two with it.

    - training, with $s$ the state, $r$ what one layer saves, $N$ layers and $L$ loops:

        | rematerialisation | trunk |
        |---|---|
        | none | $N \cdot L \cdot r$ |
        | loop | $L \cdot s + N \cdot r$ |
        | layer | $N \cdot L \cdot s + r$ |

        plus what the embedding and the modulations of N layers save, and the head at two exits (student and teacher;
        one if L = 1).
    - inference: the state, the modulations, and the operands and results of the largest single operation.

    **Fields:**

    - `config`, `loops`, `batch`, `steps`, `guidance`: what was asked for.
    - `trunk_parameters`, `head_parameters`: unique parameters of the looped layers, and of embeddings and prediction
      together.
    - `embed_macs`, `condition_macs`, `loop_macs`, `head_macs`: operations of the parts, one example. `condition` is the
      work of all N layers that does not depend on the loop; `loop` is one application of the N layers.
    - `embed_elementwise`, `condition_elementwise`, `loop_elementwise`, `head_elementwise`: their floating-point
      operations beside matrix products, without exponentials and the like.
    - `state_bytes`, `embed_bytes`, `condition_bytes`, `layer_bytes`, `head_bytes`: saved for the backward pass by the
      parts, one example, `layer` for one layer and `condition` for all.
    - `workspace_bytes`: the largest single operation of one example.
    """

    config: ModelConfig
    loops: int
    batch: int
    steps: int
    guidance: bool
    trunk_parameters: int
    head_parameters: int
    embed_macs: int
    condition_macs: int
    loop_macs: int
    head_macs: int
    embed_elementwise: int
    condition_elementwise: int
    loop_elementwise: int
    head_elementwise: int
    state_bytes: int
    embed_bytes: int
    condition_bytes: int
    layer_bytes: int
    head_bytes: int
    workspace_bytes: int

    @property
    def parameters(self) -> int:
        """Unique parameters: what is stored and what N decides."""
        return self.trunk_parameters + self.head_parameters

    @property
    def effective_parameters(self) -> int:
        """Parameters of the model with unique layers and equal compute: the trunk counted once per loop."""
        return self.loops * self.trunk_parameters + self.head_parameters

    @property
    def effective_depth(self) -> int:
        """D = N·L, layers that a forward pass goes through at these loops."""
        return self.config.num_layers * self.loops

    @property
    def forward_macs(self) -> int:
        """Multiply-accumulates of a forward pass of one example."""
        return self.embed_macs + self.condition_macs + self.loops * self.loop_macs + self.head_macs

    @property
    def forward_flops(self) -> int:
        """Floating-point operations of a forward pass of one example: two per multiply-accumulate."""
        return 2 * self.forward_macs

    @property
    def forward_elementwise(self) -> int:
        """Floating-point operations of a forward pass of one example beside matrix products."""
        ends = self.embed_elementwise + self.condition_elementwise + self.head_elementwise
        return ends + self.loops * self.loop_elementwise

    @property
    def sample_macs(self) -> int:
        """Multiply-accumulates of drawing one sample."""
        return self.steps * (2 if self.guidance else 1) * self.forward_macs

    @property
    def sample_flops(self) -> int:
        """Floating-point operations of drawing one sample: two per multiply-accumulate."""
        return 2 * self.sample_macs

    @property
    def parameter_bytes(self) -> int:
        """Memory of the parameters in float32."""
        return 4 * self.parameters

    @property
    def training_state_bytes(self) -> int:
        """Memory of what training keeps in float32: parameters, gradients, AdamW's two moments and the average."""
        return _TRAINING_COPIES * self.parameter_bytes

    def training_activation_bytes(self, remat: Remat | None = None) -> int:
        """Estimated memory that the backward pass needs saved, for the whole batch.

        **Arguments:** `remat`: what is recomputed instead; default what the config says.
        """
        match self.config.remat if remat is None else Remat(remat):
            case Remat.NONE:
                trunk = self.effective_depth * self.layer_bytes
            case Remat.LOOP:
                trunk = self.loops * self.state_bytes + self.config.num_layers * self.layer_bytes
            case Remat.LAYER:
                trunk = self.effective_depth * self.state_bytes + self.layer_bytes
        exits = min(self.loops, 2)
        return self.batch * (self.embed_bytes + self.condition_bytes + trunk + exits * self.head_bytes)

    @property
    def inference_activation_bytes(self) -> int:
        """Estimated memory of activations at inference, for the whole batch (both branches with guidance). Independent
        of the loops.
        """
        branches = 2 if self.guidance else 1
        return branches * self.batch * (self.state_bytes + self.condition_bytes + self.workspace_bytes)

    def __str__(self) -> str:
        config = self.config
        per_sample = f"{self.steps} step(s){', two branches' if self.guidance else ''}"
        rows = [
            ("model", f"{config.framework}, {config.num_layers}N x {self.loops}L, width {config.dim}"),
            ("tokens", f"{config.num_tokens}"),
            ("effective depth", f"{self.effective_depth} layers"),
            ("unique parameters", count(self.parameters)),
            ("  trunk", count(self.trunk_parameters)),
            ("  head and embeddings", count(self.head_parameters)),
            ("effective parameters", count(self.effective_parameters)),
            ("forward, one example", operations(self.forward_macs)),
            ("  one loop", operations(self.loop_macs)),
            ("  the rest", operations(self.forward_macs - self.loops * self.loop_macs)),
            (f"sample, {per_sample}", operations(self.sample_macs)),
            ("training state (float32)", num_bytes(self.training_state_bytes)),
            *(
                (f"activations, batch {self.batch}, remat {remat}", num_bytes(self.training_activation_bytes(remat)))
                for remat in Remat
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
) -> Profile:
    """Counts parameters, operations and memory of a model without allocating any of it.

    The counts are taken from the program itself, traced with shapes only: one layer, the conditioning, and both ends of
    the head, each once, so that it takes well under a second at any size, depth and number of loops.

    **Arguments:**

    - `config`: the model.
    - `loops`: L of every forward pass; default the config's `max_loops`.
    - `batch`: examples at a time, for memory.
    - `steps`: sampling steps.
    - `guidance`: whether sampling runs an unconditional branch as well.
    - `dtype`: of compute, for memory; parameters are float32.

    **Returns:** a [`Profile`][elt_zoo.profile.Profile].

    **Raises:** `ValueError` if a count is below 1, `TypeError` for a config of another family.
    """
    loops = config.max_loops if loops is None else loops
    if min(loops, batch, steps) < 1:
        raise ValueError(f"`profile(loops={loops}, batch={batch}, steps={steps})`: each must be at least 1.")
    inputs = example_inputs(config, dtype)
    model = eqx.filter_eval_shape(config.build, key=jax.random.key(0))
    trunk_parameters, head_parameters = _size(model.trunk), _size(model.head)
    model = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype), model)
    layer = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), model.trunk.layers)

    tokens, conditioning = jax.eval_shape(lambda head: head.embed(*_zeros(inputs)), model.head)
    embed = Costs(lambda head, inputs: head.embed(*inputs), model.head, inputs)
    # BERT-style layers have no conditioning.
    modulation, condition = None, None
    if conditioning is not None:
        condition = Costs(lambda layer, given: layer.condition(given), layer, conditioning)
        modulation = jax.eval_shape(lambda layer, given: layer.condition(given), layer, conditioning)
    step = Costs(lambda layer, given: layer(*given), layer, (tokens, modulation))
    out = Costs(lambda head, given: head(*given), model.head, (tokens, conditioning))
    layers = config.num_layers
    return Profile(
        config=config,
        loops=loops,
        batch=batch,
        steps=steps,
        guidance=guidance,
        trunk_parameters=trunk_parameters,
        head_parameters=head_parameters,
        embed_macs=embed.macs,
        condition_macs=0 if condition is None else layers * condition.macs,
        loop_macs=layers * step.macs,
        head_macs=out.macs,
        embed_elementwise=embed.elementwise,
        condition_elementwise=0 if condition is None else layers * condition.elementwise,
        loop_elementwise=layers * step.elementwise,
        head_elementwise=out.elementwise,
        state_bytes=_nbytes(tokens),
        embed_bytes=embed.saved_bytes,
        condition_bytes=0 if condition is None else layers * (condition.saved_bytes + _nbytes(modulation)),
        layer_bytes=step.saved_bytes + _nbytes(tokens),
        head_bytes=out.saved_bytes,
        workspace_bytes=max(step.workspace_bytes, out.workspace_bytes),
    )


def _zeros(shapes: PyTree) -> PyTree:
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)


def _nbytes(tree: PyTree) -> int:
    return sum(aval_bytes(leaf) for leaf in jax.tree.leaves(tree))


def _size(tree: PyTree) -> int:
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))
