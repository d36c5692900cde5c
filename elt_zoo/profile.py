"""What a model costs before it is built: parameters, operations and memory, at any number of loops."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal
from jax.typing import DTypeLike
from jaxtyping import PyTree

from ._checks import checked
from .looped import Remat
from .models import DiTConfig, MaskGITConfig, ModelConfig

# Parameters, their gradients, AdamW's two moments and the average of the parameters, all float32.
_TRAINING_COPIES = 5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Profile:
    r"""What [`profile`][elt_zoo.profile.profile] returns. `str(profile)` is a table of it.

    **Operations** are those of matrix products: linear maps, the two products of attention, the logits. Norms, softmax
    and activations are left out; XLA's own count, which has them, is 5% higher at width 64 and 0.6% at 512. One
    multiply-accumulate (MAC) is two floating-point operations (FLOPs). Papers differ in which of the two they print as
    FLOPs (DiT's 118.6 G for XL/2 are MACs), so both are here.

    - a forward pass of one example: $\text{embed} + \text{condition} + L \cdot \text{loop} + \text{head}$
    - a sample: forward × `steps`, × 2 if `guidance` (a conditional and an unconditional branch).

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
            ("unique parameters", _count(self.parameters)),
            ("  trunk", _count(self.trunk_parameters)),
            ("  head and embeddings", _count(self.head_parameters)),
            ("effective parameters", _count(self.effective_parameters)),
            ("forward, one example", _operations(self.forward_macs)),
            ("  one loop", _operations(self.loop_macs)),
            ("  the rest", _operations(self.forward_macs - self.loops * self.loop_macs)),
            (f"sample, {per_sample}", _operations(self.sample_macs)),
            ("training state (float32)", _bytes(self.training_state_bytes)),
            *(
                (f"activations, batch {self.batch}, remat {remat}", _bytes(self.training_activation_bytes(remat)))
                for remat in Remat
            ),
            (f"activations, batch {self.batch}, inference", _bytes(self.inference_activation_bytes)),
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
    inputs = _inputs(config, dtype)
    model = eqx.filter_eval_shape(config.build, key=jax.random.key(0))
    trunk_parameters, head_parameters = _size(model.trunk), _size(model.head)
    model = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype), model)
    layer = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), model.trunk.layers)

    tokens, conditioning = jax.eval_shape(lambda head: head.embed(*_zeros(inputs)), model.head)
    embed = _Part(lambda head, inputs: head.embed(*inputs), model.head, inputs)
    # BERT-style layers have no conditioning.
    modulation, condition = None, None
    if conditioning is not None:
        condition = _Part(lambda layer, given: layer.condition(given), layer, conditioning)
        modulation = jax.eval_shape(lambda layer, given: layer.condition(given), layer, conditioning)
    step = _Part(lambda layer, given: layer(*given), layer, (tokens, modulation))
    out = _Part(lambda head, given: head(*given), model.head, (tokens, conditioning))
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
        state_bytes=_nbytes(tokens),
        embed_bytes=embed.saved_bytes,
        condition_bytes=0 if condition is None else layers * (condition.saved_bytes + _nbytes(modulation)),
        layer_bytes=step.saved_bytes + _nbytes(tokens),
        head_bytes=out.saved_bytes,
        workspace_bytes=max(step.workspace_bytes, out.workspace_bytes),
    )


class _Part:
    """The costs of one function of a module and its inputs, all of them given by shape."""

    def __init__(self, function: Callable[[Any, Any], PyTree], module: PyTree, inputs: PyTree):
        forward = jax.make_jaxpr(function)(module, inputs)
        self.macs = _macs(forward.jaxpr)
        self.workspace_bytes = _workspace(forward.jaxpr, set(forward.jaxpr.invars[: len(jax.tree.leaves(module))]))

        def residuals(module, inputs):
            arrays, rest = eqx.partition((module, inputs), eqx.is_inexact_array)
            return jax.tree.leaves(jax.vjp(lambda arrays: function(*eqx.combine(arrays, rest)), arrays)[1])

        backward = jax.make_jaxpr(residuals)(module, inputs).jaxpr
        # What is an argument already, above all a weight, is not saved a second time.
        saved = {var for var in backward.outvars if not isinstance(var, Literal)} - set(backward.invars)
        self.saved_bytes = sum(_aval_bytes(var.aval) for var in saved)


def _inputs(config: ModelConfig, dtype: DTypeLike) -> tuple[jax.ShapeDtypeStruct, ...]:
    label = jax.ShapeDtypeStruct((), jnp.int32)
    match config:
        case MaskGITConfig():
            return jax.ShapeDtypeStruct(config.grid, jnp.int32), label
        case DiTConfig():
            return jax.ShapeDtypeStruct(config.shape, dtype), jax.ShapeDtypeStruct((), jnp.float32), label
    raise TypeError(f"`profile` knows MaskGITConfig and DiTConfig, not {type(config).__name__}.")


def _zeros(shapes: PyTree) -> PyTree:
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)


def _macs(jaxpr: Jaxpr) -> int:
    """Multiply-accumulates of all matrix products of a program, a scan's body as often as it runs."""
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            operand: Any = equation.invars[0].aval
            result: Any = equation.outvars[0].aval
            sizes = [operand.shape[axis] for axis in contracted]
            total += math.prod(result.shape) * math.prod(sizes)
        inner = [_macs(sub) for sub in _inner(equation)]
        if equation.primitive.name == "cond":
            total += max(inner)
        else:
            total += sum(inner) * equation.params.get("length", 1) if inner else 0
    return total


def _workspace(jaxpr: Jaxpr, parameters: set) -> int:
    """Bytes of the operands and results, parameters aside, of the largest single operation of a program."""
    largest = 0
    for equation in jaxpr.eqns:
        arrays = {var for var in (*equation.invars, *equation.outvars) if not isinstance(var, Literal)}
        size = sum(_aval_bytes(var.aval) for var in arrays - parameters)
        for sub in _inner(equation):
            # The arguments of most of them are their operation's own, one to one.
            passed = zip(reversed(sub.invars), reversed(equation.invars), strict=False)
            known = {inside for inside, outside in passed if not isinstance(outside, Literal) and outside in parameters}
            size = max(size, _workspace(sub, known))
        largest = max(largest, size)
    return largest


def _inner(equation: Any) -> list[Jaxpr]:
    found = []
    for value in equation.params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            if isinstance(item, ClosedJaxpr):
                found.append(item.jaxpr)
            elif isinstance(item, Jaxpr):
                found.append(item)
    return found


def _aval_bytes(aval: Any) -> int:
    return math.prod(aval.shape) * aval.dtype.itemsize


def _nbytes(tree: PyTree) -> int:
    return sum(_aval_bytes(leaf) for leaf in jax.tree.leaves(tree))


def _size(tree: PyTree) -> int:
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def _scaled(value: float, base: float, units: tuple[str, ...]) -> str:
    index = 0
    while value >= base and index < len(units) - 1:
        value, index = value / base, index + 1
    return f"{value:.4g} {units[index]}".rstrip()


def _count(value: int) -> str:
    return _scaled(value, 1000.0, ("", "thousand", "million", "billion"))


def _operations(macs: int) -> str:
    prefixes = ("", "k", "M", "G", "T", "P")
    flops, macs_text = (
        _scaled(value, 1000.0, tuple(prefix + unit for prefix in prefixes))
        for value, unit in ((2 * macs, "FLOPs"), (macs, "MACs"))
    )
    return f"{flops} ({macs_text})"


def _bytes(value: int) -> str:
    return _scaled(value, 1024.0, ("B", "KiB", "MiB", "GiB", "TiB"))
