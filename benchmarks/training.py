"""Our training step beside PyTorch, eager and compiled, beside the same loops written out, and beside storing all.

    pip install -e '.[parity]'
    taskset --cpu-list 0 python benchmarks/training.py  # on one core

It measures one comparison after another, the small ones first, and writes each to `results/training.csv` when it is
done. A comparison that the file holds is not measured again without `--again`, so that the script can be run in parts:
with `--minutes 8` it begins none after eight minutes, and the largest take some minutes themselves.

A step is a forward pass with both exits of ILSD, a backward pass, clipping, AdamW and the average of the parameters, on
a batch that is already corrupted. All sides start from the same weights, and their losses and gradient norms are
compared first. PyTorch has its fused attention, fused AdamW, and `foreach` for clipping and average. The written-out
side is our layers in a Python loop, with no option of the trunk. The storing side is our trunk with `Remat.NONE`. The
side at once is our step with `accumulation=1`, where ours splits the batch by itself: large ones, and more on one core
than on several.

Beside the ratio stands the share of the processor's peak that our step reaches: its matrix products, three times those
of the forward pass, against a product of two square matrices of 1,024 in the same run.

Goals: at least 1.3 times as fast as eager PyTorch and 1.15 times as compiled PyTorch at widths up to 128, 1.1
times at 384; at most 1.03 times the time of the written-out loops.
"""

import argparse
import dataclasses
import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import torch  # pyright: ignore[reportMissingImports]
import torch.nn.functional as F  # pyright: ignore[reportMissingImports]
from timing import compare, header, read_csv, seconds, show, write_csv

from elt_zoo import ElasticModel, ILSDLoss, Remat
from elt_zoo.corruption import AbstractCorruption, Corrupted
from elt_zoo.data import Batch
from elt_zoo.families import DiTConfig, MaskGITConfig
from elt_zoo.profile import environment, profile
from elt_zoo.training import OptimizerConfig, Precision, TrainState, jit_step, make_optimizer, make_train_step

CLASSES, CODES, LAYERS, LOOPS = 10, 256, 2, 4
STUDENT = LOOPS - 1
RATE, DECAY, WEIGHT_DECAY, BETAS, CLIP, STEPS = 1e-3, 0.999, 0.01, (0.9, 0.99), 1.0, 10**6
Config = DiTConfig | MaskGITConfig


def config_of(family: str, width: int, tokens: int) -> Config:
    side = math.isqrt(tokens)
    sizes: dict[str, Any] = {"dim": width, "num_layers": LAYERS, "max_loops": LOOPS, "num_heads": max(2, width // 64)}
    if family == "dit":
        return DiTConfig(**sizes, num_classes=CLASSES, shape=(2 * side, 2 * side, 3), patch_size=2)
    return MaskGITConfig(**sizes, num_classes=CLASSES, grid=(side, side), codebook_size=CODES)


def corrupted_batch(config: Config, size: int) -> tuple[Batch, Corrupted]:
    rng = np.random.default_rng(0)
    shape = (size, *config.example.shape)
    if isinstance(config, MaskGITConfig):
        examples = jnp.asarray(rng.integers(0, CODES, shape), jnp.int32)
    else:
        examples = jnp.asarray(rng.standard_normal(shape), jnp.float32)
    labels = jnp.asarray(rng.integers(0, CLASSES, size), jnp.int32)
    corruption = jax.jit(config.corruption(label_drop=0.0))
    return Batch(examples, labels), corruption(examples, labels, key=jax.random.key(1))


def build(config: Config) -> ElasticModel:
    """A model in which nothing is hidden by zeros: adaLN's gates and the last layer start there."""
    model = eqx.filter_jit(config.build)(key=jax.random.key(0))
    leaves, structure = jax.tree.flatten(eqx.filter(model, eqx.is_inexact_array))
    rng = np.random.default_rng(1)
    leaves = [leaf + 0.02 * jnp.asarray(rng.standard_normal(leaf.shape), leaf.dtype) for leaf in leaves]
    return eqx.combine(jax.tree.unflatten(structure, leaves), model)


# Our side.


class Given(AbstractCorruption):
    """Leaves corruption out of the step: its randomness would differ between the sides."""

    corrupted: Corrupted

    def __call__(self, examples: Any, labels: Any, *, key: Any) -> Corrupted:
        return self.corrupted


class WrittenOut(eqx.Module):
    """The model with its loops and layers in Python loops."""

    model: ElasticModel

    def student_and_teacher(self, *inputs: Any, student_loops: Any, max_loops: int, key: Any = None) -> tuple[Any, Any]:
        head, trunk = self.model.head, self.model.trunk
        x, conditioning = head.embed(*inputs)
        layers = [jax.tree.map(lambda leaf, i=i: leaf[i], trunk.layers) for i in range(trunk.num_layers)]
        contexts = [None if conditioning is None else layer.condition(conditioning) for layer in layers]
        states = []
        for _ in range(max_loops):
            for layer, context in zip(layers, contexts, strict=True):
                x = layer(x) if context is None else layer(x, context)
            states.append(x)
        return head(states[STUDENT - 1], conditioning), head(states[-1], conditioning)


def our_step(
    config: Config,
    batch: Batch,
    corrupted: Corrupted,
    *,
    written_out: bool = False,
    precision: Precision | None = None,
    accumulation: int | None = None,
) -> Callable[[], Any]:
    """A call that takes a step and gives its metrics."""
    loss = config.loss()
    objective = ILSDLoss(loss, loss.distillation, max_loops=LOOPS, min_loops=STUDENT)
    optimizer = make_optimizer(
        OptimizerConfig(
            learning_rate=RATE, total_steps=STEPS, b1=BETAS[0], b2=BETAS[1], weight_decay=WEIGHT_DECAY, clip_norm=CLIP
        )
    )
    step = jit_step(
        make_train_step(
            optimizer,
            objective,
            Given(corrupted),
            total_steps=STEPS,
            ema_decay=DECAY,
            precision=precision,
            accumulation=accumulation,
        )
    )
    model = build(config)
    state = TrainState.create(WrittenOut(model) if written_out else model, optimizer, key=jax.random.key(2))

    def call() -> Any:
        nonlocal state
        state, metrics = step(state, batch)
        return metrics

    return call


# PyTorch's side. Attributes carry our names, so that weights are copied by name.


class Layer(torch.nn.Module):
    def __init__(self, width: int, heads: int, conditioned: bool, eps: float):
        super().__init__()
        self.heads = heads
        self.modulation = torch.nn.Linear(width, 6 * width) if conditioned else None
        self.attention_norm = torch.nn.LayerNorm(width, eps=eps, elementwise_affine=not conditioned)
        self.attention = torch.nn.ModuleDict(
            {"qkv": torch.nn.Linear(width, 3 * width), "out": torch.nn.Linear(width, width)}
        )
        self.mlp_norm = torch.nn.LayerNorm(width, eps=eps, elementwise_affine=not conditioned)
        self.mlp = torch.nn.ModuleDict(
            {"up": torch.nn.Linear(width, 4 * width), "down": torch.nn.Linear(4 * width, width)}
        )

    def attend(self, x: Any) -> Any:
        batch, tokens, width = x.shape
        qkv = self.attention["qkv"](x).view(batch, tokens, 3, self.heads, width // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(query, key, value)
        return self.attention["out"](attended.transpose(1, 2).reshape(batch, tokens, width))

    def perceive(self, x: Any) -> Any:
        return self.mlp["down"](F.gelu(self.mlp["up"](x), approximate="tanh"))

    def forward(self, x: Any, context: Any) -> Any:
        if context is None:
            x = x + self.attend(self.attention_norm(x))
            return x + self.perceive(self.mlp_norm(x))
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = context
        x = x + gate * self.attend(self.attention_norm(x) * (1 + scale) + shift)
        return x + mlp_gate * self.perceive(self.mlp_norm(x) * (1 + mlp_scale) + mlp_shift)


class DiTHead(torch.nn.Module):
    def __init__(self, config: DiTConfig, ours: Any):
        super().__init__()
        width, patch = config.dim, 4 * config.shape[-1]
        self.side, self.channels = config.shape[0] // 2, config.shape[-1]
        self.patch_embedding = torch.nn.Linear(patch, width)
        self.time_embedding = torch.nn.ModuleDict(
            {"hidden": torch.nn.Linear(256, width), "out": torch.nn.Linear(width, width)}
        )
        self.label_embedding = torch.nn.Embedding(CLASSES + 1, width)
        self.modulation = torch.nn.Linear(width, 2 * width)
        self.state_norm = torch.nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.out = torch.nn.Linear(width, patch)
        zero = jnp.zeros((), jnp.float32)
        # The fixed part of the embedding: the head's tokens of a black image, without the patches' bias.
        tokens = ours.embed(jnp.zeros(config.shape), zero, jnp.zeros((), jnp.int32))[0] - ours.patch_embedding.bias
        self.register_buffer("positions", torch.from_numpy(np.array(tokens)))
        frequencies = np.exp(-math.log(10_000.0) * np.arange(128) / 128)
        self.register_buffer("frequencies", torch.from_numpy(frequencies.astype(np.float32)))

    def embed(self, x: Any, time: Any, label: Any) -> tuple[Any, Any]:
        side, channels = self.side, self.channels
        patches = x.view(-1, side, 2, side, 2, channels).permute(0, 1, 3, 2, 4, 5).reshape(len(x), side**2, -1)
        angles = 1000.0 * time[:, None] * self.frequencies
        hidden = self.time_embedding["hidden"](torch.cat([torch.cos(angles), torch.sin(angles)], dim=1))
        conditioning = self.time_embedding["out"](F.silu(hidden)) + self.label_embedding(label)
        return self.patch_embedding(patches) + self.positions, conditioning

    def forward(self, state: Any, conditioning: Any) -> Any:
        shift, scale = self.modulation(F.silu(conditioning))[:, None].chunk(2, dim=-1)
        patches = self.out(self.state_norm(state) * (1 + scale) + shift)
        side, channels = self.side, self.channels
        pixels = patches.view(-1, side, side, 2, 2, channels).permute(0, 1, 3, 2, 4, 5)
        return pixels.reshape(-1, 2 * side, 2 * side, channels)


class MaskedHead(torch.nn.Module):
    def __init__(self, config: MaskGITConfig, ours: Any):
        super().__init__()
        width = config.dim
        self.token_embedding = torch.nn.Parameter(torch.empty(CODES + 1, width))
        self.label_embedding = torch.nn.Embedding(CLASSES + 1, width)
        self.position_embedding = torch.nn.Parameter(torch.empty(1 + math.prod(config.grid), width))
        self.state_norm = torch.nn.LayerNorm(width, eps=ours.state_norm.eps)
        self.hidden = torch.nn.Linear(width, width)
        self.hidden_norm = torch.nn.LayerNorm(width, eps=ours.hidden_norm.eps)
        self.bias = torch.nn.Parameter(torch.empty(CODES))

    def embed(self, ids: Any, label: Any) -> tuple[Any, None]:
        tokens = F.embedding(ids.flatten(1), self.token_embedding)
        return torch.cat([self.label_embedding(label)[:, None], tokens], dim=1) + self.position_embedding, None

    def forward(self, state: Any, conditioning: None) -> Any:
        hidden = self.hidden_norm(F.gelu(self.hidden(self.state_norm(state[:, 1:])), approximate="tanh"))
        return hidden @ self.token_embedding[:CODES].T + self.bias


class Twin(torch.nn.Module):
    """The same network as ours, with the same weights, batched."""

    def __init__(self, config: Config, ours: ElasticModel):
        super().__init__()
        conditioned = isinstance(config, DiTConfig)
        self.head = DiTHead(config, ours.head) if isinstance(config, DiTConfig) else MaskedHead(config, ours.head)
        eps = ours.trunk.layers.attention_norm.eps
        self.layers = torch.nn.ModuleList(
            Layer(config.dim, config.num_heads, conditioned, eps) for _ in range(config.num_layers)
        )
        parameters = dict(self.named_parameters())
        for path, leaf in jax.tree.leaves_with_path(eqx.filter(ours, eqx.is_inexact_array)):
            name = jax.tree_util.keystr(path).lstrip(".")
            stacked = name.startswith("trunk.layers.")
            for index, value in enumerate(leaf if stacked else leaf[None]):
                target = parameters.pop(name.replace("trunk.layers", f"layers.{index}") if stacked else name)
                target.data.copy_(torch.from_numpy(np.array(value)))
        assert not parameters, f"without weights: {sorted(parameters)}"

    def forward(self, *inputs: Any) -> tuple[Any, Any]:
        """Predictions of the student and of the teacher."""
        x, conditioning = self.head.embed(*inputs)
        contexts = [
            None if layer.modulation is None else layer.modulation(F.silu(conditioning))[:, None].chunk(6, dim=-1)
            for layer in self.layers
        ]
        states = []
        for _ in range(LOOPS):
            for layer, context in zip(self.layers, contexts, strict=True):
                x = layer(x, context)
            states.append(x)
        return self.head(states[STUDENT - 1], conditioning), self.head(states[-1], conditioning)


def as_torch(array: Any, device: str = "cpu") -> Any:
    value = np.array(array)
    return torch.from_numpy(value.astype(np.int64) if value.dtype == np.int32 else value).to(device)


def their_loss(config: Config, corrupted: Corrupted, device: str = "cpu") -> Callable[[Any, Any, float], Any]:
    """`(student, teacher, λ) -> loss` of the batch."""
    total = float(corrupted.weight.sum())
    if isinstance(config, DiTConfig):
        value = as_torch(corrupted.target.value, device)
        # What an error of one in every entry costs.
        shifted = corrupted.target.value + 1.0
        weight = as_torch(jax.vmap(config.loss())(shifted, corrupted.target), device) / total

        def apart(a: Any, b: Any) -> Any:
            return torch.sum(weight * (a - b).square().mean(dim=(1, 2, 3)))

        return lambda student, teacher, share: (
            apart(teacher, value) + share * apart(student, value) + (1 - share) * apart(student, teacher.detach())
        )
    ids = as_torch(corrupted.target.ids, device).flatten()
    mask = as_torch(corrupted.target.mask, device).flatten().float() / total
    smoothing = config.label_smoothing

    def entropy(logits: Any, target: Any, smoothing: float = 0.0) -> Any:
        logits = logits.flatten(0, 1)
        return torch.sum(mask * F.cross_entropy(logits, target, label_smoothing=smoothing, reduction="none"))

    def loss(student: Any, teacher: Any, share: float) -> Any:
        soft = teacher.detach().flatten(0, 1).softmax(dim=-1)
        truth = entropy(teacher, ids, smoothing) + share * entropy(student, ids, smoothing)
        return truth + (1 - share) * entropy(student, soft)

    return loss


def their_step(
    config: Config, corrupted: Corrupted, *, compiled: bool, device: str = "cpu", bfloat16: bool = False
) -> Callable[[], Any]:
    """A call that takes a step and gives its loss and gradient norm. `bfloat16`: by PyTorch's autocast."""
    twin = Twin(config, build(config)).to(device)
    # As our optimiser: the weights of linear maps decay, nothing else does.
    decaying = [m.weight for m in twin.modules() if isinstance(m, torch.nn.Linear)]
    known = {id(parameter) for parameter in decaying}
    others = [parameter for parameter in twin.parameters() if id(parameter) not in known]
    groups = [{"params": decaying, "weight_decay": WEIGHT_DECAY}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=RATE, betas=BETAS, eps=1e-8, fused=True)
    parameters = list(twin.parameters())
    average = [parameter.detach().clone() for parameter in parameters]
    inputs, loss_of = [as_torch(each, device) for each in corrupted.inputs], their_loss(config, corrupted, device)

    def loss(share: float) -> Any:
        with torch.autocast(device, torch.bfloat16, enabled=bfloat16):
            student, teacher = twin(*inputs)
        return loss_of(student.float(), teacher.float(), share)

    forward = torch.compile(loss) if compiled else loss
    steps = itertools.count()

    def call() -> dict[str, Any]:
        step = next(steps)
        optimizer.zero_grad(set_to_none=True)
        value = forward(torch.tensor(1 - step / STEPS, device=device))
        value.backward()
        norm = torch.nn.utils.clip_grad_norm_(parameters, CLIP, foreach=True)
        optimizer.step()
        weight = 1 - min(DECAY, (1 + step) / (10 + step))
        torch._foreach_lerp_(average, [parameter.detach() for parameter in parameters], weight)
        return {"loss": value.item(), "gradient_norm": norm.item()}

    return call


def difference(ours: Any, theirs: Any) -> float:
    """Of two steps: the largest relative difference of loss and gradient norm."""
    names = ("loss", "gradient_norm")
    return max(abs(float(ours[name]) - float(theirs[name])) / abs(float(theirs[name])) for name in names)


# Measuring.


class Case(NamedTuple):
    """What one comparison is of."""

    family: str
    width: int
    tokens: int
    batch: int


def measure(case: Case, sides: Sequence[str], rounds: int, peak: float) -> Iterator[dict[str, Any]]:
    """The rows of some sides, our step being compiled once."""
    config = config_of(case.family, case.width, case.tokens)
    batch, corrupted = corrupted_batch(config, case.batch)
    for side in sides:
        # Anew for each side, so that both begin at the same weights; the program is kept.
        ours = our_step(config, batch, corrupted)
        if side == "written out":
            theirs = our_step(config, batch, corrupted, written_out=True)
        elif side == "storing":
            theirs = our_step(dataclasses.replace(config, remat=Remat.NONE), batch, corrupted)
        elif side == "at once":
            theirs = our_step(config, batch, corrupted, accumulation=1)
        else:
            theirs = their_step(config, corrupted, compiled=side == "compiled")
        # The second step sees the first's update.
        apart = max(difference(ours(), theirs()) for _ in range(2))
        assert apart < 1e-3, f"{case}: losses or gradient norms differ by {apart:.1e}"
        # Long steps vary less, and would take hours.
        row = compare(ours, theirs, rounds=rounds if seconds(ours) < 1.0 else min(rounds, 5))
        share = case.batch * profile(config).training_flops(exits=2) / (1e-3 * row["ours_ms"]) / peak
        yield {"side": side, **case._asdict(), "difference": apart, "peak_share": share, **row}
    jax.clear_caches()
    torch.compiler.reset()


def matmul_peak(size: int = 1024) -> float:
    """The most operations per second that a product of two square matrices reached."""
    square = jnp.ones((size, size))
    product = jax.jit(jnp.matmul)
    seconds(lambda: product(square, square))
    return 2 * size**3 / min(seconds(lambda: product(square, square)) for _ in range(20))


SIDES = ("eager", "compiled", "at once", "written out", "storing")
LISTS = ("families", "widths", "tokens", "batches")
"""The arguments that span the cases, in the order of a case's fields."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--families", nargs="+", default=["dit", "maskgit"])
    parser.add_argument("--widths", nargs="+", type=int, default=[64, 128, 384])
    parser.add_argument("--tokens", nargs="+", type=int, default=[16, 64, 256])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8, 32])
    parser.add_argument("--sides", nargs="+", default=SIDES, choices=SIDES)
    parser.add_argument("--minutes", type=float, default=math.inf, help="begin no comparison after so many")
    parser.add_argument("--again", action="store_true", help="measure what the table holds, too")
    parser.add_argument("--csv", type=Path, default=Path(__file__).parent / "results" / "training.csv")
    arguments = parser.parse_args()
    end = time.monotonic() + 60 * arguments.minutes
    versions = f"torch {torch.__version__}, {torch.get_num_threads()} threads"
    print(f"{environment()}; {versions}; medians of {arguments.rounds} rounds")
    cases = [Case(*case) for case in itertools.product(*(getattr(arguments, name) for name in LISTS))]
    cases.sort(key=lambda case: case.width**2 * case.tokens * case.batch)
    table = {(row["side"], *(row[name] for name in Case._fields)): row for row in read_csv(arguments.csv)}
    left = {
        case: [side for side in arguments.sides if arguments.again or (side, *map(str, case)) not in table]
        for case in cases
    }
    peak = matmul_peak()
    header("elt_zoo", "other")
    for case, sides in left.items():
        if time.monotonic() > end:
            break
        for row in measure(case, sides, arguments.rounds, peak):
            row |= {"environment": f"{environment()}, {versions}"}
            show(f"{row['side']}: {case.family} d={case.width} {case.tokens} tokens, batch {case.batch}", row)
            table[row["side"], *map(str, case)] = row
            write_csv(arguments.csv, list(table.values()))
            left[case] = [side for side in left[case] if side != row["side"]]
            if time.monotonic() > end:
                break
    print(f"{sum(map(len, left.values()))} comparisons are left.")


if __name__ == "__main__":
    main()
